"""Rotary position embeddings (RoFormer, 2104.09864) and the frequency scalings of the Llama family.

Half-rotation layout as in the Hugging Face models: the pair of dimension i is (i, i + D/2).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from suite.models.config import RopeConfig


def frequencies(config: RopeConfig, head_dim: int, length: int) -> tuple[Tensor, float]:
    """Inverse frequencies [D/2] in fp32 and the factor on cos and sin, for a sequence of `length` tokens.

    Sources: linear (2306.15595), dynamic NTK, YaRN (2309.00071), llama3 (the Llama 3.1 release).
    """
    base = 1.0 / config.theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    p = config.parameters
    if config.kind == "linear":
        return base / float(p["factor"]), 1.0
    if config.kind == "dynamic":
        return _dynamic(config, head_dim, length), 1.0
    if config.kind == "yarn":
        return _yarn(config, base, head_dim)
    if config.kind == "llama3":
        return _llama3(config, base), 1.0
    return base, 1.0


def _dynamic(config: RopeConfig, head_dim: int, length: int) -> Tensor:
    """The base grows with the sequence once it is longer than the trained window."""
    window, factor = int(config.parameters["original_max_position_embeddings"]), float(config.parameters["factor"])
    growth = (factor * max(length, window) / window) - (factor - 1)
    theta: float = config.theta * growth ** (head_dim / (head_dim - 2))
    return 1.0 / theta ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)


def _yarn(config: RopeConfig, base: Tensor, head_dim: int) -> tuple[Tensor, float]:
    """Interpolates low frequencies, keeps high ones, blends in between; scales cos and sin by the temperature."""
    p = config.parameters
    factor, window = float(p["factor"]), int(p["original_max_position_embeddings"])

    def dimension(rotations: float) -> float:
        return head_dim * math.log(window / (rotations * 2 * math.pi)) / (2 * math.log(config.theta))

    low, high = dimension(float(p.get("beta_fast") or 32)), dimension(float(p.get("beta_slow") or 1))
    if p.get("truncate", True):
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, head_dim - 1)
    ramp = ((torch.arange(head_dim // 2, dtype=torch.float32) - low) / max(high - low, 0.001)).clamp(0, 1)
    return base / factor * ramp + base * (1 - ramp), _yarn_temperature(config, factor)


def _yarn_temperature(config: RopeConfig, factor: float) -> float:
    p = config.parameters

    def temperature(weight: float) -> float:
        return 0.1 * weight * math.log(factor) + 1.0 if factor > 1 else 1.0

    if p.get("attention_factor") is not None:
        return float(p["attention_factor"])
    if p.get("mscale") and p.get("mscale_all_dim"):
        return temperature(float(p["mscale"])) / temperature(float(p["mscale_all_dim"]))
    return temperature(1.0)


def _llama3(config: RopeConfig, base: Tensor) -> Tensor:
    """Wavelengths beyond the trained window are divided by `factor`; a band in between is interpolated."""
    p = config.parameters
    factor, window = float(p["factor"]), float(p["original_max_position_embeddings"])
    low, high = float(p["low_freq_factor"]), float(p["high_freq_factor"])
    turns = window * base / (2 * math.pi)
    smooth = ((turns - low) / (high - low)).clamp(0, 1)
    return (1 - smooth) * base / factor + smooth * base


class Rope:
    """Tables of cos and sin, [positions, D/2] in fp32, grown to powers of two: the token behind a prompt makes none."""

    def __init__(self, config: RopeConfig, head_dim: int) -> None:
        self.config = config
        self.head_dim = head_dim
        self._made_for = (0, 0)  # rows, and the length that dynamic scaling was computed for
        self._tables = (torch.empty(0, head_dim // 2), torch.empty(0, head_dim // 2))

    def tables(self, length: int) -> tuple[Tensor, Tensor]:
        """cos and sin for positions 0 ... length-1 at least.

        Dynamic scaling depends on the length itself, so beyond its trained window its tables are made anew.
        """
        rows, scaled_for = self._made_for
        scaling = self._scaling_length(length)
        if length > rows or scaling != scaled_for:
            rows = length if scaling else max(512, 1 << length.bit_length())
            angles, factor = frequencies(self.config, self.head_dim, length)
            grid = torch.outer(torch.arange(rows, dtype=torch.float32), angles)
            self._tables, self._made_for = (grid.cos() * factor, grid.sin() * factor), (rows, scaling)
        return self._tables

    def _scaling_length(self, length: int) -> int:
        """The length that the frequencies depend on; 0 when they do not."""
        if self.config.kind != "dynamic" or length <= int(self.config.parameters["original_max_position_embeddings"]):
            return 0
        return length


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates x [..., D] by tables that broadcast against [..., D/2]; computed in fp32, returned in x's dtype."""
    first, second = x.float().chunk(2, dim=-1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
