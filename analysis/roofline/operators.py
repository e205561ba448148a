"""Work of single operators: FLOPs (a multiply-add is 2) and compulsory bytes (each tensor moved once).

Formulas: `methods/_roofline.md` section 2. Symbols: T tokens of this step over the batch, B batch, q new tokens per
sequence, S keys in the cache after them, n query heads, k KV heads, d head dim; w, a, c bytes per weight, activation
and KV element. Batch and lengths may be arrays, one value per point of a sweep: the work then is one too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from suite.cost import Count


@dataclass(frozen=True)
class Precision:
    """Bytes per element; `row` is what an output row of a weight has beside them: a table, or a scale.

    Scales of groups belong in `weight`: 4-bit weights in groups of 128 with 16-bit scales are 4.125 bits. Weights and
    keys narrower than activations are widened before they are used, at two FLOPs per element.
    """

    weight: float = 2.0
    activation: float = 2.0
    kv: float = 2.0
    row: float = 0.0

    @classmethod
    def of_bits(cls, weight: float, kv: float, activation: float) -> Precision:
        """From bits per element, in the order of the command line's `--bits W/KV/A`."""
        return cls(weight / 8, activation / 8, kv / 8)

    def widening(self, stored: float) -> float:
        """FLOPs to widen one element stored in this many bytes."""
        return 2.0 * (stored < self.activation)


@dataclass(slots=True)
class Operator:
    """`calls` equal launches of one operator; FLOPs and bytes are their sum.

    A collective operation sends `link_bytes` from each device, in `link_steps` messages one after the other.
    """  # not frozen, which would take half the time of a single point

    name: str
    calls: Count
    flops: Count
    weight_bytes: Count = 0.0
    activation_bytes: Count = 0.0
    kv_bytes: Count = 0.0
    link_bytes: Count = 0.0
    link_steps: Count = 0

    @property
    def bytes(self) -> Count:
        """All bytes moved between memory and processor."""
        return self.weight_bytes + self.activation_bytes + self.kv_bytes

    @property
    def intensity(self) -> Count:
        """Arithmetic intensity in FLOPs per byte."""
        flops, moved = np.broadcast_arrays(1.0 * self.flops, self.bytes)
        found: Count = np.divide(flops, moved, where=moved > 0, out=np.zeros(moved.shape))[()]
        return found

    def __mul__(self, times: Count) -> Operator:
        return Operator(
            self.name,
            self.calls * times,
            self.flops * times,
            self.weight_bytes * times,
            self.activation_bytes * times,
            self.kv_bytes * times,
            self.link_bytes * times,
            self.link_steps * times,
        )


def linear(name: str, tokens: Count, inputs: float, outputs: float, precision: Precision) -> Operator:
    """A matrix product with a weight of shape [outputs, inputs]."""
    weights = 1.0 * inputs * outputs
    return Operator(
        name,
        1,
        (2.0 * tokens + precision.widening(precision.weight)) * weights,
        weight_bytes=weights * precision.weight + outputs * precision.row,
        activation_bytes=tokens * (inputs + outputs) * precision.activation,
    )


def experts(
    name: str, tokens: Count, shape: tuple[int, int, int, int, int], precision: Precision, devices: int = 1
) -> Operator:
    """The MLPs of `per_token` of `count` experts, shape (hidden, width, matrices, count, per_token), routed evenly.

    Of E experts, T tokens that choose k each reach E (1 - (1 - k/E)^T); only those are read. With expert parallelism
    the tokens of all `devices` reach the share of the experts that one of them holds.
    """
    hidden, width, matrices, count, per_token = shape
    hit = count * (1 - (1 - per_token / count) ** (1.0 * tokens * devices)) / devices
    weights, routed = 1.0 * matrices * hidden * width, 1.0 * tokens * per_token
    return Operator(
        name,
        matrices,
        (2 * routed + hit * precision.widening(precision.weight)) * weights,
        weight_bytes=hit * (weights * precision.weight + ((matrices - 1) * width + hidden) * precision.row),
        activation_bytes=routed * matrices * (hidden + width) * precision.activation,
    )


def embedding(tokens: Count, hidden: int, precision: Precision) -> Operator:
    """Look up one row per token and write it."""
    row = tokens * hidden
    return Operator(
        "embedding", 1, 0.0, weight_bytes=row * precision.weight, activation_bytes=row * precision.activation
    )


def rms_norm(tokens: Count, hidden: int, precision: Precision, *, residual: bool) -> Operator:
    """RMSNorm; with `residual` it first adds the block's output to the stream and writes both."""
    tensors, flops = (4, 5.0) if residual else (2, 4.0)
    return Operator(
        "residual_rms_norm" if residual else "rms_norm",
        1,
        flops * tokens * hidden,
        weight_bytes=hidden * precision.weight,
        activation_bytes=tensors * tokens * hidden * precision.activation,
    )


def activation(tokens: Count, width: float, precision: Precision, *, gated: bool = True) -> Operator:
    """silu(gate) * up, elementwise; or the activation function of an MLP without a gate."""
    name, flops, tensors = ("swiglu", 5.0, 3) if gated else ("activation", 1.0, 2)
    elements = tokens * width
    return Operator(name, 1, flops * elements, activation_bytes=tensors * elements * precision.activation)


def rope(tokens: Count, width: float, precision: Precision) -> Operator:
    """Rotate `width` elements of each token's queries and keys in place."""
    elements = tokens * width
    return Operator("rope", 1, 6.0 * elements, activation_bytes=2 * elements * precision.activation)


def kv_append(tokens: Count, width: float, precision: Precision) -> Operator:
    """Read `width` elements of each token for the cache, and write them there in its own precision."""
    elements = tokens * width
    return Operator(
        "kv_append", 1, 0.0, activation_bytes=elements * precision.activation, kv_bytes=elements * precision.kv
    )


def steering(tokens: Count, hidden: int, precision: Precision) -> Operator:
    """Add one vector to the residual stream."""
    elements = tokens * hidden
    return Operator(
        "steering", 1, 1.0 * elements, hidden * precision.weight, activation_bytes=2 * elements * precision.activation
    )


def causal_pairs(new: Count, prefix: Count, window: int | None = None) -> Count:
    """(query, key) pairs of `new` queries after `prefix` cached tokens: C*R + C(C+1)/2, fewer under a window.

    A window of w tokens counts the query's own position, as in `transformers`.
    """
    if window is None:
        return new * prefix + new * (new + 1) // 2
    growing = np.minimum(new, np.maximum(0, window - prefix))
    return causal_pairs(growing, prefix) + (new - growing) * window


@dataclass(frozen=True)
class AttentionShape:
    """One layer's attention: q new tokens per sequence after `prefix` cached ones.

    Each query reads the share `kept` of the keys; together they read the share `moved`.
    """

    batch: Count
    new: Count
    prefix: Count
    heads: int
    kv_heads: int
    head_dim: int
    window: int | None = None
    kept: Count = 1.0
    moved: Count = 1.0

    @property
    def keys(self) -> Count:
        """Cached tokens that any of the new tokens may see."""
        total = self.prefix + self.new
        return total if self.window is None else np.minimum(total, self.window + self.new - 1)

    @property
    def pairs(self) -> Count:
        """(query, key) pairs of one sequence and head."""
        return causal_pairs(self.new, self.prefix, self.window) * self.kept


def attention(shape: AttentionShape, precision: Precision, *, fused: bool = True) -> list[Operator]:
    """Causal attention with GQA: K and V move once per KV head; unfused, the scores move four times more."""
    queries = shape.batch * shape.new * shape.heads * shape.head_dim
    cache = shape.batch * shape.keys * shape.moved * shape.kv_heads * shape.head_dim
    core = Operator(
        "attention",
        1,
        4.0 * shape.batch * shape.heads * shape.head_dim * shape.pairs + 2 * cache * precision.widening(precision.kv),
        activation_bytes=2 * queries * precision.activation,
        kv_bytes=2 * cache * precision.kv,
    )
    return [core] if fused else _unfused(core, shape, precision)


def _unfused(core: Operator, shape: AttentionShape, precision: Precision) -> list[Operator]:
    """Scores are written, read and written by the softmax, and read: all of them, masked ones too."""
    scores = shape.batch * shape.heads * shape.new * shape.keys * shape.kept
    moved = 2 * scores * precision.activation
    return [
        replace(core, activation_bytes=core.activation_bytes + moved),
        Operator("softmax", 1, 5.0 * scores, activation_bytes=moved),
    ]


def latent_attention(
    shape: AttentionShape, dims: tuple[int, int, int, int], precision: Precision, *, fused: bool = True
) -> list[Operator]:
    """Multi-head latent attention, dims (rank r, rotated e, plain p, value v): the cheaper of its two forms in FLOPs.

    Absorbed (decode), queries and outputs pass through `kv_b_proj` and attention works on the latents, r + e wide for
    keys and r for values. Expanded (prefill), keys and values of all heads are made from the latents first.
    """
    rank, rotated, plain, value = dims
    B, n, new, keys, pairs = shape.batch, shape.heads, shape.new, shape.keys * shape.moved, shape.pairs
    a, unit = precision.activation, rank * (plain + value)
    absorbed = 2.0 * pairs * (2 * rank + rotated) + 2.0 * new * unit
    expanded = 2.0 * pairs * (plain + rotated + value) + 2.0 * keys * unit
    expands = expanded < absorbed
    rows = np.where(expands, keys, new)[()]
    through = np.where(expands, plain + value, 2 * rank + plain + value)[()]
    query = np.where(expands, plain + rotated + value, 2 * rank + rotated)[()]
    remade = np.where(expands, B * keys * n * (plain + rotated + value) * a, 0.0)[()]
    cache = B * keys * (rank + rotated)
    core = Operator(
        "attention",
        1,
        B * n * (np.minimum(absorbed, expanded) - 2.0 * rows * unit) + cache * precision.widening(precision.kv),
        activation_bytes=B * new * n * query * a + remade,
        kv_bytes=cache * precision.kv,
    )
    projection = Operator(
        "kv_b_proj",
        1,
        (2.0 * B * rows + precision.widening(precision.weight)) * n * unit,
        weight_bytes=n * (unit * precision.weight + (plain + value) * precision.row),
        activation_bytes=B * rows * n * through * a,
    )
    return [projection, *([core] if fused else _unfused(core, shape, precision))]
