"""What the roofline says of an engine's batching before anything is measured: where a search may start."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from analysis.roofline.model import Machine, chunked_prefill, decode, step_seconds
from analysis.roofline.operators import Precision
from analysis.roofline.shape import ModelShape


@dataclass(frozen=True)
class Traffic:
    """So many prompts at once, all of `input_tokens`, each answered with `output_tokens`."""

    prompts: int
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True)
class Batching:
    """vLLM's two limits: sequences that run together, and tokens of one pass."""

    max_num_seqs: int
    max_num_batched_tokens: int


def serving_seconds(
    shape: ModelShape, precision: Precision, machine: Machine, traffic: Traffic, batching: Batching
) -> float:
    """The least time for all prompts, group by group: a group is read in passes of at most the limit, then decoded.

    Real schedulers mix the two phases; the bound counts the same weights, cache and FLOPs.
    """
    full, rest = divmod(traffic.prompts, batching.max_num_seqs)
    middle = traffic.input_tokens + max(1, traffic.output_tokens // 2)  # a step's cost is linear in its context
    seconds = 0.0
    for groups, batch in ((full, batching.max_num_seqs), (1, rest)):
        if groups and batch:
            chunk = max(1, batching.max_num_batched_tokens // batch)
            read = chunked_prefill(shape, precision, batch=batch, tokens=traffic.input_tokens, chunk=chunk)
            step = decode(shape, precision, batch=batch, context=middle)
            decoded = (traffic.output_tokens - 1) * step_seconds(step, machine)
            seconds += groups * float(step_seconds(read, machine) + decoded)
    return seconds


def suggested(
    shape: ModelShape, precision: Precision, machine: Machine, traffic: Traffic, highest: Batching
) -> Batching:
    """The fastest batching among powers of two; of equals the smallest limits, which need least memory."""
    candidates = [
        Batching(sequences, tokens)
        for sequences, tokens in product(
            _powers(1, min(highest.max_num_seqs, 2 * traffic.prompts - 1)), _powers(128, highest.max_num_batched_tokens)
        )
        if tokens >= sequences
    ]
    return min(
        candidates,
        key=lambda one: (
            serving_seconds(shape, precision, machine, traffic, one), one.max_num_seqs, one.max_num_batched_tokens
        ),
    )  # fmt: skip


def _powers(low: int, high: int) -> Iterator[int]:
    while low <= high:
        yield low
        low *= 2
