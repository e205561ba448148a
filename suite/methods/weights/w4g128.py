"""Symmetric int4 in groups of 128: the W4A16 weights that SpecMQuant (arXiv 2505.22179) measures speculation on."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from kernels.w4_gemm import GROUP
from suite.cost import MethodCost, Situation
from suite.methods.base import Card
from suite.methods.weights.base import Site, WeightsMethod
from suite.methods.weights.linear import W4Linear
from suite.models.int4 import round_to_int4


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

    @staticmethod
    def cost(config: Any, at: Situation) -> MethodCost:
        """A 16-bit scale per group."""
        return MethodCost(weight_bits=4 + 16 / GROUP)

    def quantize(self, name: str, weight: Tensor, site: Site, config: Any) -> W4Linear:
        packed, scales = round_to_int4(weight)
        return W4Linear(weight.shape[1], {"packed": packed, "scales": scales}, site.bias)
