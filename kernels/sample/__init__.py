"""Softmax statistics of logits (entropy, top k, log-sum-exp) and sampling from them, each in one pass."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from kernels import arguments, counting
from kernels.build import Functions
from kernels.sample import reference
from kernels.sample.cost import sample_cost, statistics_cost

_F32, _BF16, _I32 = torch.float32, torch.bfloat16, torch.int32
_statistics = Functions("sample", "piiippppii", {_F32: "statistics_f32", _BF16: "statistics_bf16"})
_sample = Functions("sample", "piiippfpipfppi", {_F32: "sample_f32", _BF16: "sample_bf16"})

MAX_TRITON_TOP = 32
"""Of the most likely tokens that the Triton kernel lists; the reference serves longer lists."""


class Statistics(NamedTuple):
    """What `statistics` finds in each row. The log-probability of a listed token is its logit minus `logsumexp`."""

    logsumexp: Tensor
    """fp32 [B]"""
    entropy: Tensor
    """fp32 [B], of the whole vocabulary, in nats"""
    top: Tensor
    """int32 [B, k], the most likely tokens in descending order, ties by id"""
    top_logits: Tensor
    """fp32 [B, k]"""

    @property
    def argmax(self) -> Tensor:
        """int32 [B]; of equal logits the lower id."""
        return self.top[:, 0]


def statistics(logits: Tensor, *, k: int = 1) -> Statistics:
    """logits [B, V], V >= 1 -> log-sum-exp, entropy in nats and the k most likely tokens of each row, in one pass.

    Logits of -inf, and NaN, have probability 0 and add nothing to the entropy. A row of nothing else has logsumexp
    -inf, entropy 0 and the lowest ids as its top; a row with +inf has logsumexp +inf and entropy NaN. Rows may be
    strided; their results do not depend on the batch. The entropy is accurate to about 1e-6 nats, absolutely. B = 0
    gives empty results, k outside 0 to V a ValueError. Source: GlimpRouter (card glimprouter, section 5), whose entropy
    over the top 20 is that of the softmax of `top_logits`.
    """
    rows, vocabulary = logits.shape
    stride, step = logits.stride()
    if not 0 <= k <= vocabulary or vocabulary == 0:
        raise ValueError(f"there is no top {k} of {vocabulary} logits: k is between 0 and their number, which is not 0")
    if counting.active is not None:
        counting.record("statistics", statistics_cost(rows, vocabulary, k, logits.element_size()))
    function = _statistics[logits.dtype] if logits.is_cpu else None
    if function is None or step != 1:
        if step == 1 and arguments.on_gpu(logits) and k <= MAX_TRITON_TOP:
            from kernels.sample import triton as gpu

            return Statistics(*gpu.statistics(logits, k))
        return Statistics(*reference.statistics(logits, k))
    logsumexp, entropy = logits.new_empty(rows, dtype=_F32), logits.new_empty(rows, dtype=_F32)
    top, top_logits = logits.new_empty(rows, k, dtype=_I32), logits.new_empty(rows, k, dtype=_F32)
    function(
        logits.data_ptr(),
        stride,
        rows,
        vocabulary,
        logsumexp.data_ptr(),
        entropy.data_ptr(),
        top.data_ptr(),
        top_logits.data_ptr(),
        k,
        torch.get_num_threads(),
    )
    return Statistics(logsumexp, entropy, top, top_logits)


def sample(
    logits: Tensor,
    uniforms: Tensor,
    *,
    temperature: float | Tensor = 1.0,
    top_k: int | Tensor = 0,
    top_p: float | Tensor = 1.0,
    out: Tensor | None = None,
    logprobs: Tensor | None = None,
) -> Tensor:
    """logits [B, V], uniforms fp32 [B] in [0, 1) -> one token of each row, int32 [B]. Into `out` if given.

    Settings are numbers, or tensors with one for each row (fp32 [B], top_k int32). Temperature 0 takes the largest
    logit, of equal ones the lower id. Else probabilities are softmax(logits / temperature) after top-k (0: all), then
    top-p (arXiv 1904.09751: the fewest tokens of mass >= top_p, at least one; 1: all), ties in favour of the lower id.
    The token is that of the inverse CDF by ascending id: the first whose running sum of probabilities exceeds the
    uniform number. Nothing depends on the batch, and tokens of probability 0 are never drawn. `logprobs` fp32 [B]
    receives the log-probability of the drawn token under the restricted distribution, which is what speculative
    acceptance compares (_speculative, section 3); 0 if greedy. Logits of -inf, and NaN, have probability 0; a row
    of nothing else gives token 0, one with +inf the first of these. Rows may be strided. B = 0 gives no tokens.
    A wrong shape, and a number out of range, is a ValueError; tensors of settings are not looked into: temperatures
    below 0 act as 0, top_k below 0 as 0, and top_p as if between 0 and 1.
    """
    rows, vocabulary = logits.shape
    stride, step = logits.stride()
    if vocabulary == 0 or uniforms.shape != (rows,):
        shapes = f"logits {list(logits.shape)} and uniforms {list(uniforms.shape)}"
        raise ValueError(f"{shapes} do not fit: a uniform number for each row, which has one logit at least")
    _check(rows, temperature, top_k, top_p)
    if out is None:
        out = logits.new_empty(rows, dtype=_I32)
    if counting.active is not None:
        cost = sample_cost(rows, vocabulary, logits.element_size(), logprobs=logprobs is not None)
        counting.record("sample", cost)
    function = _sample[logits.dtype] if logits.is_cpu else None
    matches = step == 1 and _writable(out, _I32) and (logprobs is None or _writable(logprobs, _F32))
    if function is None or not matches:
        settings = _each(logits, temperature, _F32), _each(logits, top_k, _I32), _each(logits, top_p, _F32)
        if matches and arguments.on_gpu(logits):
            from kernels.sample import triton as gpu

            return gpu.sample(logits, uniforms.to(_F32).contiguous(), *settings, out, logprobs)
        tokens, exact = reference.sample(logits, uniforms, *settings)
        if logprobs is not None:
            logprobs.copy_(exact)
        return out.copy_(tokens)
    draws = uniforms.to(_F32).contiguous()
    given = _Parameter.of(temperature, _F32), _Parameter.of(top_k, _I32), _Parameter.of(top_p, _F32)
    numbers = [number for parameter in given for number in (parameter.pointer, parameter.same)]
    results = out.data_ptr(), None if logprobs is None else logprobs.data_ptr()
    function(logits.data_ptr(), stride, rows, vocabulary, draws.data_ptr(), *numbers, *results, torch.get_num_threads())
    return out


class _Parameter(NamedTuple):
    """A setting as the C++ kernel takes it: one number for each row, which must stay alive, or the same for all."""

    each: Tensor | None
    same: float

    @classmethod
    def of(cls, value: float | Tensor, dtype: torch.dtype) -> _Parameter:
        return cls(_given(value, dtype), 0) if isinstance(value, Tensor) else cls(None, value)

    @property
    def pointer(self) -> int | None:
        return None if self.each is None else self.each.data_ptr()


def _check(rows: int, temperature: float | Tensor, top_k: int | Tensor, top_p: float | Tensor) -> None:
    for name, value in (("temperature", temperature), ("top_k", top_k), ("top_p", top_p)):
        if isinstance(value, Tensor):
            if value.shape != (rows,):
                raise ValueError(f"{name} is {list(value.shape)}: give a number, or one for each of {rows} rows")
        elif not (0 < value <= 1 if name == "top_p" else value >= 0):
            raise ValueError(f"{name} {value} is out of range: top_p is above 0 and at most 1, the others at least 0")


def _given(value: float | Tensor, dtype: torch.dtype) -> Tensor | None:
    """As the kernels read it, where there is one for each row."""
    return value.to(dtype).contiguous() if isinstance(value, Tensor) else None


def _each(logits: Tensor, value: float | Tensor, dtype: torch.dtype) -> Tensor:
    """One for each row in any case."""
    if isinstance(value, Tensor):
        return value.to(dtype).contiguous()
    return logits.new_full((len(logits),), value, dtype=dtype)


def _writable(x: Tensor, dtype: torch.dtype) -> bool:
    return x.dtype is dtype and x.is_contiguous()
