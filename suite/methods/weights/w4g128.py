"""Symmetric int4 in groups of 128: the W4A16 weights that SpecMQuant (arXiv 2505.22179) measures speculation on."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from kernels.w4_gemm import GROUP, pack
from suite.cost import MethodCost, Situation
from suite.methods.base import Card
from suite.methods.weights.base import Site, WeightsMethod
from suite.methods.weights.linear import W4Linear

LARGEST = 7
"""Codes go to -8, but a symmetric scale reaches as far up as down."""


class W4G128(WeightsMethod):
    """Each 128 inputs of an output row share one fp16 scale, their largest magnitude over 7; no zero points."""

    card: ClassVar[Card] = Card(
        slug="w4g128",
        family="weights",
        title="Speculative Decoding Meets Quantization: the reference quantiser",
        source="arXiv 2505.22179",
        lossless=False,
    )
    linear = W4Linear

    @classmethod
    def cost(cls, config: Any, at: Situation) -> MethodCost:
        """A 16-bit scale per group."""
        return MethodCost(weight_bits=4 + 16 / GROUP)

    def quantize(self, name: str, weight: Tensor, site: Site, config: Any) -> W4Linear:
        features = weight.shape[1]
        groups = functional.pad(weight.float(), (0, -features % GROUP)).view(len(weight), -1, GROUP)
        scales = (groups.abs().amax(2) / LARGEST).clamp(max=torch.finfo(torch.float16).max).half()
        # Codes are those of the scale as it is stored; a group of zeros, or too small for fp16, stays 0.
        divisor = torch.where(scales > 0, scales.float(), torch.inf)
        codes = (groups / divisor[..., None]).round().clamp(-LARGEST - 1, LARGEST)
        packed = pack(codes.flatten(1)[:, :features].to(torch.int8))
        return W4Linear(features, {"packed": packed, "scales": scales}, site.bias)
