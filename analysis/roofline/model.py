"""Analytic roofline of a Llama-family decoder: the operators of one step, and the time a machine needs at least.

Step time is the sum over operators of max(FLOPs / peak, bytes / bandwidth) + launches (`methods/_roofline.md` section
3), never the maximum of the sums. It is a lower bound: what a measured step takes beyond it is reported as unexplained.
Biases, q/k norms and Gemma's second norms are left out; together they are below 0.2% of the bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from analysis.roofline.operators import (
    AttentionShape,
    Operator,
    Precision,
    attention,
    embedding,
    kv_append,
    linear,
    rms_norm,
    rope,
    swiglu,
)
from suite.errors import InputError

Bound = Literal["compute", "memory", "launch"]


@dataclass(frozen=True)
class ModelShape:
    """Dimensions of a Llama-family decoder. `windows[l]` is layer l's sliding window in tokens, None for none."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool = False
    windows: tuple[int | None, ...] = ()

    @classmethod
    def from_hf(cls, config: Mapping[str, Any]) -> ModelShape:
        """From the dictionary of a Hugging Face `config.json`; `InputError` names a missing field."""
        try:
            heads, layers = int(config["num_attention_heads"]), int(config["num_hidden_layers"])
            return cls(
                layers=layers,
                hidden=int(config["hidden_size"]),
                intermediate=int(config["intermediate_size"]),
                heads=heads,
                kv_heads=int(config.get("num_key_value_heads") or heads),
                head_dim=int(config.get("head_dim") or int(config["hidden_size"]) // heads),
                vocab=int(config["vocab_size"]),
                tied=bool(config.get("tie_word_embeddings", False)),
                windows=_windows(config, layers),
            )
        except KeyError as missing:
            raise InputError(f"the model's config has no field {missing}, which a Llama-family one has.") from missing

    def layers_by_window(self) -> Counter[int | None]:
        """How many layers have each window."""
        return Counter(self.windows) if self.windows else Counter({None: self.layers})

    @property
    def layer_parameters(self) -> int:
        """Weights of one layer: four attention projections, three of the MLP, two norms."""
        attended = 2 * self.hidden * (self.heads + self.kv_heads) * self.head_dim
        return attended + 3 * self.hidden * self.intermediate + 2 * self.hidden

    @property
    def parameters(self) -> int:
        """All weights; a tied embedding counts once."""
        embeddings = self.vocab * self.hidden * (1 if self.tied else 2)
        return self.layers * self.layer_parameters + self.hidden + embeddings

    def kv_bytes_per_token(self, precision: Precision) -> float:
        """Bytes one token adds to a full cache over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * precision.kv


def _windows(config: Mapping[str, Any], layers: int) -> tuple[int | None, ...]:
    window = config.get("sliding_window")
    if not window or config.get("use_sliding_window") is False:
        return ()
    kinds = config.get("layer_types") or ["sliding_attention"] * layers
    return tuple(int(window) if kind == "sliding_attention" else None for kind in kinds)


@dataclass(frozen=True)
class Selection:
    """What a sparse method reads in place of the whole cache: a fraction of the keys, and its index, per step."""

    kept: float = 1.0
    index_bytes: float = 0.0


DENSE = Selection()


def forward(
    shape: ModelShape,
    precision: Precision,
    *,
    batch: int,
    new: int,
    prefix: int = 0,
    logit_rows: int = 1,
    selection: Selection = DENSE,
    fused: bool = True,
) -> list[Operator]:
    """Operators of one forward pass over `new` tokens per sequence after `prefix` cached ones.

    `logit_rows` is the number of rows per sequence that need logits: 1 for generation, 0 for all chunks of a prefill
    but the last, `new` when drafts are verified.
    """
    tokens = batch * new
    operators = [embedding(tokens, shape.hidden, precision), rms_norm(tokens, shape.hidden, precision, residual=False)]
    operators += [operator * shape.layers for operator in _layer_linears(shape, precision, tokens)]
    operators.append(rms_norm(tokens, shape.hidden, precision, residual=True) * (2 * shape.layers))
    for window, count in shape.layers_by_window().items():
        layer = AttentionShape(batch, new, prefix, shape.heads, shape.kv_heads, shape.head_dim, window, selection.kept)
        operators += [operator * count for operator in attention(layer, precision, fused=fused)]
    if selection.index_bytes:
        operators.append(Operator("index_read", shape.layers, 0.0, kv_bytes=selection.index_bytes))
    if logit_rows:
        operators.append(linear("lm_head", batch * logit_rows, shape.hidden, shape.vocab, precision))
    return operators


def _layer_linears(shape: ModelShape, precision: Precision, tokens: int) -> list[Operator]:
    """Operators of one layer that do not depend on the cache's length, its two norms apart."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    return [
        linear("q_proj", tokens, shape.hidden, queries, precision),
        linear("k_proj", tokens, shape.hidden, keys, precision),
        linear("v_proj", tokens, shape.hidden, keys, precision),
        rope(tokens, shape.heads, shape.kv_heads, shape.head_dim, precision),
        kv_append(tokens, shape.kv_heads, shape.head_dim, precision),
        linear("o_proj", tokens, queries, shape.hidden, precision),
        linear("gate_proj", tokens, shape.hidden, shape.intermediate, precision),
        linear("up_proj", tokens, shape.hidden, shape.intermediate, precision),
        swiglu(tokens, shape.intermediate, precision),
        linear("down_proj", tokens, shape.intermediate, shape.hidden, precision),
    ]


def prefill(
    shape: ModelShape, precision: Precision, *, batch: int, tokens: int, prefix: int = 0, fused: bool = True
) -> list[Operator]:
    """A whole prompt in one pass, after a shared `prefix` already cached; logits of the last row only."""
    return forward(shape, precision, batch=batch, new=tokens, prefix=prefix, fused=fused)


def chunked_prefill(
    shape: ModelShape, precision: Precision, *, batch: int, tokens: int, chunk: int, prefix: int = 0
) -> list[Operator]:
    """A prompt in chunks of at most `chunk` tokens: the weights are read once per chunk, logits come from the last."""
    operators: list[Operator] = []
    for start in range(0, tokens, chunk):
        new = min(chunk, tokens - start)
        rows = 1 if start + new == tokens else 0
        operators += forward(shape, precision, batch=batch, new=new, prefix=prefix + start, logit_rows=rows)
    return operators


def decode(
    shape: ModelShape, precision: Precision, *, batch: int, context: int, selection: Selection = DENSE
) -> list[Operator]:
    """One decode step that attends to `context` tokens, its own included."""
    return forward(shape, precision, batch=batch, new=1, prefix=context - 1, selection=selection)


@dataclass(frozen=True)
class Machine:
    """Ceilings of one machine: FLOP/s for the data type in use, bytes/s of reading, seconds per launch."""

    name: str
    flops_per_s: float
    bytes_per_s: float
    launch_s: float = 0.0

    @property
    def ridge(self) -> float:
        """Arithmetic intensity in FLOP/byte at which memory and compute take the same time."""
        return self.flops_per_s / self.bytes_per_s


@dataclass(frozen=True)
class OperatorTime:
    """Where one operator lies on the time-based roofline; `seconds` covers all its calls."""

    operator: Operator
    compute_s: float
    memory_s: float
    launch_s: float

    @property
    def seconds(self) -> float:
        """max(compute, memory) + launches."""
        return max(self.compute_s, self.memory_s) + self.launch_s

    @property
    def bound(self) -> Bound:
        """What takes the largest part of the time."""
        if self.launch_s > max(self.compute_s, self.memory_s):
            return "launch"
        return "compute" if self.compute_s > self.memory_s else "memory"


def operator_times(operators: Iterable[Operator], machine: Machine) -> list[OperatorTime]:
    """Every operator's place on a machine's roofline."""
    return [
        OperatorTime(
            operator,
            operator.flops / machine.flops_per_s,
            operator.bytes / machine.bytes_per_s,
            operator.calls * machine.launch_s,
        )
        for operator in operators
    ]


def step_seconds(operators: Iterable[Operator], machine: Machine) -> float:
    """The least time of a step on one stream: operators run one after another."""
    return sum(time.seconds for time in operator_times(operators, machine))


def total_flops(operators: Sequence[Operator]) -> float:
    """FLOPs of a step."""
    return sum(operator.flops for operator in operators)


def total_bytes(operators: Sequence[Operator]) -> float:
    """Compulsory bytes of a step."""
    return sum(operator.bytes for operator in operators)


def speedup_bound(weight_bytes: float, full_kv_bytes: float, retention: float) -> float:
    """Best decode speed-up of reading `retention` of the cache: (W + F) / (W + r F) (`_kv_retention.md` section 3)."""
    return (weight_bytes + full_kv_bytes) / (weight_bytes + retention * full_kv_bytes)
