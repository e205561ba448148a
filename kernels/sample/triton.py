"""Softmax statistics and sampling on the GPU."""

# No `from __future__ import annotations`: Triton reads the annotations.
import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.jit import Variant, jit, variant

BLOCK = 1024
PART = 4096  # logits of a program of part_kernel
PART_WARPS = 8
SAMPLE_WARPS = 16  # fewer would not hold a block's sums above sixteen steps in registers

NONE = tl.constexpr(float("-inf"))
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
FAR = tl.constexpr(2147483647)


@jit
def load_logits(row: tl.tensor, i: tl.tensor, stop: tl.tensor) -> tl.tensor:
    """fp32; NaN, and what is behind the end, as -inf."""
    x = tl.load(row + i, i < stop, NONE).to(tl.float32)
    return tl.where(x == x, x, NONE)


@jit
def exponents(x: tl.tensor, peak: tl.tensor, factor: tl.tensor) -> tl.tensor:
    """(x - peak) factor, in units of log2; finite, so that 0 times it is 0."""
    y = (x - peak) * factor
    return tl.where(y > -1000.0, y, -1000.0)


@jit
def first_largest(x: tl.tensor, ids: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """The largest x and, of those that equal it, the lowest id."""
    peak = tl.max(x, 0)
    return peak, tl.min(tl.where(x == peak, ids, FAR), 0)


@jit
def part_kernel(
    logits: tl.tensor,
    stride: tl.tensor,
    vocabulary: tl.tensor,
    sums: tl.tensor,
    ids: tl.tensor,
    values: tl.tensor,
    K: tl.constexpr,
    PART: tl.constexpr,
) -> None:
    """Program (row, part): peak, sum and weighted sum of a part, sums [B, parts, 3], and its K largest logits."""
    n, part, parts = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.num_programs(1)
    i = part * PART + tl.arange(0, PART)
    x = load_logits(logits + n * stride, i, vocabulary)
    peak = tl.max(x, 0)
    y = exponents(x, peak, LOG2E)
    e = tl.exp2(y)
    place = n * parts + part
    tl.store(sums + place * 3, peak)
    tl.store(sums + place * 3 + 1, tl.sum(e, 0))
    tl.store(sums + place * 3 + 2, tl.sum(y * e, 0))
    i = tl.where(i < vocabulary, i, FAR)
    for k in range(K):
        value, found = first_largest(x, i)
        tl.store(ids + place * K + k, found)
        tl.store(values + place * K + k, value)
        x = tl.where(i == found, NONE, x)
        i = tl.where(i == found, FAR, i)


@jit
def merge_kernel(
    sums: tl.tensor,
    part_ids: tl.tensor,
    part_values: tl.tensor,
    logsumexp: tl.tensor,
    entropy: tl.tensor,
    top: tl.tensor,
    top_logits: tl.tensor,
    parts: tl.tensor,
    K: tl.constexpr,
    PARTS: tl.constexpr,
    CANDIDATES: tl.constexpr,
) -> None:
    """Program (row): the parts together; PARTS >= parts, CANDIDATES >= parts K."""
    n, p = tl.program_id(0).to(tl.int64), tl.arange(0, PARTS)
    row = sums + (n * parts + p) * 3
    peaks = tl.load(row, p < parts, NONE)
    peak = tl.max(peaks, 0)
    shift = exponents(peaks, peak, LOG2E)
    factor = tl.exp2(shift)
    part_sum = tl.load(row + 1, p < parts, 0.0)
    total = tl.sum(factor * part_sum, 0)
    weighted = tl.sum(factor * (tl.load(row + 2, p < parts, 0.0) + shift * part_sum), 0)
    infinite = (peak == NONE) | (peak == -NONE)
    divisor = tl.where(infinite, 1.0, total)
    spread = tl.where(peak == -NONE, float("nan"), tl.log(divisor) - weighted / divisor * LN2)
    tl.store(logsumexp + n, tl.where(infinite, peak, peak + tl.log(divisor)))
    tl.store(entropy + n, tl.where(peak == NONE, 0.0, spread))
    c = tl.arange(0, CANDIDATES)
    ids = tl.load(part_ids + n * parts * K + c, c < parts * K, FAR)
    values = tl.load(part_values + n * parts * K + c, c < parts * K, NONE)
    for k in range(K):
        value, found = first_largest(values, ids)
        tl.store(top + n * K + k, found)
        tl.store(top_logits + n * K + k, value)
        values = tl.where(ids == found, NONE, values)
        ids = tl.where(ids == found, FAR, ids)


@jit
def largest(row: tl.tensor, vocabulary: tl.tensor, BLOCK: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """The largest logit of a row and its lowest id; 0 if all are -inf."""
    i = tl.arange(0, BLOCK)
    best, ids = tl.full((BLOCK,), NONE, tl.float32), i
    for start in range(0, vocabulary, BLOCK):
        x = load_logits(row, start + i, vocabulary)
        ids = tl.where(x > best, start + i, ids)
        best = tl.maximum(x, best)
    peak, lowest = first_largest(best, ids)
    return peak, lowest


@jit
def load_weighted(
    row: tl.tensor,
    i: tl.tensor,
    vocabulary: tl.tensor,
    peak: tl.tensor,
    factor: tl.tensor,
    BITS: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Weights 2^((x - peak) factor), 1 for all but -inf if the factor is 0, and integers in the order of the logits."""
    x = load_logits(row, i, vocabulary)
    bits = (x + 0.0).to(tl.int32, bitcast=True)  # + 0.0: -0 equals 0
    return tl.exp2(exponents(x, peak, factor)), (bits ^ ((bits >> 31) & 0x7FFFFFFF)) >> (32 - BITS)


@jit
def before_cut(weight: tl.tensor, key: tl.tensor, cut: tl.tensor, share: tl.tensor) -> tl.tensor:
    """The weight of a token whose key is above the cut, a share of it if the key equals the cut, else 0."""
    return tl.where(key > cut, weight, tl.where(key == cut, weight * share, 0.0))


@jit
def find_cut(
    row: tl.tensor,
    vocabulary: tl.tensor,
    peak: tl.tensor,
    factor: tl.tensor,
    cut: tl.tensor,
    share: tl.tensor,
    target: tl.tensor,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """The largest key such that weights of at least that key add up to `target`, found four bits at a time."""
    i, digits = tl.arange(0, BLOCK), tl.arange(0, 16)
    found = tl.full((), -(1 << (BITS - 1)), tl.int32)
    for done in range(0, BITS, 4):
        steps = found + (digits << (BITS - 4 - done))
        sums = tl.zeros((BLOCK, 16), tl.float32)
        for start in range(0, vocabulary, BLOCK):
            e, key = load_weighted(row, start + i, vocabulary, peak, factor, BITS)
            e = before_cut(e, key, cut, share)
            sums += tl.where(key[:, None] >= steps[None, :], e[:, None], 0.0)
        found += tl.max(tl.where(tl.sum(sums, 0) >= target, digits, 0), 0) << (BITS - 4 - done)
    return found


@jit
def ties_at(
    row: tl.tensor,
    vocabulary: tl.tensor,
    peak: tl.tensor,
    factor: tl.tensor,
    cut: tl.tensor,
    share: tl.tensor,
    found: tl.tensor,
    target: tl.tensor,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """How many tokens with the key `found` reach the target, at least one, and what share of all these they are."""
    i = tl.arange(0, BLOCK)
    above, number, weight = tl.zeros((BLOCK,), tl.float32), tl.zeros((BLOCK,), tl.float32), tl.zeros((), tl.float32)
    for start in range(0, vocabulary, BLOCK):
        e, key = load_weighted(row, start + i, vocabulary, peak, factor, BITS)
        above += tl.where(key > found, before_cut(e, key, cut, share), 0.0)
        tied = (key == found) & (start + i < vocabulary)
        number += tied.to(tl.float32)
        weight = tl.maximum(weight, tl.max(tl.where(tied, e, 0.0), 0))
    tied_number = tl.sum(number, 0)
    wanted = tl.ceil((target - tl.sum(above, 0)) / tl.where(weight > 0, weight, 1.0))
    ties = tl.where(weight > 0, tl.minimum(tl.maximum(wanted, 1.0), tied_number), tied_number)
    return ties, ties / tl.maximum(tied_number, 1.0)


@jit
def total_weight(
    row: tl.tensor,
    vocabulary: tl.tensor,
    peak: tl.tensor,
    factor: tl.tensor,
    cut: tl.tensor,
    share: tl.tensor,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """Of all tokens before the cut."""
    sums = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, vocabulary, BLOCK):
        e, key = load_weighted(row, start + tl.arange(0, BLOCK), vocabulary, peak, factor, BITS)
        sums += before_cut(e, key, cut, share)
    return tl.sum(sums, 0)


@jit
def draw(
    row: tl.tensor,
    vocabulary: tl.tensor,
    peak: tl.tensor,
    factor: tl.tensor,
    cut: tl.tensor,
    ties: tl.tensor,
    left: tl.tensor,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> tl.tensor:
    """The first token before the cut at which the running sum of weights exceeds `left`, or the last."""
    found, last = tl.full((), FAR, tl.int32), tl.zeros((), tl.int32)
    running, seen = tl.zeros((), tl.float32), tl.zeros((), tl.float32)
    for start in range(0, vocabulary, BLOCK):
        i = start + tl.arange(0, BLOCK)
        e, key = load_weighted(row, i, vocabulary, peak, factor, BITS)
        tied = (key == cut).to(tl.float32)
        kept = (key > cut) | ((key == cut) & (seen + tl.cumsum(tied, 0) <= ties))
        e = tl.where(kept, e, 0.0)
        exceeds = (running + tl.cumsum(e, 0) > left) & (e > 0)
        found = tl.minimum(found, tl.min(tl.where(exceeds, i, FAR), 0))
        last = tl.maximum(last, tl.max(tl.where(e > 0, i, 0), 0))
        running += tl.sum(e, 0)
        seen += tl.sum(tied, 0)
    return tl.where(found < FAR, found, last)


@jit
def sample_kernel(
    logits: tl.tensor,
    stride: tl.tensor,
    uniforms: tl.tensor,
    temperatures: tl.tensor,
    top_ks: tl.tensor,
    top_ps: tl.tensor,
    out: tl.tensor,
    logprobs: tl.tensor,
    vocabulary: tl.tensor,
    LOGPROBS: tl.constexpr,
    BITS: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """Program (row). BITS of a logit: those of bf16 are settled in half as many passes."""
    n = tl.program_id(0).to(tl.int64)
    row = logits + n * stride
    temperature, top_k, top_p = tl.load(temperatures + n), tl.load(top_ks + n), tl.load(top_ps + n)
    peak, token = largest(row, vocabulary, BLOCK)
    logprob = 0.0
    if (temperature > 0) & (peak > NONE) & (peak < -NONE):
        factor = tl.minimum(tl.full((), LOG2E, tl.float32) / temperature, 3.4028234663852886e38)
        cut, ties, share = tl.full((), -(1 << (BITS - 1)), tl.int32), 0.0, 0.0
        if (top_k > 0) & (top_k < vocabulary):
            k = top_k.to(tl.float32)
            found = find_cut(row, vocabulary, peak, 0.0, cut, share, k, BITS, BLOCK)
            ties, share = ties_at(row, vocabulary, peak, 0.0, cut, share, found, k, BITS, BLOCK)
            cut = found
        total = total_weight(row, vocabulary, peak, factor, cut, share, BITS, BLOCK)
        if top_p < 1:
            target = tl.maximum(top_p, 1e-37) * total
            found = find_cut(row, vocabulary, peak, factor, cut, share, target, BITS, BLOCK)
            fewer, part = ties_at(row, vocabulary, peak, factor, cut, share, found, target, BITS, BLOCK)
            # Tokens of the same key as the last of the top k: those that are not among these stay out.
            within = (found == cut) & (fewer > ties)
            ties, share = tl.where(within, ties, fewer), tl.where(within, share, part)
            cut = found
            total = total_weight(row, vocabulary, peak, factor, cut, share, BITS, BLOCK)
        token = draw(row, vocabulary, peak, factor, cut, ties, tl.load(uniforms + n) * total, BITS, BLOCK)
        logprob = (tl.load(row + token).to(tl.float32) - peak) * factor * LN2 - tl.log(total)
    tl.store(out + n, token)
    if LOGPROBS:
        tl.store(logprobs + n, logprob)


def statistics(logits: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The contract of `kernels.sample.statistics`."""
    rows, vocabulary = logits.shape
    parts = triton.cdiv(vocabulary, PART)
    logsumexp, entropy = logits.new_empty(2, rows, dtype=torch.float32)
    top, top_logits = _list(logits, rows, k)
    if rows:
        sums = logits.new_empty(rows, parts, 3, dtype=torch.float32)
        part_top = _list(logits, rows, parts, k)
        part_kernel[rows, parts](
            logits, logits.stride(0), vocabulary, sums, *part_top, K=k, PART=PART, num_warps=PART_WARPS
        )
        merge_kernel[(rows,)](
            sums,
            *part_top,
            logsumexp,
            entropy,
            top,
            top_logits,
            parts,
            K=k,
            PARTS=triton.next_power_of_2(parts),
            CANDIDATES=triton.next_power_of_2(max(parts * k, 1)),
        )
    return logsumexp, entropy, top, top_logits


def _list(logits: Tensor, *shape: int) -> tuple[Tensor, Tensor]:
    return logits.new_empty(shape, dtype=torch.int32), logits.new_empty(shape, dtype=torch.float32)


def sample(
    logits: Tensor,
    uniforms: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    out: Tensor,
    logprobs: Tensor | None,
) -> Tensor:
    """The contract of `kernels.sample.sample`, into `out`; settings are those of each row."""
    rows, vocabulary = logits.shape
    if rows:
        sample_kernel[(rows,)](
            logits,
            logits.stride(0),
            uniforms,
            temperature,
            top_k,
            top_p,
            out,
            logprobs,
            vocabulary,
            LOGPROBS=logprobs is not None,
            BITS=8 * logits.element_size(),
            BLOCK=BLOCK,
            num_warps=SAMPLE_WARPS,
        )
    return out


def variants() -> list[Variant]:
    """What ahead-of-time compilation should cover: the vocabulary of SmolLM2, 49152 tokens, 12 parts of it."""
    part, merge = "*bf16 i32 i32 *fp32 *i32 *fp32", "*fp32 *i32 *fp32 *fp32 *fp32 *i32 *fp32 i32"
    made = []
    for k, candidates in ((1, 16), (20, 256), (32, 512)):
        options = {"K": k, "PARTS": 16, "CANDIDATES": candidates}
        made += [
            variant(f"statistics-parts-{k}", part_kernel, part, K=k, PART=PART, num_warps=PART_WARPS),
            variant(f"statistics-merge-{k}", merge_kernel, merge, **options),
        ]
    types = "i32 *fp32 *fp32 *i32 *fp32 *i32 *fp32 i32"
    for name, bits in (("bf16", 16), ("fp32", 32)):
        options = {"LOGPROBS": 1, "BITS": bits, "BLOCK": BLOCK}
        made.append(variant(f"sample-{name}", sample_kernel, f"*{name} {types}", num_warps=SAMPLE_WARPS, **options))
    return made
