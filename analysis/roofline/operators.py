"""Work of single operators: FLOPs (a multiply-add is 2) and compulsory bytes (each tensor moved once).

Formulas: `methods/_roofline.md` section 2. Symbols: T tokens of this step over the batch, B batch, q new tokens per
sequence, S keys in the cache after them, n query heads, k KV heads, d head dim; w, a, c bytes per weight, activation
and KV element.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Precision:
    """Bytes per element. Scales belong in: 4-bit weights in groups of 128 with 16-bit scales are 4.125 bits."""

    weight: float = 2.0
    activation: float = 2.0
    kv: float = 2.0

    @classmethod
    def of_bits(cls, weight: float, kv: float, activation: float) -> Precision:
        """From bits per element, in the order of the command line's `--bits W/KV/A`."""
        return cls(weight / 8, activation / 8, kv / 8)


@dataclass(frozen=True)
class Operator:
    """`calls` equal launches of one operator; FLOPs and bytes are their sum."""

    name: str
    calls: int
    flops: float
    weight_bytes: float = 0.0
    activation_bytes: float = 0.0
    kv_bytes: float = 0.0

    @property
    def bytes(self) -> float:
        """All bytes moved."""
        return self.weight_bytes + self.activation_bytes + self.kv_bytes

    @property
    def intensity(self) -> float:
        """Arithmetic intensity in FLOPs per byte."""
        return self.flops / self.bytes if self.bytes else 0.0

    def __mul__(self, times: int) -> Operator:
        return replace(
            self,
            calls=self.calls * times,
            flops=self.flops * times,
            weight_bytes=self.weight_bytes * times,
            activation_bytes=self.activation_bytes * times,
            kv_bytes=self.kv_bytes * times,
        )


def linear(name: str, tokens: int, inputs: int, outputs: int, precision: Precision) -> Operator:
    """A matrix product with a weight of shape [outputs, inputs]."""
    return Operator(
        name,
        1,
        2.0 * tokens * inputs * outputs,
        weight_bytes=inputs * outputs * precision.weight,
        activation_bytes=tokens * (inputs + outputs) * precision.activation,
    )


def embedding(tokens: int, hidden: int, precision: Precision) -> Operator:
    """Look up one row per token and write it."""
    row = tokens * hidden
    return Operator(
        "embedding", 1, 0.0, weight_bytes=row * precision.weight, activation_bytes=row * precision.activation
    )


def rms_norm(tokens: int, hidden: int, precision: Precision, *, residual: bool) -> Operator:
    """RMSNorm; with `residual` it first adds the block's output to the stream and writes both."""
    tensors, flops = (4, 5.0) if residual else (2, 4.0)
    return Operator(
        "residual_rms_norm" if residual else "rms_norm",
        1,
        flops * tokens * hidden,
        weight_bytes=hidden * precision.weight,
        activation_bytes=tensors * tokens * hidden * precision.activation,
    )


def swiglu(tokens: int, intermediate: int, precision: Precision) -> Operator:
    """silu(gate) * up, elementwise."""
    width = tokens * intermediate
    return Operator("swiglu", 1, 5.0 * width, activation_bytes=3 * width * precision.activation)


def rope(tokens: int, heads: int, kv_heads: int, head_dim: int, precision: Precision) -> Operator:
    """Rotate queries and keys in place."""
    elements = tokens * (heads + kv_heads) * head_dim
    return Operator("rope", 1, 6.0 * elements, activation_bytes=2 * elements * precision.activation)


def kv_append(tokens: int, kv_heads: int, head_dim: int, precision: Precision) -> Operator:
    """Read the step's keys and values and write them into the cache in its own precision."""
    elements = 2 * tokens * kv_heads * head_dim
    return Operator(
        "kv_append", 1, 0.0, activation_bytes=elements * precision.activation, kv_bytes=elements * precision.kv
    )


def causal_pairs(new: int, prefix: int, window: int | None = None) -> int:
    """(query, key) pairs of `new` queries after `prefix` cached tokens: C*R + C(C+1)/2, fewer under a window.

    A window of w tokens counts the query's own position, as in `transformers`.
    """
    if window is None or prefix + new <= window:
        return new * prefix + new * (new + 1) // 2
    growing = min(new, max(0, window - prefix))
    return causal_pairs(growing, prefix) + (new - growing) * window


@dataclass(frozen=True)
class AttentionShape:
    """One layer's attention: q new tokens per sequence after `prefix` cached ones, `kept` of the keys read."""

    batch: int
    new: int
    prefix: int
    heads: int
    kv_heads: int
    head_dim: int
    window: int | None = None
    kept: float = 1.0

    @property
    def keys(self) -> int:
        """Cached tokens that any of the new tokens may see."""
        total = self.prefix + self.new
        return total if self.window is None else min(total, self.window + self.new - 1)


def attention(shape: AttentionShape, precision: Precision, *, fused: bool = True) -> list[Operator]:
    """Causal attention with GQA: K and V move once per KV head; unfused, the scores move four times more."""
    pairs = causal_pairs(shape.new, shape.prefix, shape.window) * shape.kept
    queries = shape.batch * shape.new * shape.heads * shape.head_dim
    cache = shape.batch * shape.keys * shape.kept * shape.kv_heads * shape.head_dim
    core = Operator(
        "attention",
        1,
        4.0 * shape.batch * shape.heads * shape.head_dim * pairs,
        activation_bytes=2 * queries * precision.activation,
        kv_bytes=2 * cache * precision.kv,
    )
    if fused:
        return [core]
    scores = shape.batch * shape.heads * shape.new * shape.keys * shape.kept
    moved = 2 * scores * precision.activation
    return [
        replace(core, activation_bytes=core.activation_bytes + moved),
        Operator("softmax", 1, 5.0 * scores, activation_bytes=moved),
    ]
