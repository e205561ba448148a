"""Naive merge of partial attention results."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.arguments import accumulate_dtype


def lse_merge(outs: Sequence[Tensor], lses: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The contract of `kernels.lse_merge.lse_merge` for sequences, computed in fp32 (fp64 for fp64 parts)."""
    dtype = accumulate_dtype(outs[0])
    total = torch.logsumexp(torch.stack([lse.to(dtype) for lse in lses]), dim=0)
    out = torch.zeros(outs[0].shape, dtype=dtype, device=outs[0].device)
    for part, lse in zip(outs, lses, strict=True):
        weight = torch.exp(lse.to(dtype) - total)[..., None]
        out += torch.where((lse == -torch.inf)[..., None], 0.0, weight * part.to(dtype))
    return out.to(outs[0].dtype), total.to(torch.float32)
