"""ChunkLLM: distilled adapters find chunks and choose which of them decoding reads (arXiv 2510.02361)."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from functools import partial
from math import log
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor

from suite.methods.attention import costs
from suite.methods.attention.base import AttentionMethod, Phase, grow
from suite.methods.attention.selection import Selection
from suite.methods.attention.spans import spans_of, stack
from suite.methods.base import Card, Claim, MethodConfig, tunable
from suite.models import adapters
from suite.models.attention import Step
from suite.models.config import ModelConfig
from suite.models.language_model import LanguageModel
from suite.models.recipes.chunkllm import LONGEST, ChunkAdapters, chunk_ends, selecting_layers

CLAIMS = (
    Claim("quality", "reading about half of the cache keeps nearly all of the quality",
          "long-context benchmarks: 98.64 % at 48.58 % retention (v1), 99.49 % at 52.10 % (v2)",
          "quality ratio to dense at 0.5 selected retention", 0.97),
    Claim("speed", "generation over a very long text is several times faster",
          "120K-token texts: up to 4.48x faster than the vanilla Transformer", "vanilla time / ChunkLLM time", 4.48),
    Claim("short-text", "short texts lose nothing", "comparable to vanilla", "quality ratio to dense", 1.0),
    Claim("selections", "tokens of a chunk attend alike (ICAC): choosing at its end is enough",
          "chosen at chunk boundaries only", "boundaries / selections", 1.0),
)  # fmt: skip


class ChunkLLMConfig(MethodConfig):
    """A selection leaves `retention` of the tokens seen to be read, but `budget` tokens at least: sink, local, chosen.

    Local are the unfinished chunk and the finished ones that begin within the last `local` tokens. A chunk ends at a
    boundary probability above `threshold`, and after `longest` tokens.
    """

    retention: float = tunable(0.5, low=0.0, high=1.0)
    budget: int = tunable(256, low=0, high=131072)
    local: int = tunable(64, low=0, high=4096)
    threshold: float = tunable(0.5, low=0.01, high=0.99)
    longest: int = tunable(LONGEST, low=1, high=1024, log=True)
    selection: Literal["per_layer", "voted"] = tunable("per_layer", choices=("per_layer", "voted"))


@dataclass
class Chunks:
    """One batch row: adapted keys [L, capacity, R] of its chunks, the last token's rotated query [H D] by layer.

    `spans` [L, n, 3] serve until the next boundary, the first being local and open to the right; `None` in the prompt.
    """

    keys: Tensor
    newest: list[Tensor]
    ends: list[int] = field(default_factory=list)
    spans: Tensor | None = None
    index_bytes: int = 0


class ChunkLLM(AttentionMethod):
    """A head on layer 1 finds chunk ends; at each, the adapters' q . k over boundary tokens chooses for every layer.

    The prompt is read in full. A decode step reads the first chunk (the sink), the chosen and the local ones; only a
    token that ends a chunk chooses anew, after its own pass, with its own query. Nothing is evicted. Shapes: L layers
    with full attention, R adapter dim, n and m chunks.
    """

    card: ClassVar[Card] = Card(
        slug="chunkllm",
        family="attention",
        title="ChunkLLM: A Lightweight Pluggable Framework for Accelerating LLMs Inference",
        source="arXiv 2510.02361",
        lossless=False,
        needs=("adapter",),
        claims=CLAIMS,
    )
    Config = ChunkLLMConfig
    cost = staticmethod(costs.chunkllm)
    acts_in: ClassVar[tuple[Phase, ...]] = ("decode",)
    watched: ClassVar[tuple[int, ...]] = (0,)

    def refusal(self, model: LanguageModel, config: Any) -> str | None:
        return super().refusal(model, config) or adapters.missing("chunkllm", model)

    def prepare(self, model: LanguageModel, config: MethodConfig) -> None:
        """Loads the adapters of this model in its dtype."""
        self._adapters = cast(ChunkAdapters, adapters.load("chunkllm", model)).to(model.decoder.dtype)

    def begin_batch(self, model: ModelConfig, config: Any, batch: int) -> None:
        self._config, self._last_layer = config, model.layers - 1
        self._log_odds = log(config.threshold / (1 - config.threshold))
        self._place = {layer: place for place, layer in enumerate(selecting_layers(model))}
        keys = self._adapters.keys[:, :0]
        self._rows = [Chunks(keys.clone(), [torch.empty(0)] * len(keys)) for _ in range(batch)]
        self.selections = self.predicted = self.forced = 0  # choices made, chunks ended by the head and by length

    def learn(self, layer: int, q: Tensor, row: int, step: Step) -> None:
        """Keeps the newest query. The first single token finds the prompt over, whose last one then selects."""
        chunks = self._rows[row]
        if step.width > 1:
            chunks.spans = None
        elif chunks.spans is None:
            self._choose(chunks, step.starts[row])
        if len(q):
            chunks.newest[self._place[layer]] = q[-1].flatten().clone()

    def observe(self, layer: int, hidden: Tensor, step: Step) -> None:
        """After the first layer boundaries are known; after the last one the chunks they end can be closed."""
        if layer == 0:
            self._fires = (self._adapters.logits(hidden) > self._log_odds).tolist()
        if layer == self._last_layer:
            for row, (fires, start, count) in enumerate(zip(self._fires, step.starts, step.counts, strict=True)):
                self._close(row, [start + i + 1 for i in range(count) if fires[i]], step)

    def _close(self, row: int, predicted: list[int], step: Step) -> None:
        """Ends chunks: their keys join the index, and while decoding the token that ended one selects."""
        chunks, stop = self._rows[row], step.stops[row]
        ends = chunk_ends(predicted, chunks.ends[-1] if chunks.ends else 0, stop, self._config.longest)
        if not ends:
            return
        last, known = torch.tensor(ends) - 1, len(chunks.ends)
        keys = torch.stack([step.cache.keys[layer][row, :, last] for layer in self._place])
        chunks.ends += ends
        chunks.keys = grow(chunks.keys, len(chunks.ends))
        chunks.keys[:, known : len(chunks.ends)] = torch.bmm(keys.transpose(1, 2).flatten(2), self._adapters.keys)
        self.predicted, self.forced = self.predicted + len(predicted), self.forced + len(ends) - len(predicted)
        if step.width == 1:
            self._choose(chunks, stop)

    def _choose(self, chunks: Chunks, seen: int) -> None:
        """Sets what is read after `seen` tokens, the newest of which selects. Chunk 0 is the sink."""
        self.selections += 1
        starts, m = [0, *chunks.ends], len(chunks.ends)
        near = max(bisect_left(starts, seen - self._config.local, hi=m), min(1, m))  # the first local chunk
        read = torch.ones(len(self._place), near, dtype=torch.bool)
        chunks.index_bytes = chunks.keys[0, 1:near].nbytes
        if near > 1:
            room = max(self._config.budget, int(self._config.retention * seen)) - starts[1] - (seen - starts[near])
            read[:, 1:] = self._walk(self._scores(chunks, near), torch.tensor(starts[1 : near + 1]).diff(), room)
        chunks.spans = spans_of(read, torch.tensor(starts))

    def _scores(self, chunks: Chunks, near: int) -> Tensor:
        """[L, near - 1]: the adapters' q . k of every chunk between the sink and the local ones, in fp32."""
        query = torch.bmm(torch.stack(chunks.newest)[:, None], self._adapters.queries)
        return torch.bmm(query, chunks.keys[:, 1:near].transpose(1, 2))[:, 0].float()

    def _walk(self, scores: Tensor, lengths: Tensor, room: int) -> Tensor:
        """Which chunks [L, n] are read: down each layer's ranking, or that of the layers' votes, while they fit."""
        taken = walk(scores.argsort(dim=-1, descending=True, stable=True), lengths, room)
        if self._config.selection == "per_layer":
            return taken
        votes = taken.sum(dim=0, keepdim=True).flip(-1)  # flipped, so that of equal votes the more recent one is first
        ranking = len(lengths) - 1 - votes.argsort(dim=-1, descending=True, stable=True)
        return walk(ranking, lengths, room).expand_as(taken)

    def select(self, layer: int, q: Tensor, row: int, step: Step) -> Selection:
        """What was chosen at the last boundary, and all tokens since."""
        spans, index_bytes = step.shared(f"chunkllm/{row}", partial(self._current, row, step))
        return Selection(spans[self._place[layer]][None, None], index_bytes=index_bytes)

    def ahead(self, step: Step) -> Tensor | None:
        if any(chunks.spans is None for chunks in self._rows):
            return None
        rows = [Selection(self._current(row, step)[0][None]) for row in range(len(self._rows))]
        return stack(rows).spans.transpose(0, 1).contiguous()

    def _current(self, row: int, step: Step) -> tuple[Tensor, int]:
        """The spans of all layers in this step; the bytes of a choice count in the first step it serves."""
        chunks = self._rows[row]
        spans, chosen, chunks.index_bytes = cast(Tensor, chunks.spans), chunks.index_bytes, 0
        spans[:, 0, 1], spans[..., 2] = step.stops[row], step.stops[row] - 1
        return spans, chosen

    def index_bytes(self) -> int:
        """Adapted keys, newest queries and spans of all rows; the adapters' own weights are the model's."""
        kept = (t for chunks in self._rows for t in (chunks.keys, *chunks.newest, chunks.spans) if t is not None)
        return sum(t.untyped_storage().nbytes() for t in kept)

    @classmethod
    def at_budget(cls, tokens: int) -> dict[str, Any]:
        return {"retention": 0.0, "budget": tokens, "local": tokens // 4, "longest": max(1, min(LONGEST, tokens // 8))}


def walk(ranking: Tensor, lengths: Tensor, room: int) -> Tensor:
    """ranking [L, n] of chunks of `lengths` [n] tokens -> bool [L, n]: the best ones that `room` tokens hold, whole."""
    fits = lengths[ranking].cumsum(dim=-1) <= room
    return torch.zeros_like(fits).scatter_(-1, ranking, fits)
