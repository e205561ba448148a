"""`manifest.json`: what a trained checkpoint says of itself, and the check that its files are the ones it speaks of."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from suite.errors import InputError

MANIFEST = "manifest.json"
Outcome = Literal["finished", "target reached", "interrupted"]


@dataclass(frozen=True)
class TrainingPlan:
    """AdamW with a linear warm-up over `warmup` steps to `lr`, then a cosine to zero at `steps`.

    `clip` bounds the norm of the gradient. The recipe is evaluated every `eval_every` steps and after the last one;
    training ends early when its dev figure reaches `target`. `threads` is part of the plan because the order of
    floating-point sums, and with it the weights, depends on it. `lr_factors` multiply `lr` for the parameters whose
    names begin with the key.
    """

    steps: int
    batch: int
    lr: float
    warmup: int
    weight_decay: float
    clip: float
    seed: int
    eval_every: int
    beta2: float = 0.999
    target: float | None = None
    threads: int = 1
    lr_factors: dict[str, float] = field(default_factory=dict)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataSource(_Record):
    """The training data: a generator or a corpus, its version, and the hash of what it yields."""

    name: str
    version: str
    revision: str


class Point(_Record):
    """One evaluation. `loss` is the mean training loss since the point before; `figures` are the recipe's."""

    step: int
    loss: float
    figures: dict[str, float]


class Manifest(_Record):
    """One training run. The weights are those of `saved_step`, the best by `dev_figure`; `steps` were trained."""

    recipe: str
    recipe_version: str
    summary: str
    selection: str
    plan: TrainingPlan
    model: dict[str, Any]
    data: DataSource
    outcome: Outcome
    steps: int
    saved_step: int
    dev_figure: str
    figures: dict[str, float]
    wall_s: float
    machine: dict[str, str]
    torch: str
    curve: tuple[Point, ...]
    files: dict[str, str]


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_files(directory: Path) -> dict[str, str]:
    """sha256 of every file of a checkpoint but its manifest, by name."""
    return {path.name: _sha256(path) for path in sorted(directory.iterdir()) if path.name != MANIFEST}


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Writes `manifest.json` as indented JSON, so that a change of it can be reviewed."""
    (directory / MANIFEST).write_text(json.dumps(manifest.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8")


def load_manifest(directory: Path) -> Manifest:
    """Reads the manifest and compares the sha256 of every file; `InputError` names the first one that differs."""
    path = directory / MANIFEST
    try:
        manifest = Manifest.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{directory} is not a checkpoint of `suite train`: {MANIFEST} cannot be read.") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the document"
        raise InputError(f"{path} is not a valid manifest: {where}: {first['msg']}.") from error
    for name, expected in manifest.files.items():
        _verify(directory / name, expected, manifest.recipe)
    return manifest


def _verify(path: Path, expected: str, recipe: str) -> None:
    cure = f"restore the file or make it again with `suite train {recipe}`"
    try:
        actual = _sha256(path)
    except OSError as error:
        raise InputError(f"{path} is named in its checkpoint's manifest but cannot be read; {cure}.") from error
    if actual != expected:
        raise InputError(f"{path} has sha256 {actual[:12]}..., but its manifest says {expected[:12]}...; {cure}.")


def check_output(directory: Path) -> None:
    """`InputError` unless a checkpoint can be written there: before hours of training, not after them."""
    if directory.exists() and not (directory.is_dir() and _replaceable(directory)):
        raise InputError(f"{directory} exists and is not a checkpoint; choose a new or an empty directory.")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryDirectory(dir=directory.parent).cleanup()
    except OSError as error:
        raise InputError(f"cannot write to {directory.parent}: {error.strerror}; choose another directory.") from error


def _replaceable(directory: Path) -> bool:
    return (directory / MANIFEST).exists() or not any(directory.iterdir())


@contextmanager
def replacing(directory: Path) -> Iterator[Path]:
    """Yields an empty directory that takes the place of `directory` when the block ends well, and else is removed."""
    fresh = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    retired = fresh.with_name(fresh.name + "-old")
    try:
        yield fresh
        fresh.chmod(0o755)
        if directory.exists():
            os.replace(directory, retired)
        os.replace(fresh, directory)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(retired, ignore_errors=True)
