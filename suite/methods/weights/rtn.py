"""Round to nearest, per output channel: the control every quantiser must beat at equal bits."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from kernels.lut_gemv import pack
from suite.cost import MethodCost, Situation
from suite.methods.base import Card, MethodConfig, tunable
from suite.methods.weights.base import Site, WeightsMethod
from suite.methods.weights.linear import LutLinear


class RTNConfig(MethodConfig):
    """`bits` of a code."""

    bits: Literal[3, 4] = tunable(4, choices=(3, 4))


class RTN(WeightsMethod):
    """2^bits evenly spaced values between the least and the greatest weight of each output row, 0 among them.

    The values are stored as the row's lookup table, so that it is read by the kernel, and at the bits, of the method
    it is a control for.
    """

    card: ClassVar[Card] = Card(
        slug="rtn",
        family="weights",
        title="Round to nearest, asymmetric, one scale per output channel",
        source="the baseline of arXiv 2306.07629, table 1",
        lossless=False,
    )
    Config = RTNConfig
    linear = LutLinear

    @staticmethod
    def cost(config: Any, at: Situation) -> MethodCost:
        """A table of 16-bit values per output row."""
        return MethodCost(weight_bits=config.bits, row_bytes=2 * 2**config.bits)

    def quantize(self, name: str, weight: Tensor, site: Site, config: Any) -> LutLinear:
        levels = 2**config.bits
        wide = weight.float()
        low, high = wide.amin(1, keepdim=True).clamp(max=0), wide.amax(1, keepdim=True).clamp(min=0)
        scale = ((high - low) / (levels - 1)).clamp(min=torch.finfo(torch.float32).tiny)
        zero = (-low / scale).round()
        codes = (wide / scale).round().add(zero).clamp(0, levels - 1)
        tables = (torch.arange(levels) - zero) * scale
        tensors = {"packed": pack(codes.to(torch.uint8), config.bits), "tables": tables.to(weight.dtype)}
        return LutLinear(weight.shape[1], tensors, site.bias)
