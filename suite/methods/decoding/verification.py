"""One pass of the target over the drafts of a batch, and what of it stays in the cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels import kv_move
from kernels.decode_layer import Tables
from kernels.tree_attention import tree_attention
from suite.methods.decoding.tree import TokenTree
from suite.models.attention import DenseAttention, Step, store_rotated
from suite.models.cache import KVCache
from suite.models.config import ModelConfig
from suite.models.generation import PREFILL_CHUNK, AttentionRead, Meter

Watch = Callable[[Tensor, Step], None]
"""Is shown the last layer's output [B, T, hidden] of every pass, before the final norm."""


@dataclass(frozen=True)
class Planted:
    """The drafts of one pass: tree masks int64 [B, T], positions int32 [B, T], and whether each is a chain.

    `lengths` and `counts` int32 [B] are the tokens before the pass and in it. `visible` int32 [B*T, n, 3] says what the
    masks say as spans of slots; it is there for trees without padding.
    """

    masks: Tensor
    positions: Tensor
    visible: Tensor | None
    lengths: Tensor
    counts: Tensor
    chains: bool


class TreeAttention(DenseAttention):
    """Dense attention for prompts; for a planted pass every token sees the prefix, its ancestors and itself.

    A node's position is the prefix length plus its depth. Where all drafts are chains that is causal attention, on the
    dense path itself. With `watch` every pass ends in a look at the last layer's output.
    """

    prefill_chunk = PREFILL_CHUNK

    def __init__(self, config: ModelConfig, meter: Meter | None = None, watch: Watch | None = None) -> None:
        super().__init__(config)
        self._counter = meter if meter is not None and meter.counting else None
        self._watch = watch
        self._planted: Planted | None = None
        self._prompt: list[int] = []

    def plant(self, cache: KVCache, trees: Sequence[TokenTree | None]) -> None:
        """The next pass holds, row by row, the root and the nodes of a tree; `None` is a row that has ended.

        What is to be evicted is evicted now: the pass's tokens follow those that are in the cache afterwards.
        """
        if not self._prompt:
            self._prompt = list(cache.seen)
        counts = [0 if tree is None else 1 + len(tree) for tree in trees]
        width = max(counts)
        masks, depths = torch.zeros(len(trees), width, dtype=torch.int64), list[list[int]]()
        for row, tree in enumerate(trees):
            own = (-1,) if tree is None else (0, *tree.depths)
            depths.append([*own, *own[-1:] * (width - len(own))])  # padding repeats: there may be no table beyond
            if tree is not None:
                masks[row, : len(own)] = tree.masks()
        lengths = torch.tensor(cache.lengths, dtype=torch.int32)
        chains = all(tree is None or tree.is_chain for tree in trees)
        self._planted = Planted(
            masks=masks,
            positions=torch.tensor(depths, dtype=torch.int32) + torch.tensor(cache.seen, dtype=torch.int32)[:, None],
            visible=_visible(cache.lengths, trees) if not chains and min(counts) == width else None,
            lengths=lengths,
            counts=torch.tensor(counts, dtype=torch.int32),
            chains=chains,
        )

    def plain(self, step: Step) -> Tables | None:
        """Prompts and chains are, and trees without padding, unless every layer's reads are to be told."""
        planted = self._planted
        if self._counter is not None:
            return None
        if planted is not None and not planted.chains:
            if planted.visible is None:
                return None
            step.positions, step.visible = planted.positions, planted.visible
        return super().plain(step)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, step: Step) -> Tensor:
        planted = self._planted
        if planted is not None and self._counter is not None:
            self._tell(self._counter, layer, step)
        if planted is None or planted.chains:
            return super().__call__(layer, q, k, v, step)
        store_rotated(layer, q, k, v, *self.tables(layer, step.seen), planted.positions, step)
        out, _ = tree_attention(
            q, step.cache.keys[layer], step.cache.values[layer], planted.masks, planted.lengths, planted.counts,
            scale=self.config.scale, softcap=self.config.attention_softcap,
        )  # fmt: skip
        return out

    def observe(self, layer: int, hidden: Tensor, step: Step) -> None:
        """Hands on the last layer's output."""
        if self._watch is not None and layer == self.config.layers - 1:
            self._watch(hidden, step)

    def _tell(self, meter: Meter, layer: int, step: Step) -> None:
        """What a round reads, once for all its nodes; of these only the root counts as stored for sure."""
        token_bytes = self.config.kv_heads * 2 * self.config.head_dim * step.cache.keys[layer].element_size()
        for row, count in enumerate(step.counts):
            if count:
                own, together = self._read(row, step)
                stored, seen = step.starts[row] + 1, step.cache.seen[row] + 1
                meter.attention(
                    AttentionRead(
                        layer, seen, self._prompt[row], stored, own, own, own, together * token_bytes,
                        index_bytes=0, copy_bytes=0,
                    )
                )  # fmt: skip

    def _read(self, row: int, step: Step) -> tuple[int, int]:
        """Tokens that the root reads, and those that it and its nodes read together."""
        return step.starts[row] + 1, step.stops[row]


def _visible(lengths: Sequence[int], trees: Sequence[TokenTree | None]) -> Tensor:
    """Spans int32 [B*T, n, 3] of what every token of a pass sees: the prefix, its ancestors and itself."""
    rows: list[list[tuple[int, int, int]]] = []
    for length, tree in zip(lengths, trees, strict=True):
        for (_, first), *others in tree.runs if tree is not None else ():
            rows.append([(0, length + first, 0), *((length + start, length + stop, 0) for start, stop in others)])
    most = max(map(len, rows))
    return torch.tensor([[*row, *[(0, 0, 0)] * (most - len(row))] for row in rows], dtype=torch.int32)


def commit(cache: KVCache, starts: Sequence[int], paths: Sequence[Sequence[int] | None]) -> None:
    """After a pass whose row b began at slot `starts[b]`: keeps the root and the nodes of `paths[b]`, in that order.

    Only accepted tokens that do not lie where they belong are moved, in one call for all layers; nothing is copied
    out. `None` is a row that had no part in the pass.
    """
    lengths = [0 if path is None else len(path) for path in paths]
    moves = torch.full((len(paths), max(1, *lengths)), -1, dtype=torch.int32)
    for row, path in enumerate(paths):
        if path and list(path) != list(range(len(path))):
            moves[row, : len(path)] = torch.tensor(path, dtype=torch.int32) + starts[row] + 1
    if int(moves.max()) >= 0:
        kv_move.compact([*cache.keys, *cache.values], moves, [start + 1 for start in starts])
    for row, path in enumerate(paths):
        if path is not None:
            cache.truncate(row, starts[row] + 1 + len(path))
