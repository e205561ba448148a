"""Round to nearest int4 in groups of 128 inputs: what `kernels.w4_gemm` reads."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from kernels.w4_gemm import GROUP, pack

LARGEST = 7
"""Codes go to -8, but a symmetric scale reaches as far up as down."""


def round_to_int4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight [N, K] -> packed int16 [N, ceil(K / 4)] and scales fp16 [N, ceil(K / 128)].

    A scale is the largest magnitude of its group over 7. What the codes stand for is rounded to the same codes again.
    """
    features = weight.shape[1]
    groups = functional.pad(weight.float(), (0, -features % GROUP)).view(len(weight), -1, GROUP)
    scales = (groups.abs().amax(2) / LARGEST).clamp(max=torch.finfo(torch.float16).max).half()
    # Codes are those of the scale as it is stored; a group of zeros, or too small for fp16, stays 0.
    divisor = torch.where(scales > 0, scales.float(), torch.inf)
    codes = (groups / divisor[..., None]).round().clamp(-LARGEST - 1, LARGEST)
    return pack(codes.flatten(1)[:, :features].to(torch.int8)), scales
