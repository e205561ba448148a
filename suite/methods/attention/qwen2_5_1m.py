"""Qwen2.5-1M (arXiv 2501.15383): dual chunk attention, attention temperature, and vertical-slash sparse prefill."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field
from torch import Tensor

from suite.methods.attention import costs
from suite.methods.attention.base import AttentionMethod, Phase
from suite.methods.attention.dual_chunk import DualChunk, Region, whole
from suite.methods.attention.head_sparsity import HeadSparsity
from suite.methods.attention.selection import Listed, Merged, Plan, Segments, Selection
from suite.methods.attention.spans import stack
from suite.methods.attention.vertical_slash import LAST_QUERIES, find, line_sums, region_lists
from suite.methods.base import Card, Claim, MethodConfig, tunable
from suite.models.attention import Step
from suite.models.config import ModelConfig
from suite.models.language_model import LanguageModel
from suite.models.rope import Rope, rotate

CLAIMS = (
    Claim("length-extrapolation", "dual chunk attention keeps accuracy far beyond the trained length, untrained",
          "usable length x4 or more; Qwen2.5-7B-Instruct (32K trained) nearly perfect on 1M passkey",
          "digit accuracy at 16x / at the trained length", 0.94),
    Claim("beats-plain", "plain rotary positions lose accuracy there", "same setting",
          "digit accuracy, dual chunk / plain"),
    Claim("prefill-speed-up", "sparse chunked prefill against full attention", "3.2x-6.7x at 1M tokens, whole stack",
          "attention time, dense / sparse, at the longest length measured", 3.2),
    Claim("refinement", "refined per-head sparsity recovers attention mass that the short search loses",
          "most of the loss beyond 400K recovered", "attention recall after refinement", 0.95),
    Claim("activation-memory", "chunked prefill needs a fraction of the activation memory",
          "-96.7 % at 1M tokens in chunks of 32,768 (7B)", "1 - peak chunked / whole, at the same chunk share", 0.967),
    Claim("dynamic-chunks", "pipeline stages wait less when chunks shrink as their prefix grows (DCPP)",
          "128K over 4 stages (ROCm/ATOM): fixed 32K 14.9 s, best fixed 10.1 s, dynamic 9.8 s",
          "simulated prefill time, fixed 32K / dynamic", 1.52),
    Claim("long-retrieval", "passages and facts are still found at 32 times the trained length",
          "32K trained, nearly perfect on 1M passkey", "digit accuracy at 32x / at 1x", 0.94),
    Claim("asynchronous-steps", "the device does not wait between steps when scheduler, model runner and detokeniser "
          "do not wait for each other (TAG)", "no figure of its own",
          "idle time of the model runner between steps, asynchronous / synchronous"),
)  # fmt: skip


class Qwen25Config(MethodConfig):
    """`chunk` and `local` are s and l of dual chunk attention in tokens (0: 3/4 and 1/8 of the trained window).

    In passes that reach beyond `sparse_from` tokens a head keeps `verticals` columns and `slashes` diagonals, the first
    `sinks` columns and the `near` diagonals next to the main one always among them. `heads` is a JSON file with figures
    of its own for every head; one that is not there is refined on a text of `calibration` tokens (`refinement`).
    """

    chunk: int = tunable(0, low=0, high=1 << 20)
    local: int = tunable(0, low=0, high=1 << 17)
    temperature: bool = tunable(True, choices=(True, False))
    verticals: int = tunable(1000, low=1, high=1 << 16, log=True)
    slashes: int = tunable(6096, low=1, high=1 << 16, log=True)
    sinks: int = Field(30, ge=0)
    near: int = Field(100, ge=1)
    sparse_from: int = tunable(32768, low=0, high=1 << 20)
    pass_tokens: int = tunable(32768, low=64, high=1 << 17, log=True)
    heads: Path | None = None
    calibration: int = Field(8192, ge=256)


class Qwen25OneM(AttentionMethod):
    """No distance exceeds s: keys are rotated by position mod c = s - l, and queries stand at one of three places.

    Prefill walks segments that end at multiples of c. A sparse segment estimates its pattern with its own last 64
    queries at continuous ("critical") positions, because the constant position of far regions hides diagonals; the
    attention itself uses the clamped ones. Decode reads everything. The temperature is that of the number of tokens a
    query sees, so it does not depend on how the prompt is cut into passes.
    """

    card: ClassVar[Card] = Card(
        slug="qwen2_5_1m",
        family="attention",
        title="Qwen2.5-1M Technical Report",
        source="arXiv 2501.15383",
        lossless=False,
        claims=CLAIMS,
    )
    Config = Qwen25Config
    cost = staticmethod(costs.qwen2_5_1m)
    acts_in: ClassVar[tuple[Phase, ...]] = ("prefill",)
    pools_queries: ClassVar[bool] = True
    verifies: ClassVar[bool] = True
    _heads: HeadSparsity | None = None

    def refusal(self, model: LanguageModel, config: Any) -> str | None:
        chunks = dual_chunk(config, model.window)
        if not 0 < chunks.local <= chunks.period or chunks.size > model.window:
            return (
                f"qwen2_5_1m needs 0 < local <= chunk - local and chunk <= {model.window}, the trained window of "
                f"{model.name}; got chunk={chunks.size}, local={chunks.local}"
            )
        if model.config.rope.kind != "default":
            return f"{model.name} scales its rotary positions ({model.config.rope.kind}), which qwen2_5_1m replaces"
        return super().refusal(model, config)

    def prepare(self, model: LanguageModel, config: Any) -> None:
        """Reads the per-head sparsity, or makes it: one pass over `calibration` tokens that the model writes itself."""
        if config.heads is None:
            return
        if not config.heads.exists():
            from suite.methods.attention.refinement import refine  # it is a method of this kind itself

            refine(model, config).write(config.heads, model)
        self._heads = HeadSparsity.read(config.heads, model, config)

    def prefill_chunk(self, config: Any) -> int:
        return int(config.pass_tokens)

    def begin_batch(self, model: ModelConfig, config: Any, batch: int) -> None:
        self._model, self._config = model, config
        self.chunks = dual_chunk(config, model.window)
        self.key_period = self.chunks.period
        self._rope = Rope(model.rope, model.head_dim)
        self.heads = self._heads or HeadSparsity.uniform(model, config)

    def sharpen(self, seen: Tensor) -> Tensor | None:
        """sigma^2 with sigma = max(1, 0.1 ln(L / T0) + 1): YaRN's temperature (2309.00071), frequencies untouched."""
        if not self._config.temperature:
            return None
        return (0.1 * (seen / self._model.window).log() + 1).clamp(min=1).square()

    def select(self, layer: int, q: Tensor, row: int, step: Step) -> Selection:
        return step.shared(f"dual chunk/{row}", lambda: Selection(self.reads(step.stops[row] - 1, 1, row, step)))

    def reads(self, first: int, count: int, row: int, step: Step) -> Tensor:
        return stack([Selection(self.chunks.spans(slot)) for slot in range(first, first + count)]).spans

    def plan(self, layer: int, q: Tensor, row: int, first: int, step: Step) -> Plan:
        parts: list[tuple[int, Plan]] = []
        for start, count in self.chunks.segments(first, len(q)):
            regions = self.chunks.regions(start, count)
            parts.append((count, self.segment(layer, q[start - first :][:count], row, start, regions, step)))
        return Segments(parts)

    def segment(self, layer: int, q: Tensor, row: int, first: int, regions: list[Region], step: Step) -> Plan:
        """How the queries q [T, H, D] of one chunk, at slots first, ..., are read."""
        if first + len(q) > self._config.sparse_from:
            return self.sparse(layer, q, row, first, regions, step)
        return whole(regions, first, len(q))

    def sparse(self, layer: int, q: Tensor, row: int, first: int, regions: list[Region], step: Step) -> Plan:
        """The vertical-slash plan of one segment."""
        keys = step.cache.keys[layer][row, :, : first + len(q)]
        sums = self._estimate(q[-LAST_QUERIES:], keys, regions)
        pattern = find(*sums, self.heads.layer(layer))
        lists = [region_lists(pattern, first, len(q), region.start, region.stop) for region in regions]
        return Merged([Listed(some, region.positions) for some, region in zip(lists, regions, strict=True)])

    def _estimate(self, q: Tensor, keys: Tensor, regions: list[Region]) -> tuple[Tensor, Tensor]:
        """`line_sums` of the last r queries q [r, H, D], every region seen from continuous query positions."""
        cos, sin = self._rope.tables(max(int(region.critical[-1]) for region in regions) + 1)
        looks = []
        for region in regions:
            places = region.critical[-len(q) :].long()
            turned = rotate(q, cos[places, None], sin[places, None]) * self._model.scale
            grouped = turned.transpose(0, 1).reshape(self._model.kv_heads, -1, self._model.head_dim)
            looks.append((slice(region.start, region.stop), grouped))
        return line_sums(looks, keys, len(q))

    @classmethod
    def at_budget(cls, tokens: int) -> dict[str, Any]:
        """About `tokens` per query, counting the two blocks of 64 keys that a diagonal costs."""
        half = max(1, tokens // 2)
        near = max(1, half // 128)
        return {"verticals": half, "slashes": near, "near": near, "sinks": min(30, tokens // 8), "sparse_from": tokens}


def dual_chunk(config: Any, window: int) -> DualChunk:
    """The chunks a config asks for on a model trained on `window` tokens (ChunkLlama's rule where it says 0)."""
    return DualChunk(config.chunk or window * 3 // 4, config.local or window // 8)
