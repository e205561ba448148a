"""The contiguous KV cache: one reservation per layer, grown by doubling, with its own length for every row."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from suite.models.config import ModelConfig

_ROUND = 64  # capacities are whole multiples of this many tokens


class KVCache:
    """Keys and values as [B, G, capacity, D] per layer; row b holds `lengths[b]` tokens and has lost `evicted[b]`.

    Keys are stored as the attention wrote them (rotated or not). What lies beyond a row's length is undefined.
    """

    def __init__(self, config: ModelConfig, batch: int, dtype: torch.dtype, capacity: int = 0) -> None:
        self.config = config
        self.dtype = dtype
        self.lengths = [0] * batch
        self.evicted = [0] * batch
        self.capacity = 0
        self.keys: list[Tensor] = []
        self.values: list[Tensor] = []
        self.reserve(max(capacity, 1))

    @property
    def batch(self) -> int:
        """Rows of the batch."""
        return len(self.lengths)

    def reserve(self, tokens: int) -> None:
        """Makes room for `tokens` per row; a copy happens only when the capacity doubles."""
        if tokens <= self.capacity:
            return
        capacity = -(-max(tokens, 2 * self.capacity) // _ROUND) * _ROUND
        shape = (self.batch, self.config.kv_heads, capacity, self.config.head_dim)
        for storage in (self.keys, self.values):
            grown = [torch.empty(shape, dtype=self.dtype) for _ in range(self.config.layers)]
            for old, new in zip(storage, grown, strict=False):
                new[:, :, : self.capacity] = old
            storage[:] = grown
        self.capacity = capacity

    def write(self, layer: int, k: Tensor, v: Tensor, counts: Sequence[int]) -> None:
        """Writes k, v [B, T, G, D] behind each row's tokens, `counts[b]` of them; `advance` makes them count."""
        for row, (start, count) in enumerate(zip(self.lengths, counts, strict=True)):
            self.keys[layer][row, :, start : start + count] = k[row, :count].transpose(0, 1)
            self.values[layer][row, :, start : start + count] = v[row, :count].transpose(0, 1)

    def advance(self, counts: Sequence[int]) -> None:
        """After the last layer of a pass: the tokens written count from now on."""
        self.lengths = [length + count for length, count in zip(self.lengths, counts, strict=True)]

    def truncate(self, row: int, length: int) -> None:
        """Forgets the tokens of one row beyond `length`."""
        self.lengths[row] = min(self.lengths[row], length)

    def evict(self, row: int, start: int, stop: int) -> None:
        """Removes tokens [start, stop) of one row in all layers; later tokens move up, so their memory is reused."""
        tail = self.lengths[row] - stop
        for storage in (*self.keys, *self.values):
            storage[row, :, start : start + tail] = storage[row, :, stop : stop + tail].clone()
        self.lengths[row] -= stop - start
        self.evicted[row] += stop - start

    @property
    def seen(self) -> list[int]:
        """Tokens each row has seen, evicted ones included: the position of its next token."""
        return [length + gone for length, gone in zip(self.lengths, self.evicted, strict=True)]

    def live_bytes(self) -> int:
        """Bytes of the keys and values that are stored for tokens, over all layers and rows."""
        element = torch.empty(0, dtype=self.dtype).element_size()
        return sum(self.lengths) * self.config.kv_bytes_per_token(element)

    def allocated_bytes(self) -> int:
        """Bytes of the real storages, including capacity that holds no token."""
        return sum(t.untyped_storage().nbytes() for t in (*self.keys, *self.values))
