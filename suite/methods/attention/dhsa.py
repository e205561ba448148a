"""DHSA (arXiv 2510.24606, first version): chunks at learned boundaries, tokens by the score of their chunk."""

from __future__ import annotations

from typing import Any, ClassVar, Literal, Self, cast

from pydantic import Field, model_validator
from torch import Tensor

from suite.methods.attention import costs
from suite.methods.attention.base import AttentionMethod, Phase
from suite.methods.attention.chunk_selection import boundaries, choose, split_rows
from suite.methods.attention.selection import Causal, Gathered, Plan, Segments
from suite.methods.base import Card, Claim, MethodConfig, tunable
from suite.models import adapters
from suite.models.attention import Step
from suite.models.config import ModelConfig
from suite.models.language_model import LanguageModel
from suite.models.recipes.dhsa import BoundaryPredictor, features

WHOLE_PROMPT = 1 << 30

CLAIMS = (
    Claim("prefill-latency", "sparse prefill is faster than dense prefill, predictor and selection included",
          "Gemma2-2B, 8K tokens, budget 2K, block 256, shared boundaries and masks: 1.65 s -> 1.19 s",
          "prefill time, dhsa / dense", 0.72),
    Claim("prefill-memory", "prefill needs less memory than one that makes the L x L scores",
          "same: 10.72 GB -> 6.91 GB", "peak memory of prefill, dhsa / eager", 0.64),
    Claim("longer-prompts", "prompts that dense prefill cannot hold still fit", "16K: 2.18 s, 32K: 4.51 s, dense OOM",
          "time at 32K / at 16K", 2.07),
    Claim("dense-accuracy", "needle in a haystack as dense attention finds it", "Gemma2-2B, 1K-8K, budget 1K: alike",
          "accuracy, dhsa / dense", 1.0),
    Claim("beats-blocks", "learned chunks beat fixed blocks at equal budget", "+6-18 % relative over block sparsity",
          "accuracy, dhsa / fixed blocks", 1.06),
    Claim("sqrt-n", "sum / sqrt(n) chunk vectors select better than means", "ablation (section 3.2)",
          "attention recall, sqrt / mean"),
)  # fmt: skip


class DHSAConfig(MethodConfig):
    """`budget` tokens per query (N_b), or the share `density` of the prompt, are read by each block of `block` queries.

    Among them are the `recent` last ones, the own block always whole, and the `sinks` first ones. The last
    `instruction` tokens of the prompt read everything. A gap is a boundary where its logit exceeds `threshold`.
    Where the first layer attends evenly (SmolLM2) the boundaries it shares are few: then let every layer find its own.
    """

    budget: int = tunable(2048, low=1, high=131072, log=True)
    density: float | None = Field(None, gt=0, le=1)
    block: int = tunable(128, low=1, high=1024, log=True)
    recent: int = tunable(128, low=0, high=4096)
    sinks: int = tunable(128, low=0, high=1024)
    instruction: int = tunable(64, low=0, high=1024)
    threshold: float = tunable(1.1, low=-3.0, high=3.0)
    chunk_vector: Literal["sqrt", "mean", "sum"] = tunable("sqrt", choices=("sqrt", "mean", "sum"))
    share_boundaries: bool = tunable(True, choices=(True, False))
    share_masks: bool = tunable(False, choices=(True, False))

    @model_validator(mode="after")
    def _room(self) -> Self:
        if self.density is None and self.budget < self.least:
            raise ValueError(f"budget must hold the sinks and the own block: {self.least} tokens at least")
        return self

    @property
    def local(self) -> int:
        """Tokens up to the end of a block that it always reads."""
        return max(self.block, self.recent)

    @property
    def least(self) -> int:
        """The smallest budget."""
        return self.sinks + self.local

    def tokens(self, length: int) -> int:
        """N_b for a prompt of `length` tokens."""
        return self.budget if self.density is None else max(self.least, round(self.density * length))


class DHSA(AttentionMethod):
    """A small predictor splits the keys into chunks; each block of queries scores them and reads the best tokens.

    Block and chunk vectors are sums over their tokens (averaged over heads) divided by the root of their number, so
    that long and short chunks score alike. All heads read one list. Which tokens a block reads depends on all its
    queries, and on keys up to the end of a chunk; what a query reads of them is causal. Decode reads everything, as in
    the release. One deviation: there only `recent` tokens of the own block are sure to be read, here the whole block.
    """

    card: ClassVar[Card] = Card(
        slug="dhsa",
        family="attention",
        title="Long-Context Modeling with Dynamic Hierarchical Sparse Attention for On-Device LLMs",
        source="arXiv 2510.24606v1",
        lossless=False,
        needs=("adapter",),
        claims=CLAIMS,
    )
    Config = DHSAConfig
    cost = staticmethod(costs.dhsa)
    acts_in: ClassVar[tuple[Phase, ...]] = ("prefill",)
    verifies: ClassVar[bool] = True
    pools_queries: ClassVar[bool] = True

    def prefill_chunk(self, config: Any) -> int:
        return WHOLE_PROMPT

    def refusal(self, model: LanguageModel, config: Any) -> str | None:
        return super().refusal(model, config) or adapters.missing("dhsa", model)

    def prepare(self, model: LanguageModel, config: Any) -> None:
        """Loads the boundary predictor trained for this model."""
        self._predictor = cast(BoundaryPredictor, adapters.load("dhsa", model))

    def begin_batch(self, model: ModelConfig, config: Any, batch: int) -> None:
        self._config = config
        self._lists: dict[int, Tensor] = {}

    def learn(self, layer: int, q: Tensor, row: int, step: Step) -> None:
        """Makes the lists of this row and layer. q [T, H, D] and the stored keys are rotated by position."""
        rows = split_rows(self._config, step.starts[row], len(q))
        if rows is None or step.width == 1:
            return

        def make() -> Tensor:
            keys = step.cache.keys[layer][row, :, : step.stops[row]]
            return choose(q, keys, self._boundaries(keys, row, step), rows, self._config)

        self._lists[row] = step.shared(f"dhsa/lists/{row}", make) if self._config.share_masks else make()

    def _boundaries(self, keys: Tensor, row: int, step: Step) -> Tensor:
        """Chunk edges of a row, those of its first layer if all share them."""

        def make() -> Tensor:
            logits = self._predictor(features(keys)[None])[0]
            return boundaries(logits, self._config)

        return step.shared(f"dhsa/boundaries/{row}", make) if self._config.share_boundaries else make()

    def plan(self, layer: int, q: Tensor, row: int, first: int, step: Step) -> Plan | None:
        rows = split_rows(self._config, first, len(q))
        if rows is None:
            return None
        positions, stop = step.positions[row, : len(q)], rows.lead + rows.sparse
        parts: list[tuple[int, Plan]] = [
            (rows.lead, Causal(positions[: rows.lead])),
            (rows.sparse, Gathered(self._lists.pop(row), rows.block, positions[rows.lead : stop])),
            (rows.tail, Causal(positions[stop:])),
        ]
        return Segments([part for part in parts if part[0]])

    @classmethod
    def at_budget(cls, tokens: int) -> dict[str, Any]:
        part = min(128, tokens // 8)
        return {"budget": tokens, "block": max(1, part), "recent": part, "sinks": part}
