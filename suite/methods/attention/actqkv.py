"""ActQKV (arXiv 2502.13542): blocks retrieved by an activation-aware probe query, more of them for some layers."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from kernels import gemv
from kernels.kv_move import gather
from kernels.select_top import top
from suite.methods.attention import costs
from suite.methods.attention.base import AttentionMethod
from suite.methods.attention.cutoff import CutOff
from suite.methods.attention.probe import LayerMemory, density, local_mask, local_mass, probe_query
from suite.methods.attention.question import QuestionReader, scorer
from suite.methods.attention.selection import Beside, Causal, Elsewhere, Merged, Plan, Selection
from suite.methods.base import Card, Claim, MethodConfig, tunable
from suite.models.attention import Step
from suite.models.cache import KVCache
from suite.models.config import ModelConfig
from suite.models.rope import Rope, rotate

CLAIMS = (
    Claim("quality-at-budget", "the probe query finds better blocks than the mean query at the same budget",
          "best retrieval method on LongBench and InfiniteBench at 2K; +10.4 % accuracy at 16x fewer KV (secondary)",
          "needle-block recall, probe / mean pooling"),
    Claim("bounded-attention", "a query reads a fixed number of tokens, however long the text",
          "2K KV budget", "selected retention x length, longest / shortest", 1.0),
    Claim("slower-than-infllm", "the authors' own notebook: slower than InfLLM at the same budget",
          "1.77x-2.01x its total time, 10K to 520K tokens", "total time, ActQKV / mean-query retrieval", 1.77),
    Claim("layers-differ", "the cut-off gives layers different numbers of blocks",
          "dynamic KV cut-off (section 3.3)", "largest / smallest mean k over layers"),
)  # fmt: skip


class ActQKVConfig(MethodConfig):
    """Tokens: `block`, `n_init` sinks, `n_local` recent ones, `window` queries per probe. `topk` blocks per layer on
    average, between `min_blocks` and twice `topk`; `cached_blocks` stay on the device. `probe`: how the queries of a
    window become one (`mean` is InfLLM's, `window` the paper's, `running` the release's). `score_temperature` divides
    the cosines before the entropy; `cutoff` false gives every layer `topk`. `question_weight`: how often the cosine
    with the question's query counts in prefill, if the question is known (0: not at all).
    """

    block: int = tunable(32, low=1, high=256, log=True)
    n_init: int = tunable(64, low=0, high=1024)
    n_local: int = tunable(512, low=1, high=8192, log=True)
    window: int = tunable(256, low=1, high=2048, log=True)
    topk: int = tunable(46, low=1, high=1024, log=True)
    min_blocks: int = Field(32, ge=1)
    repr_topk: int = tunable(4, low=1, high=32)
    cached_blocks: int = Field(128, ge=1)
    probe: Literal["window", "running", "mean"] = tunable("window", choices=("window", "running", "mean"))
    score_temperature: float = tunable(1.0, low=0.001, high=1.0, log=True)
    cutoff: bool = tunable(True, choices=(True, False))
    question_weight: float = tunable(4.0, low=0.0, high=16.0)

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.n_init % self.block or self.repr_topk > self.block:
            raise ValueError("n_init must be a multiple of block, and repr_topk at most block")
        if self.cached_blocks < 2 * self.topk:
            raise ValueError(f"cached_blocks must hold the most blocks of a layer, 2 topk = {2 * self.topk}")
        return self


class ActQKV(AttentionMethod):
    """Recent tokens at true distances, retrieved blocks all at distance n_local, merged by log-sum-exp.

    The cache holds recent keys, rotated; a `BlockStore` per layer holds all keys as projected. Selection happens once
    per window of prefill and once per decoded token: one list per layer. `question` has the question's term.
    """

    card: ClassVar[Card] = Card(
        slug="actqkv",
        family="attention",
        title="Activation-aware Probe-Query: Effective Key-Value Retrieval for Long-Context LLMs Inference",
        source="arXiv 2502.13542",
        lossless=False,
        claims=CLAIMS,
    )
    Config = ActQKVConfig
    cost = staticmethod(costs.actqkv)
    pools_queries: ClassVar[bool] = True

    def prefill_chunk(self, config: Any) -> int:
        return int(config.window)

    def begin_batch(self, model: ModelConfig, config: Any, batch: int) -> None:
        self._model, self._config = model, config
        self._rope = Rope(model.rope, model.head_dim)
        self.dense_until = config.n_init + config.n_local
        self._evicting = not model.windows  # a sliding layer shares the cache and may still need what is evicted
        self._layers = [[LayerMemory.empty(model, config) for _ in range(batch)] for _ in range(model.layers)]
        self._cutoffs = [CutOff(model.layers, config.topk, config.min_blocks) for _ in range(batch)]

    def evict(self, cache: KVCache, counts: Any) -> None:
        """Tokens before the local window are in the stores: the cache gives them back, a part of a window at a time."""
        slack = self._config.window if max(counts) > 1 else max(1, self._config.n_local // 8)
        for row, length in enumerate(cache.lengths):
            excess = length - (self._config.n_local - 1)
            if self._evicting and cache.seen[row] >= self.dense_until and excess >= slack:
                cache.evict(row, 0, excess)

    def keep(self, layer: int, k: Tensor, v: Tensor, row: int, step: Step) -> None:
        """Flushes what the last pass left too old, and stores the new tokens."""
        state = self._layers[layer][row]
        state.flush(self._config.n_local + self._config.block, self._config.repr_topk)
        state.store.append(k, v)

    def learn(self, layer: int, q: Tensor, row: int, step: Step) -> None:
        """Adds the softmax mass that local attention of these queries gives to every pending token."""
        state, stop, reach = self._layers[layer][row], step.stops[row], self._config.n_local
        start = max(0, stop - len(q) - reach + 1)
        keys = step.cache.keys[layer][row, :, start:stop].contiguous()  # else torch takes a far slower path
        window = f"local window/{row}"
        mask = step.shared(window, lambda: local_mask(len(q), stop - start, reach)) if len(q) > 1 else None
        state.receive(local_mass(q, keys, self._model.scale, mask))

    def question_reader(self, row: int, prompt_tokens: int) -> QuestionReader | None:
        """A prompt that stays dense needs no question."""
        if not self._config.question_weight or prompt_tokens <= self.dense_until:
            return None
        return QuestionReader(self._model, self._one_angle, [layer[row] for layer in self._layers])

    def select(self, layer: int, q: Tensor, row: int, step: Step) -> Selection:
        """One query is its own probe."""
        state, local = self._layers[layer][row], self._config.n_local
        position, stop = int(step.positions[row, 0]), step.stops[row]
        pages, fetched = self._choose(layer, row, self._one_angle(q[None])[0].float())
        spans = state.store.spans(pages, position - local + 1, local)
        return Selection(
            torch.tensor([[[[stop - local, stop, position]]]], dtype=torch.int32),
            index_bytes=self.index_read(layer, row, step),
            fetch_bytes=fetched * state.store.page_bytes,
            elsewhere=Elsewhere(state.store.keys, state.store.values, spans),
        )

    def plan(self, layer: int, q: Tensor, row: int, first: int, step: Step) -> Plan:
        """All queries of a window read one list of blocks; what is pending between it and the local part, causally."""
        state, local = self._layers[layer][row], self._config.n_local
        store, probe = state.store, self._probe(state, self._one_angle(q))
        pages, _ = self._choose(layer, row, probe, state.asked)
        spans = store.spans(pages, store.tokens - local, local)[0, 0]
        slots = torch.cat([torch.arange(start, stop, dtype=torch.int32) for start, stop, _ in spans.tolist()])
        positions = torch.arange(first, first + len(q), dtype=torch.int32) + step.cache.evicted[row]
        far = Causal(torch.full_like(positions, local))
        beside = Beside(gather(store.keys, slots), gather(store.values, slots), len(slots) - len(q), far)
        return Merged([Causal(positions, window=local), beside])

    def index_read(self, layer: int, row: int, step: Step) -> int:
        """The representations of all blocks."""
        state = self._layers[layer][row]
        return state.reps[: state.blocks].nbytes

    def _one_angle(self, q: Tensor) -> Tensor:
        """q [T, H, D] at the one distance of all retrieved tokens, as features [T, H D]."""
        cos, sin = self._rope.tables(self._config.n_local + 1)
        return rotate(q, cos[self._config.n_local], sin[self._config.n_local]).flatten(1)

    def _probe(self, state: LayerMemory, h: Tensor) -> Tensor:
        return probe_query(self._config.probe, state.running, h)

    def _choose(self, layer: int, row: int, probe: Tensor, asked: Tensor | None = None) -> tuple[list[int], int]:
        """Pages of the best blocks in text order, now on the device, and how many came from the host."""
        state = self._layers[layer][row]
        if state.blocks == 0:
            return [], 0
        query = scorer(probe, asked, self._config.question_weight).to(state.reps.dtype)
        scores = gemv.linear(query[None], state.reps[: state.blocks], out_dtype=torch.float32)
        k = min(state.blocks, self._config.topk)
        if self._config.cutoff:
            k = self._cutoffs[row].deal(layer, density(scores[0] / self._config.score_temperature), state.blocks)
        pages = [state.store.sinks + block for block in top(scores, k)[0].tolist()]
        return pages, state.store.fetch(pages)

    def stored(self, row: int, step: Step) -> float:
        return float(step.stops[row] + step.cache.evicted[row])

    def kv_bytes(self) -> int:
        return sum(state.store.host_bytes + state.store.device_bytes for layer in self._layers for state in layer)

    def host_bytes(self) -> int:
        return sum(state.store.host_bytes for layer in self._layers for state in layer)

    def index_bytes(self) -> int:
        return sum(state.index_bytes for layer in self._layers for state in layer)

    def capacity(self, tokens: int) -> int:
        return min(tokens, self.dense_until + 2 * self._config.window) if self._evicting else tokens

    @classmethod
    def at_budget(cls, tokens: int) -> dict[str, Any]:
        """An eighth sinks, half local, the rest retrieved, in blocks of a 64th of the budget (2048: the defaults)."""
        block = max(1, tokens // 64)
        n_init, n_local = tokens // 8 // block * block, max(1, tokens // 2)
        topk = max(1, (tokens - n_init - n_local) // block)
        return {
            "block": block, "n_init": n_init, "n_local": n_local, "topk": topk, "window": max(1, tokens // 8),
            "min_blocks": max(1, topk * 2 // 3), "cached_blocks": 3 * topk, "repr_topk": min(4, block),
        }  # fmt: skip
