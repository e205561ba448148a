"""The decoder's attention slot: the protocol every attention fills, and exact dense attention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import Tensor
from torch.nn import functional

from kernels import flash_decode, flash_prefill
from kernels import rope as rope_kernel
from kernels.decode_layer import Tables
from suite.models.cache import KVCache
from suite.models.config import ModelConfig
from suite.models.rope import Rope, rotate

SMALL_ROWS = 16  # up to this many query rows per pass the decode kernel serves; beyond it the prefill path does


T = TypeVar("T")


@dataclass
class Step:
    """One forward pass over a ragged batch: row b brings `counts[b]` <= T new tokens after `cache.lengths[b]` old ones.

    Rows are padded on the right; what the padding computes is never read. It repeats the row's last slot and position,
    because beyond those there may be no cache and no rotary table. An attention that answers `plain` may place tokens
    otherwise: give them `positions`, and in `visible` int32 [B*T, n, 3] the slots [start, stop) each of them sees, or
    [L, B*T, n, 3] those of each layer; `turned` rotates queries to the third column. The layers' rotated queries are
    put into `queries` [L, B*T, H D], and the layers in `watched` are observed as the last one is.
    """

    cache: KVCache
    counts: Sequence[int]
    width: int
    visible: Tensor | None = None
    turned: bool = False
    queries: Tensor | None = None
    watched: Sequence[int] = ()
    scratch: dict[str, Any] = field(default_factory=dict)

    @property
    def full(self) -> bool:
        """No row is padded."""
        return min(self.counts) == self.width

    @property
    def starts(self) -> list[int]:
        """Tokens stored per row before this pass: the slot of each row's first new token."""
        return self.cache.lengths

    @cached_property
    def stops(self) -> list[int]:
        """Tokens stored per row after this pass."""
        return [start + count for start, count in zip(self.cache.lengths, self.counts, strict=True)]

    @cached_property
    def seen(self) -> int:
        """Positions in use after this pass: one more than the largest position of a new token."""
        return max(seen + count for seen, count in zip(self.cache.seen, self.counts, strict=True))

    @cached_property
    def slots(self) -> Tensor:
        """Cache slot of every new token, int32 [B, T]."""
        slots = torch.tensor(self.starts, dtype=torch.int32)[:, None] + torch.arange(self.width, dtype=torch.int32)
        if self.full:
            return slots
        return slots.minimum((torch.tensor(self.stops, dtype=torch.int32) - 1).clamp(min=0)[:, None])

    @cached_property
    def positions(self) -> Tensor:
        """Position in the text of every new token, int32 [B, T]: its slot, plus what was evicted before it."""
        if not any(self.cache.evicted):
            return self.slots
        return self.slots + torch.tensor(self.cache.evicted, dtype=torch.int32)[:, None]

    @cached_property
    def rows(self) -> Tensor:
        """Batch row of every query row, int32 [B*T]."""
        return torch.arange(self.cache.batch, dtype=torch.int32).repeat_interleave(self.width)

    def shared(self, name: str, make: Callable[[], T]) -> T:
        """What all layers of a pass have in common, made by the first that asks."""
        if name not in self.scratch:
            self.scratch[name] = make()
        return cast(T, self.scratch[name])


class Attention(Protocol):
    """Fills the attention slot of every layer. q, k, v come as projected: with q/k norm, without rotary embedding."""

    def capacity(self, tokens: int) -> int:
        """Tokens the cache should have room for when a request has `tokens` in all."""
        ...

    def kv_bytes(self) -> int:
        """Bytes of keys and values the attention keeps outside the cache."""
        ...

    def host_bytes(self) -> int:
        """Those of `kv_bytes` that are on the host tier."""
        ...

    def index_bytes(self) -> int:
        """Bytes of what the attention keeps beside keys and values."""
        ...

    def begin(self, cache: KVCache, counts: Sequence[int]) -> None:
        """Before a pass over `counts` new tokens per row: the time to evict."""
        ...

    def plain(self, step: Step) -> Tables | None:
        """Each layer's rotary tables if it is known before the pass which slots all layers attend to, else None.

        Then the decoder may run all layers in one call: `__call__` is left out, the last and watched layers observed.
        """
        ...

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
        """q [B, T, H, D], k and v [B, T, G, D] -> [B, T, H, D]; also stores what later steps need in `step.cache`."""
        ...

    def observe(self, layer: int, hidden: Tensor, step: Step) -> None:
        """Sees the output of each layer, [B, T, hidden]."""
        ...

    def question_reader(self, row: int, prompt_tokens: int) -> Attention | None:
        """What attends in a pass over the question of one row alone, before its prompt; `None`: there is none."""
        ...


class DenseAttention:
    """Exact causal attention over the whole cache; keys are stored rotated by their positions in the text."""

    def __init__(self, config: ModelConfig) -> None:
        self.config = config
        self._rope = Rope(config.rope, config.head_dim)
        self._local_rope = Rope(config.local_rope, config.head_dim) if config.local_rope is not None else self._rope

    def capacity(self, tokens: int) -> int:
        """Dense attention stores every token."""
        return tokens

    def kv_bytes(self) -> int:
        """Dense attention keeps all in the cache."""
        return 0

    def host_bytes(self) -> int:
        """Dense attention knows no other tier."""
        return 0

    def index_bytes(self) -> int:
        """Dense attention keeps nothing else."""
        return 0

    def begin(self, cache: KVCache, counts: Sequence[int]) -> None:
        """Dense attention evicts nothing."""

    def tables(self, layer: int, length: int) -> tuple[Tensor, Tensor]:
        """cos and sin tables of one layer for at least `length` positions."""
        local = self.config.local_rope is not None and self.config.sliding(layer) is not None
        return (self._local_rope if local else self._rope).tables(length)

    def plain(self, step: Step) -> Tables | None:
        """Dense attention always is."""
        if self.config.local_rope is None:
            return [self._rope.tables(step.seen)] * self.config.layers
        return [self.tables(layer, step.seen) for layer in range(self.config.layers)]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
        cos, sin = self.tables(layer, step.seen)
        store_rotated(layer, q, k, v, cos, sin, step.positions, step)
        return self.attend(layer, q, step)

    def attend(self, layer: int, q: Tensor, step: Step) -> Tensor:
        """Attention of rotated queries over the rows just stored: the decode kernel for few rows, else the other."""
        if step.width <= SMALL_ROWS:
            return self._decode(layer, q, step)
        out, _ = flash_prefill.flash_prefill(
            q, step.cache.keys[layer], step.cache.values[layer], step.starts, step.counts,
            scale=self.config.scale, window=self.config.sliding(layer), softcap=self.config.attention_softcap,
        )  # fmt: skip
        return out

    def spans(self, layer: int, step: Step) -> Tensor:
        """What each query row of a pass reads in one layer: everything up to itself, or its window."""
        window = self.config.sliding(layer)
        return step.shared(f"spans/{window}", lambda: causal_spans(step.slots, window))

    def _decode(self, layer: int, q: Tensor, step: Step) -> Tensor:
        out, _ = flash_decode.flash_decode(
            q.flatten(0, 1), step.cache.keys[layer], step.cache.values[layer], self.spans(layer, step), step.rows,
            scale=self.config.scale, softcap=self.config.attention_softcap,
        )  # fmt: skip
        return out.view(q.shape)

    def observe(self, layer: int, hidden: Tensor, step: Step) -> None:
        """Dense attention learns nothing from the layers' outputs."""

    def question_reader(self, row: int, prompt_tokens: int) -> Attention | None:
        """Dense attention needs no question before the prompt."""
        return None


def store_rotated(
    layer: int, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, step: Step
) -> None:
    """Rotates q and k in place to `positions` [B, T] and writes k and v into the cache."""
    q, flat_k, flat_v = q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)
    if not step.full:  # padding must not be written: it may lie beyond the cache
        rope_kernel.apply(q, flat_k, cos, sin, positions.flatten())
        step.cache.write(layer, k, v, step.counts)
        return
    rope_kernel.rotate_and_append(
        q, flat_k, flat_v, cos, sin, positions.flatten(),
        step.cache.keys[layer], step.cache.values[layer], step.rows, step.slots.flatten(),
    )  # fmt: skip


def causal_spans(slots: Tensor, window: int | None) -> Tensor:
    """The span [start, slot + 1) of every query row, int32 [B*T, 1, 1, 3]; the last column, its position, is free."""
    last = slots.flatten()
    start = torch.zeros_like(last) if window is None else (last + 1 - window).clamp(min=0)
    return torch.stack((start, last + 1, last), dim=-1)[:, None, None]


def causal_attention(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    start: int,
    scale: float,
    *,
    window: int | None = None,
    softcap: float = 0.0,
) -> Tensor:
    """Causal attention of queries at positions start, start+1, ... over all keys so far.

    q [H, T, D], keys and values [G, S, D] with S = start + T -> [H, T, D].
    """
    out, _ = flash_prefill.flash_prefill(
        q.transpose(0, 1)[None], keys[None], values[None], [start], [q.shape[1]],
        scale=scale, window=window, softcap=softcap,
    )  # fmt: skip
    return out[0].transpose(0, 1)


class TrainingAttention(DenseAttention):
    """The same attention without a cache and with gradients: every row starts at position 0 and has no padding."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, step: Step | None) -> Tensor:
        cos, sin = (table[: q.shape[1], None] for table in self.tables(layer, q.shape[1]))
        q, k, v = (x.transpose(1, 2) for x in (rotate(q, cos, sin), rotate(k, cos, sin), v))
        attended = functional.scaled_dot_product_attention(
            q, k, v, is_causal=True, scale=self.config.scale, enable_gqa=True
        )
        return attended.transpose(1, 2)
