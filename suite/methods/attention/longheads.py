"""LongHeads: every head picks its own chunks and reads them inside the trained window (arXiv 2402.10685)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import model_validator
from torch import Tensor
from torch.nn import functional

from kernels.select_top import select_top
from suite.methods.attention import costs
from suite.methods.attention.base import AttentionMethod, grow
from suite.methods.attention.selection import Selection, Shared
from suite.methods.base import Card, Claim, MethodConfig, tunable
from suite.models.attention import Step
from suite.models.config import ModelConfig
from suite.models.language_model import LanguageModel

SELECTIONS = ("per_query_head", "per_kv_head")
FORCED = 3  # the first chunk, the last full chunk and the unfinished one are always read

CLAIMS = (
    Claim("flat-accuracy", "retrieval stays near-perfect far beyond the trained length",
          "passkey, Llama-2-7B trained on 4K: 1.00 at 128K, never below 0.94", "accuracy at 8x / at 1x", 0.94),
    Claim("beats-plain", "the plain model fails beyond its trained length, LongHeads does not",
          "passkey, plain Llama-2-7B: 0 % from 16K on", "accuracy ratio to plain at 8x", 1.0),
    Claim("passkey", "retrieval through a fixed window holds up on a real model",
          "passkey, Llama-2-7B, A=4096: 0.94 at 16K", "accuracy ratio to dense at the same length", 0.94),
    Claim("linear-cost", "with a fixed attention window, cost per token does not grow with length",
          "complexity statement, context stretched more than 32x", "decode time at 64K / at 2K", 1.0),
    Claim("linear-prefill", "with a fixed attention window, a prompt's cost per token does not grow with length",
          "complexity statement: encoding is linear in length", "time of a 512-token pass behind 16K / behind 2K", 1.0),
    Claim("memory", "peak GPU memory with the cache on the host",
          "Llama-2-7B: 26.51 GB at 64K, 44.48 GB at 128K", "GB at 64K", 26.51),
    Claim("long-retrieval", "passages and facts are still found at 32 times the trained length",
          "passkey, Llama-2-7B trained on 4K: 1.00 at 128K", "digit accuracy at 32x / at 1x", 0.94),
)  # fmt: skip


class LongHeadsConfig(MethodConfig):
    """Tokens: chunk is w and attention_length A of the paper. `strict_release`: prefill leaves the own token out."""

    chunk: int = tunable(256, low=1, high=1024, log=True)
    attention_length: int = tunable(4096, low=4, high=131072, log=True)
    selection: Literal["per_query_head", "per_kv_head"] = tunable("per_query_head", choices=SELECTIONS)
    strict_release: bool = False

    @model_validator(mode="after")
    def _whole_chunks(self) -> Self:
        if self.attention_length % self.chunk or self.attention_length < (FORCED + 1) * self.chunk:
            raise ValueError(f"attention_length must be a multiple of chunk and hold at least {FORCED + 1} chunks")
        return self


@dataclass
class ChunkIndex:
    """One layer of one batch row: chunk representations [H, capacity, D], and the unfinished chunk's queries."""

    reps: Tensor
    pending: Tensor


class LongHeads(AttentionMethod):
    """Each head scores chunks by q . c_i with the un-rotated query and reads the K best of them, re-numbered in order.

    Keys are stored rotated by their position inside their chunk, so slot s of a head's list is read by rotating the
    query to (own slot position - s w): no distance exceeds A, and no key is rotated when it is read.
    """

    card: ClassVar[Card] = Card(
        slug="longheads",
        family="attention",
        title="LongHeads: Multi-Head Attention is Secretly a Long Context Processor",
        source="arXiv 2402.10685",
        lossless=False,
        claims=CLAIMS,
    )
    Config = LongHeadsConfig
    cost = staticmethod(costs.longheads)

    def refusal(self, model: LanguageModel, config: Any) -> str | None:
        if config.attention_length > model.window:
            trained = f"the trained window of {model.window} of {model.name}"
            return f"longheads reads attention_length={config.attention_length} tokens, more than {trained}; give less"
        return super().refusal(model, config)

    def begin_batch(self, model: ModelConfig, config: Any, batch: int) -> None:
        self._model, self._config = model, config
        self._chosen = config.attention_length // config.chunk - FORCED
        self.key_period, self.dense_until = config.chunk, config.attention_length
        H, w, D = model.heads, config.chunk, model.head_dim
        self._index = [
            [ChunkIndex(torch.empty(H, 0, D), torch.empty(w, H, D)) for _ in range(batch)] for _ in range(model.layers)
        ]

    def learn(self, layer: int, q: Tensor, row: int, step: Step) -> None:
        """Adds the representation of every chunk these tokens complete. q [T, H, D], rotated inside its chunk."""
        index, w = self._index[layer][row], self._config.chunk
        start, stop = step.starts[row], step.stops[row]
        first, full, kept = start // w, stop // w, start % w
        if full == first:
            index.pending[kept : kept + len(q)] = q
            return
        queries = torch.cat((index.pending[:kept].to(q.dtype), q)) if kept else q
        complete = (full - first) * w
        index.pending[: stop - full * w] = queries[complete:]
        fresh = represent(
            split(queries[:complete].transpose(0, 1), w),
            split(step.cache.keys[layer][row, :, first * w : full * w], w),
            split(step.cache.values[layer][row, :, first * w : full * w], w),
            self._model.scale,
        )
        index.reps = grow(index.reps.to(q.dtype), full)
        index.reps[:, first:full] = fresh.transpose(0, 1)

    def select(self, layer: int, q: Tensor, row: int, step: Step) -> Selection:
        seen = torch.tensor([step.stops[row]], dtype=torch.int32)
        spans = self._choose(q[None], self._reps(layer, row, step), row, seen, step, own=True)
        return Selection(spans, index_bytes=self.index_read(layer, row, step))

    def plan(self, layer: int, q: Tensor, row: int, first: int, step: Step) -> Shared:
        seen = torch.arange(first + 1, first + 1 + len(q), dtype=torch.int32)
        reps = self._reps(layer, row, step)
        return Shared(self._choose(q, reps, row, seen, step, own=not self._config.strict_release))

    def index_read(self, layer: int, row: int, step: Step) -> int:
        """All representations, once for all rows that choose together."""
        return self._reps(layer, row, step).nbytes

    def _reps(self, layer: int, row: int, step: Step) -> Tensor:
        """Of all full chunks, [H, chunks, D]."""
        return self._index[layer][row].reps[:, : step.stops[row] // self._config.chunk]

    def _choose(self, q: Tensor, reps: Tensor, row: int, seen: Tensor, step: Step, *, own: bool) -> Tensor:
        """Spans of the rows q [T, H, D], not rotated, having seen `seen` [T] tokens each (their own included)."""
        w = self._config.chunk
        selections = self._model.kv_heads if self._config.selection == "per_kv_head" else self._model.heads
        last, template = step.shared(
            f"longheads/{row}",
            lambda: (seen // w - 1, slot_template(seen, w, self._chosen, selections, own=own)),
        )
        return fill_slots(template, self._best(q, reps, last, selections), w)

    def _best(self, q: Tensor, reps: Tensor, last: Tensor, selections: int) -> Tensor:
        """The chunks [T, S, k] that rows q [T, H, D] read besides the first and the last full ones, ascending."""
        return select_top(q, reps, self._chosen, last, first=1, selections=selections)

    def index_bytes(self) -> int:
        tensors = [t for layer in self._index for index in layer for t in (index.reps, index.pending)]
        return sum(t.untyped_storage().nbytes() for t in tensors)

    @classmethod
    def at_budget(cls, tokens: int) -> dict[str, Any]:
        chunk = max(1, tokens // 16)
        return {"chunk": chunk, "attention_length": 16 * chunk}


def split(x: Tensor, chunk: int) -> Tensor:
    """Tokens in chunks: [heads, m w, D] -> [m, heads, w, D]."""
    return x.reshape(x.shape[0], -1, chunk, x.shape[2]).transpose(0, 1)


def represent(q: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """Chunk representations c_i [m, H, D] in fp32 of m chunks: paper section 3.2, two attentions inside the chunk.

    q [m, H, w, D], keys and values [m, G, w, D], q and keys rotated inside their chunk. The first attention is
    bidirectional; the mean of its outputs is the query of the second, whose values are the keys.
    """
    q, keys, values = q.float(), keys.float(), values.float()
    inside = functional.scaled_dot_product_attention(q, keys, values, scale=scale, enable_gqa=True)
    summary = inside.mean(dim=2, keepdim=True)
    return functional.scaled_dot_product_attention(summary, keys, keys, scale=scale, enable_gqa=True)[:, :, 0]


def slot_template(seen: Tensor, chunk: int, k: int, S: int, *, own: bool) -> Tensor:
    """Spans [T, S, k + 3, 3] of the list (chunk 0, k chunks, last full chunk, tail) but for which k chunks are read.

    Slot s starts at position s w; the query of a row having seen `seen` [T] tokens is at the list's last position.
    Beyond `dense_until` every row has more than k candidates, so no slot stays empty.
    """
    full, tail = seen // chunk, seen % chunk
    lengths = torch.full((len(seen), k + 3), chunk, dtype=torch.int32)
    lengths[:, k + 2] = tail
    if not own:  # the query's own token is the last of the last span that is not empty
        lengths[torch.arange(len(seen)), torch.where(tail > 0, k + 2, k + 1)] -= 1
    starts = torch.zeros_like(lengths)
    starts[:, k + 1], starts[:, k + 2] = (full - 1) * chunk, full * chunk
    position = ((k + 2) * chunk + tail - 1)[:, None] - torch.arange(k + 3) * chunk
    return torch.stack((starts, starts + lengths, position.int()), dim=-1)[:, None].expand(-1, S, -1, -1)


def fill_slots(template: Tensor, best: Tensor, chunk: int) -> Tensor:
    """The template with the chosen chunks `best` [T, S, k], ascending, in its k middle slots."""
    spans = template.clone()
    spans[:, :, 1 : best.shape[2] + 1, :2] += (best * chunk).int()[..., None]
    return spans
