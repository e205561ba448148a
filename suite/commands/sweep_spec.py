"""The file of `suite sweep`: defaults, axes whose product gives the runs, and what a run asks of a Ray cluster."""

from __future__ import annotations

import hashlib
import itertools
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from suite.commands.wishes import RunOptions
from suite.errors import InputError
from suite.harness import machine
from suite.harness.options import make_workload, validated
from suite.harness.plan import Plan, plan
from suite.spec import Spec

Words = Annotated[tuple[str, ...], BeforeValidator(lambda given: (given,) if isinstance(given, str) else given)]
"""One word, or a list of them: what is repeatable on the command line."""


class RunTable(Spec):
    """What [defaults] and [axes] give a run: the options of `suite run` under their names there."""

    workload: str
    method: Words = ()
    model: str = "smollm2-135m"
    task: Words = ()
    limit: int | None = None
    budget: str | None = None
    kv_budget: int = Field(default=512, ge=16)
    data: Path | None = None
    set: Words = ()
    dtype: str = "bf16"
    threads: int = Field(default=0, ge=0)
    batch: int = Field(default=1, ge=1)
    repeats: int = Field(default=1, ge=1)
    temperature: float = Field(default=0.0, ge=0.0)
    top_k: int = Field(default=0, ge=0)
    top_p: float = Field(default=1.0, ge=0.0, le=1.0)
    seed: int = Field(default=0, ge=0)

    def options(self) -> RunOptions:
        """The same as if it had been given to `suite run`."""
        return RunOptions(
            workload=self.workload, methods=self.method, model=self.model, tasks=self.task, limit=self.limit,
            budget=self.budget, kv_budget=self.kv_budget, data=self.data, settings=self.set, dtype=self.dtype,
            engine="native", threads=self.threads, batch=self.batch, repeats=self.repeats,
            temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, seed=self.seed,
        )  # fmt: skip


class RayTable(Spec):
    """[ray]: what one run asks of the cluster, and how often it is begun again when its worker dies."""

    cpus: int = Field(default=1, ge=1)
    gpus: float = Field(default=0, ge=0)
    memory_gib: float = Field(default=0, ge=0)
    retries: int = Field(default=2, ge=0)


class _Tables(Spec):
    defaults: dict[str, Any] = Field(default_factory=dict)
    axes: dict[str, Any] = Field(default_factory=dict)
    ray: dict[str, Any] = Field(default_factory=dict)


@dataclass(frozen=True)
class SweepRun:
    """One point of the product: what one `suite run` measures."""

    label: str
    plan: Plan

    def key(self, place: str) -> str:
        """Hash of what is measured, of which data, by which code, and of the `place` where; `--store` keeps it."""
        workload = self.plan.blocks[0].workload
        revision = make_workload(workload).revision(workload.seed)
        document = "\n".join((self.plan.model_dump_json(), revision, machine.code_version(), place))
        return hashlib.sha256(document.encode()).hexdigest()[:24]


@dataclass(frozen=True)
class SweepSpec:
    """A validated file: nothing in it can be found wrong before a model is loaded."""

    runs: tuple[SweepRun, ...]
    ray: RayTable


def read_spec(path: Path) -> SweepSpec:
    """The spec in a TOML file; the first mistake in it, or in any of its runs, is an `InputError`."""
    tables = validated(_Tables, _parsed(path), str(path))
    ray = validated(RayTable, tables.ray, f"[ray] of {path}")
    found: dict[str, SweepRun] = {}
    for label, given in _product(tables, path):
        run = _run(label, given, path)
        found.setdefault(run.plan.model_dump_json(), run)
    return SweepSpec(tuple(found.values()), ray)


def _parsed(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}); give the path of a TOML file.") from error
    except ValueError as error:  # what is no TOML, and what is no UTF-8
        raise InputError(f"{path} is no TOML file: {error}.") from error


def _product(tables: _Tables, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The label and the options of every run; an axis goes before a default of the same name."""
    for name, values in tables.axes.items():
        if not isinstance(values, list) or not values:
            raise InputError(f"axis {name} of {path} must be a list of at least one value, not {values!r}.")
    for point in itertools.product(*tables.axes.values()):
        chosen = dict(zip(tables.axes, point, strict=True))
        label = ", ".join(f"{name}={_text(value)}" for name, value in chosen.items())
        yield label or "the run", {**tables.defaults, **chosen}


def _text(value: Any) -> str:
    return "+".join(map(str, value)) if isinstance(value, list) else str(value)


def _run(label: str, given: Mapping[str, Any], path: Path) -> SweepRun:
    if "workload" not in given:
        raise InputError(f"{path} names no workload; give one under [defaults], or a list of them under [axes].")
    table = validated(RunTable, given, f"a run of {path}")
    try:
        return SweepRun(label, plan(table.options().wishes()))
    except InputError as error:
        raise InputError(f"{label} of {path}: {error}") from error
