"""What a decoder layer is made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

ACTIVATIONS = ("silu", "gelu_tanh")

Tables = Sequence[tuple[Tensor, Tensor]]
"""cos and sin [P, D/2] fp32 of every layer."""


@dataclass(frozen=True)
class LayerShape:
    """Sizes and constants that all layers of a model share. `scale` and `softcap` are those of the attention logits."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    activation: str
    eps: float
    scale: float
    softcap: float = 0.0

    @property
    def qkv_width(self) -> int:
        """Columns of the joint projection."""
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    @property
    def integers(self) -> list[int]:
        """The fields of the C struct `Shape`."""
        sizes = [self.hidden, self.heads, self.kv_heads, self.head_dim, self.intermediate]
        return [*sizes, ACTIVATIONS.index(self.activation)]


@dataclass(frozen=True)
class LayerWeights:
    """Weights of one layer, contiguous: norms fp32, everything else in the dtype of the activations.

    qkv [(H + 2 G) D, hidden], out [hidden, H D], gate_up [2 I, hidden] (gate rows first), down [hidden, I].
    `window` is the number of tokens a query sees, 0 for all. The order of the fields is that of the C struct.
    """

    attention_norm: Tensor
    qkv: Tensor
    qkv_bias: Tensor | None
    q_norm: Tensor | None
    k_norm: Tensor | None
    out: Tensor
    out_bias: Tensor | None
    post_attention_norm: Tensor | None
    mlp_norm: Tensor
    gate_up: Tensor
    down: Tensor
    post_mlp_norm: Tensor | None
    window: int = 0


@dataclass(frozen=True)
class Caches:
    """Keys and values of every layer, each [B, G, C, D] and contiguous."""

    keys: Sequence[Tensor]
    values: Sequence[Tensor]


@dataclass(frozen=True)
class NewTokens:
    """Where query row i belongs: cache row, slot in it, position in the text; integers [N].

    `spans` int32 [N, n, 3]: in every layer it sees the slots [start, stop) of its n spans (the third column is free),
    the nodes of a draft tree for instance; without them everything up to its own slot.
    """

    rows: Tensor
    slots: Tensor
    positions: Tensor
    spans: Tensor | None = None
