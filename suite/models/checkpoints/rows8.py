"""Matrices of a checkpoint in int8, a scale for each row: a quarter of fp32, half of bf16, about as exact as bf16."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

_SCALE = ".scale"


def pack(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Every matrix [rows, columns] as int8 and, under its name with ".scale", fp32 [rows, 1]; vectors as they are."""
    packed: dict[str, Tensor] = {}
    for name, value in state.items():
        if value.dim() != 2:
            packed[name] = value.contiguous()
            continue
        scale = value.abs().amax(dim=1, keepdim=True).clamp(min=1e-12) / 127
        packed[name], packed[name + _SCALE] = (value / scale).round().to(torch.int8), scale
    return packed


def unpack(packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict in fp32; what was never packed stays as it is."""
    scales = {name.removesuffix(_SCALE): value for name, value in packed.items() if name.endswith(_SCALE)}
    state = {name: value for name, value in packed.items() if not name.endswith(_SCALE)}
    return {name: value.float() * scales[name] if name in scales else value for name, value in state.items()}
