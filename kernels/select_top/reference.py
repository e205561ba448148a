"""Naive chunk scoring and selection: all scores, one sort per list."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.arguments import accumulate_dtype


def select_top(q: Tensor, reps: Tensor, k: int, last: Tensor, *, first: int, selections: int) -> Tensor:
    """The contract of `kernels.select_top.select_top`."""
    rows, heads, _ = q.shape
    out = torch.full((rows, selections, k), -1, dtype=torch.int32, device=q.device)
    dtype = accumulate_dtype(q)
    for t, stop in enumerate(last.tolist()):
        for s in range(selections):
            scores = torch.zeros(max(0, min(stop, reps.shape[1]) - first), dtype=dtype, device=q.device)
            for head in range(s * heads // selections, (s + 1) * heads // selections):
                scores += reps[head * reps.shape[0] // heads, first:stop].to(dtype) @ q[t, head].to(dtype)
            out[t, s] = best(scores, k, first)
    return out


def top(scores: Tensor, k: int, last: Tensor | None, *, first: int) -> Tensor:
    """The contract of `kernels.select_top.top`."""
    stops = [scores.shape[1]] * len(scores) if last is None else last.tolist()
    lists = [best(row[first:stop], k, first) for row, stop in zip(scores, stops, strict=True)]
    return torch.stack(lists) if lists else scores.new_empty(0, k, dtype=torch.int32)


def best(scores: Tensor, k: int, first: int) -> Tensor:
    """scores [n] -> int32 [k], ascending, `first` added; -1 where there are no more."""
    known = scores.double().nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
    order = known.sort(descending=True, stable=True).indices
    chosen = order[known[order] > -torch.inf][:k].sort().values
    out = torch.full((k,), -1, dtype=torch.int32, device=scores.device)
    out[: len(chosen)] = chosen.int() + first
    return out
