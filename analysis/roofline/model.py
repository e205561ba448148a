"""Analytic roofline of a decoder: the operators of one step, and the time a machine needs at least.

Step time is the sum over operators of max(FLOPs / peak, bytes / bandwidth) + launches + communication
(`methods/_roofline.md` section 3), never the maximum of the sums. It is a lower bound: what a measured step takes
beyond it is reported as unexplained. Biases, q/k norms and Gemma's second norms are left out; together they are below
0.2% of the bytes. Batch and lengths may be arrays, one value per point of a sweep: all points are computed at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from analysis.roofline.operators import (
    AttentionShape,
    Operator,
    Precision,
    activation,
    attention,
    embedding,
    experts,
    kv_append,
    latent_attention,
    linear,
    rms_norm,
    rope,
    steering,
)
from analysis.roofline.parallel import ALONE, Parallel
from analysis.roofline.shape import ModelShape
from suite.cost import DENSE, Count, MethodCost

Bound = Literal["compute", "memory", "launch", "link"]


@dataclass(frozen=True)
class Execution:
    """How a pass is executed: attention fused or not, what a method changes, on how many devices."""

    fused: bool = True
    method: MethodCost = DENSE
    parallel: Parallel = ALONE


PLAIN = Execution()


def forward(
    shape: ModelShape,
    precision: Precision,
    *,
    batch: Count,
    new: Count,
    prefix: Count = 0,
    logit_rows: int = 1,
    decoding: bool = False,
    execution: Execution = PLAIN,
) -> list[Operator]:
    """Operators of one device in a forward pass over `new` tokens per sequence after `prefix` cached ones.

    `logit_rows` is the number of rows per sequence that need logits: 1 for generation, 0 for all chunks of a prefill
    but the last, `new` when drafts are verified. `decoding` says which share of the keys the method reads.
    """
    method, parallel = execution.method, execution.parallel
    held, batch = parallel.device_shape(shape), parallel.device_batch(batch)
    tokens, packed = batch * new, precision
    if method.weight_bits is not None:
        packed = replace(precision, weight=method.weight_bits / 8, row=method.row_bytes)
    layer = AttentionShape(batch, new, prefix, held.heads, held.kv_heads, held.head_dim)
    operators = [embedding(tokens, held.hidden, precision), rms_norm(tokens, held.hidden, precision, residual=False)]
    operators += [operator * held.layers for operator in _projections(held, packed, tokens)]
    operators.append(rms_norm(tokens, held.hidden, precision, residual=True) * (2 * held.layers))
    operators += _attention(held, packed, layer, decoding, execution)
    operators += _feed_forward(held, packed, tokens, parallel.expert)
    if method.vectors:
        operators.append(steering(tokens, held.hidden, precision) * method.vectors)
    if parallel.devices > 1:
        operators += parallel.collectives(shape, precision, tokens)
    if logit_rows:
        operators += _head(shape, precision, batch * logit_rows, parallel)
    return operators


def _head(shape: ModelShape, precision: Precision, rows: Count, parallel: Parallel) -> Iterator[Operator]:
    """Logits of `rows` tokens."""
    held = parallel.device_shape(shape)
    yield linear("lm_head", rows, held.hidden, held.vocab, precision)
    if parallel.tensor > 1:
        yield parallel.gathered(shape, precision, rows)


def _any(count: Count) -> bool:
    """Whether it is anything but zero, at some point."""
    return bool(np.any(count)) if isinstance(count, np.ndarray) else bool(count)


def _projections(shape: ModelShape, precision: Precision, tokens: Count) -> Iterator[Operator]:
    """Operators of one layer's attention that do not depend on the cache's length."""
    hidden, latent = shape.hidden, shape.latent
    if latent is None:
        queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        yield linear("q_proj", tokens, hidden, queries, precision)
        yield linear("k_proj", tokens, hidden, keys, precision)
        yield linear("v_proj", tokens, hidden, keys, precision)
        rotated, attended = queries + keys, queries
    else:
        queries = shape.heads * (latent.plain + latent.rope)
        if latent.query_rank:
            yield linear("q_a_proj", tokens, hidden, latent.query_rank, precision)
        yield linear("q_proj", tokens, latent.query_rank or hidden, queries, precision)
        yield linear("kv_a_proj", tokens, hidden, shape.kv_width, precision)
        rotated, attended = (shape.heads + 1) * latent.rope, shape.heads * latent.value
    yield rope(tokens, rotated, precision)
    yield kv_append(tokens, shape.kv_width, precision)
    yield linear("o_proj", tokens, attended, hidden, precision)


def _attention(
    shape: ModelShape, precision: Precision, layer: AttentionShape, decoding: bool, execution: Execution
) -> Iterator[Operator]:
    """All layers' attention, and the reading of a method's index; a windowed layer stays as it is."""
    method = execution.method
    kept, moved = (method.kept, method.moved) if decoding else (method.prefill_kept, 1.0)
    for window, count in shape.layers_by_window().items():
        one = replace(layer, kept=kept, moved=moved) if window is None else replace(layer, window=window)
        for operator in _core(shape, one, precision, execution.fused):
            yield operator * count
    if decoding and (_any(method.index_bytes) or _any(method.index_flops)):
        rows = layer.batch / execution.parallel.tensor
        work, index = rows * method.index_flops, rows * method.index_bytes
        calls: Count = np.where(work + index > 0, shape.layers, 0)[()]
        yield Operator("index_read", calls, work, kv_bytes=index)


def _core(shape: ModelShape, layer: AttentionShape, precision: Precision, fused: bool) -> list[Operator]:
    if (latent := shape.latent) is None:
        return attention(layer, precision, fused=fused)
    dims = (latent.rank, latent.rope, latent.plain, latent.value)
    return latent_attention(layer, dims, precision, fused=fused)


def _feed_forward(shape: ModelShape, precision: Precision, tokens: Count, devices: int) -> Iterator[Operator]:
    """The MLPs of all layers, dense ones and those of experts."""
    if shape.dense_layers:
        for operator in _mlp(shape, precision, tokens, shape.intermediate):
            yield operator * shape.dense_layers
    if (mixture := shape.experts) is None:
        return
    dims = (shape.hidden, mixture.intermediate, shape.matrices, mixture.count, mixture.per_token)
    layer = [
        linear("router", tokens, shape.hidden, mixture.count, precision),
        experts("experts", tokens, dims, precision, devices),
        activation(tokens * mixture.per_token, mixture.intermediate, precision, gated=shape.gated),
    ]
    if mixture.shared:
        layer += _mlp(shape, precision, tokens, mixture.shared, "shared_")
    for operator in layer:
        yield operator * mixture.layers


def _mlp(shape: ModelShape, precision: Precision, tokens: Count, width: int, name: str = "") -> Iterator[Operator]:
    if shape.gated:
        yield linear(f"{name}gate_proj", tokens, shape.hidden, width, precision)
    yield linear(f"{name}up_proj", tokens, shape.hidden, width, precision)
    yield activation(tokens, width, precision, gated=shape.gated)
    yield linear(f"{name}down_proj", tokens, width, shape.hidden, precision)


def prefill(
    shape: ModelShape,
    precision: Precision,
    *,
    batch: Count,
    tokens: Count,
    prefix: Count = 0,
    execution: Execution = PLAIN,
) -> list[Operator]:
    """A whole prompt in one pass, after a shared `prefix` already cached; logits of the last row only."""
    return forward(shape, precision, batch=batch, new=tokens, prefix=prefix, execution=execution)


def chunked_prefill(
    shape: ModelShape,
    precision: Precision,
    *,
    batch: Count,
    tokens: Count,
    chunk: int,
    prefix: int = 0,
    execution: Execution = PLAIN,
) -> list[Operator]:
    """A prompt in chunks of at most `chunk` tokens: the weights are read once per chunk, logits come from the last."""
    operators: list[Operator] = []
    for start in range(0, int(np.max(tokens)), chunk):
        new: Count = np.clip(tokens - start, 0, chunk)
        reads: Count = np.where(new > 0, 1.0, 0.0)[()]  # a prompt that has ended reads nothing
        passed = forward(
            shape, precision, batch=batch, new=new, prefix=prefix + start, logit_rows=0, execution=execution
        )
        operators += [operator * reads for operator in passed]
    rows = execution.parallel.device_batch(batch)
    return [*operators, *_head(shape, precision, rows, execution.parallel)]


def decode(
    shape: ModelShape, precision: Precision, *, batch: Count, context: Count, execution: Execution = PLAIN
) -> list[Operator]:
    """One decode step that attends to `context` tokens, its own included."""
    return verify(shape, precision, batch=batch, context=context, drafted=0, execution=execution)


def verify(
    shape: ModelShape,
    precision: Precision,
    *,
    batch: Count,
    context: Count,
    drafted: int,
    execution: Execution = PLAIN,
) -> list[Operator]:
    """A decode step that also judges `drafted` tokens behind its own: all of them need logits.

    A tree counts as a chain of as many tokens, which attends to a little more.
    """
    return forward(
        shape, precision, batch=batch * execution.method.chains, new=1 + drafted, prefix=context - 1,
        logit_rows=1 + drafted, decoding=True, execution=execution,
    )  # fmt: skip


@dataclass(frozen=True)
class Machine:
    """Ceilings of one machine: FLOP/s for the data type in use, bytes/s of reading, seconds per launch.

    A link carries bytes/s in one direction and takes `link_latency_s` per message; it is None where none is known.
    """

    name: str
    flops_per_s: float
    bytes_per_s: float
    launch_s: float = 0.0
    link_bytes_per_s: float | None = None
    link_latency_s: float = 0.0

    @property
    def ridge(self) -> float:
        """Arithmetic intensity in FLOP/byte at which memory and compute take the same time."""
        return self.flops_per_s / self.bytes_per_s


@dataclass(slots=True)
class OperatorTime:
    """Where one operator lies on the time-based roofline; `seconds` covers all its calls."""

    operator: Operator
    compute_s: Count
    memory_s: Count
    launch_s: Count
    link_s: Count = 0.0

    @property
    def seconds(self) -> Count:
        """max(compute, memory) + launches + communication."""
        return np.maximum(self.compute_s, self.memory_s) + self.launch_s + self.link_s

    @property
    def bound(self) -> Bound:
        """What takes the largest part of the time, at a single point."""
        parts: dict[Bound, Count] = {
            "memory": self.memory_s, "compute": self.compute_s, "launch": self.launch_s, "link": self.link_s
        }  # fmt: skip
        return max(parts, key=lambda part: float(parts[part]))


def operator_times(operators: Iterable[Operator], machine: Machine) -> list[OperatorTime]:
    """Every operator's place on a machine's roofline; a machine without a link talks for free."""
    link = machine.link_bytes_per_s or float("inf")
    return [
        OperatorTime(
            operator,
            operator.flops / machine.flops_per_s,
            operator.bytes / machine.bytes_per_s,
            operator.calls * machine.launch_s,
            operator.link_bytes / link + operator.link_steps * machine.link_latency_s,
        )
        for operator in operators
    ]


def step_seconds(operators: Iterable[Operator], machine: Machine) -> Count:
    """The least time of a step on one stream: operators run one after another."""
    return sum((time.seconds for time in operator_times(operators, machine)), 0.0)


def total_flops(operators: Sequence[Operator]) -> Count:
    """FLOPs of a step."""
    return sum((operator.flops for operator in operators), 0.0)


def total_bytes(operators: Sequence[Operator]) -> Count:
    """Compulsory bytes of a step."""
    return sum((operator.bytes for operator in operators), 0.0)


def speedup_bound(weight_bytes: float, full_kv_bytes: float, retention: float) -> float:
    """Best decode speed-up of reading `retention` of the cache: (W + F) / (W + r F) (`_kv_retention.md` section 3)."""
    return (weight_bytes + full_kv_bytes) / (weight_bytes + retention * full_kv_bytes)
