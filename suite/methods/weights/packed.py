"""Packed weights in the user's cache: one safetensors file per model and config, with the report of what was lost."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import platformdirs
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from suite.errors import InputError
from suite.methods.weights.calibration import Statistics
from suite.methods.weights.linear import QuantisedLinear

LINE = 64
"""Bytes of a cache line."""
FORMAT = 1
"""Goes into the hash: raise it when the same options make other codes."""


@dataclass(frozen=True)
class LayerError:
    """One matrix: stored bits per weight, and what was lost.

    `weight` is ||W - Q|| / ||W||; `output` is ||X (W - Q)ᵀ|| / ||X Wᵀ|| on sampled inputs of the calibration text, and
    `loss` is 1/2 sum F (W - Q)², which k-means makes small: it ranks settings on one text, and is no number of nats,
    as F comes from gradients of a mean over tokens. Both are None uncalibrated.
    """

    name: str
    bits: float
    weight: float
    output: float | None = None
    loss: float | None = None


def layer_error(name: str, weight: Tensor, made: QuantisedLinear, statistics: Statistics | None) -> LayerError:
    """Compares a matrix [out, in] with what its codes stand for."""
    wide = weight.float()
    lost = wide - made.dense()
    bits = 8 * made.weight_bytes() / weight.numel()
    relative = float(lost.norm() / wide.norm())
    if statistics is None:
        return LayerError(name, bits, relative)
    output = (statistics.inputs @ lost.T).norm() / (statistics.inputs @ wide.T).norm()
    loss = (statistics.fisher * lost.square()).sum() / 2
    return LayerError(name, bits, relative, float(output), float(loss))


def place(slug: str, depends_on: Mapping[str, Any]) -> Path:
    """The file of what `slug` makes under these conditions."""
    document = json.dumps({"format": FORMAT, **depends_on}, sort_keys=True)
    root = os.environ.get("SUITE_CACHE") or platformdirs.user_cache_dir("inference-suite")
    return Path(root) / "weights" / f"{slug}-{hashlib.sha256(document.encode()).hexdigest()[:24]}.safetensors"


def save(path: Path, modules: Mapping[str, QuantisedLinear], report: Sequence[LayerError]) -> None:
    """Writes all at once or not at all."""
    tensors = {f"{name}.{field}": tensor for name, made in modules.items() for field, tensor in made.tensors().items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as directory:
        fresh = Path(directory) / path.name
        save_file(tensors, fresh, metadata={"report": json.dumps([asdict(row) for row in report])})
        os.replace(fresh, path)


def load(path: Path) -> tuple[dict[str, dict[str, Tensor]], list[LayerError]]:
    """The tensors by matrix and field, and the report."""
    found: dict[str, dict[str, Tensor]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 - not a mapping
                name, _, field = key.rpartition(".")
                found.setdefault(name, {})[field] = file.get_tensor(key)
            rows = json.loads((file.metadata() or {})["report"])
    except (SafetensorError, KeyError) as error:
        raise InputError(f"{path} holds no packed weights ({error}); delete it, and it is made anew.") from error
    return _together(found), [LayerError(**row) for row in rows]


def _together(tensors: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
    """Copies in one allocation, where a step reads them in turn: in huge pages, which a mapped file is not."""
    sizes = [-(-tensor.nbytes // LINE) * LINE for fields in tensors.values() for tensor in fields.values()]
    pieces = iter(torch.split(torch.empty(sum(sizes), dtype=torch.uint8), sizes))
    return {
        name: {
            field: next(pieces)[: tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor)
            for field, tensor in fields.items()
        }
        for name, fields in tensors.items()
    }
