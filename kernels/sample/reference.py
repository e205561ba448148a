"""Naive softmax statistics and sampling, in fp64."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.arguments import accumulate_dtype


def statistics(logits: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """logits [B, V] -> logsumexp [B], entropy [B], top int32 [B, k] and their logits [B, k]."""
    wide = _readable(logits)
    peak = wide.amax(dim=-1, keepdim=True)
    shifted = (wide - peak.where(peak > -torch.inf, 0.0)).nan_to_num(nan=0.0)  # log(2) is lost beside 3e38
    excess = shifted.logsumexp(dim=-1)
    logs = shifted - excess[:, None]
    entropy = -logs.exp().mul(logs).where(logs > -torch.inf, 0.0).sum(dim=-1)
    entropy = entropy.where(peak[:, 0] < torch.inf, torch.nan)
    lse = peak[:, 0] + excess.where(peak[:, 0].isfinite(), 0.0)
    values, ids = wide.sort(dim=-1, descending=True, stable=True)
    dtype = accumulate_dtype(logits)
    return lse.to(dtype), entropy.to(dtype), ids[:, :k].int(), values[:, :k].to(dtype)


def restrict(logits: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """logits [V] -> probabilities [V] fp64 at a temperature, after top-k, then top-p; all on one token if greedy."""
    wide = _readable(logits)
    ranked, order = wide.sort(descending=True, stable=True)
    probabilities = torch.zeros_like(ranked)
    if temperature <= 0 or ranked[0].isinf():
        probabilities[0] = 1
    else:
        kept = min(top_k, len(ranked)) if top_k > 0 else len(ranked)
        probabilities[:kept] = ((ranked[:kept] - ranked[0]) / temperature).softmax(dim=-1)
    if top_p < 1:
        before = probabilities.cumsum(dim=-1) - probabilities
        kept = max(1, int((before < top_p).sum()))
        probabilities[kept:] = 0
    return torch.empty_like(probabilities).index_put((order,), probabilities / probabilities.sum())


def draw(probabilities: Tensor, uniform: float) -> int:
    """The first token at which the running sum of probabilities exceeds the uniform number; one of probability > 0."""
    token = int((probabilities.cumsum(dim=-1) <= uniform).sum())
    return min(token, int(probabilities.nonzero().max()))


def sample(
    logits: Tensor, uniforms: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor
) -> tuple[Tensor, Tensor]:
    """logits [B, V], the others [B] -> tokens int32 [B] and the logarithms of their probabilities [B]."""
    rows = zip(logits, uniforms.tolist(), temperature.tolist(), top_k.tolist(), top_p.tolist(), strict=True)
    tokens, logprobs = [], []
    for row, uniform, *settings in rows:
        probabilities = restrict(row, *settings)
        token = draw(probabilities, uniform)
        tokens.append(token)
        logprobs.append(float(probabilities[token].log()))
    dtype = accumulate_dtype(logits)
    return logits.new_tensor(tokens, dtype=torch.int32), logits.new_tensor(logprobs, dtype=dtype)


def _readable(logits: Tensor) -> Tensor:
    """NaN counts as -inf."""
    wide = logits.double()
    return wide.where(~wide.isnan(), -torch.inf)
