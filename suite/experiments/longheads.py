"""LongHeads' claims: recall far beyond the trained length on the lab model, and cost per token against cache length.

The recall grid is the small experiment of the card; its columns are the plain model, sinks + recent window, LongHeads,
and LongHeads with random chunks as the control at the same budget. The cost curves decode with the
default model, and read 512 more tokens of a prompt, over a cache filled synthetically (prefilling 64K tokens on a CPU
would take many minutes), whose keys and chunk index have the real shapes and sizes.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from analysis.statistics import ratio_of_means
from kernels.select_top import top
from suite.experiments.base import Experiment, Workbench
from suite.experiments.recall import (
    LONG_TRAINED,
    TRAINED,
    Column,
    Grid,
    long_retrieval,
    means,
    passkey_scores,
    recall_grid,
)
from suite.experiments.synthetic import filled_cache, race_steps
from suite.harness.measurement import Finding
from suite.methods.attention.base import SelectedAttention
from suite.methods.attention.dense import Dense
from suite.methods.attention.longheads import LongHeads, LongHeadsConfig
from suite.methods.attention.selection import Selection
from suite.methods.attention.streaming import Streaming, StreamingConfig
from suite.methods.base import Claim
from suite.models.attention import DenseAttention, Step
from suite.models.generation import PREFILL_CHUNK
from suite.models.language_model import LanguageModel
from suite.models.loaders import load_model
from workloads.schema import Request

SEQUENCES = 60  # per length: the interval of an accuracy near 0.9 is then about +-0.06
LENGTHS = (128, 256, 512, 1024)
LAB = LongHeadsConfig(chunk=8, attention_length=128)
LAB_LONG = LongHeadsConfig(**LongHeads.at_budget(LONG_TRAINED))
SERVED = LongHeadsConfig(chunk=64, attention_length=1024)
CACHE_LENGTHS = (2048, 8192, 32768, 65536)
ROUNDS = 15  # timed passes per method and cache length
PASS_LENGTHS = (2048, 4096, 8192, 16384)
PASSKEYS, PASSKEY_TOKENS = 10, 2048


class RandomChunks(LongHeads):
    """The control: as many chunks per head, drawn at random."""

    def _best(self, q: Tensor, reps: Tensor, last: Tensor, selections: int) -> Tensor:
        scores = torch.rand(len(q) * selections, reps.shape[1], generator=self._random)
        best = top(scores, self._chosen, last.repeat_interleave(selections), first=1)
        return best.view(len(q), selections, self._chosen)

    _random = torch.Generator().manual_seed(0)


class Watched(LongHeads):
    """LongHeads that remembers which chunks each head of each layer chose for the last token."""

    def __init__(self) -> None:
        self.chosen: dict[int, list[set[int]]] = {}

    def select(self, layer: int, q: Tensor, row: int, step: Step) -> Selection:
        selection = super().select(layer, q, row, step)
        self.chosen[layer] = [
            {start // self._config.chunk for start, stop, _ in head if stop > start}
            for head in selection.spans[0].tolist()
        ]
        return selection


@dataclass
class Recall:
    """Digit accuracies (0 to 1) by column of the card's table and length, and what the heads chose at the longest."""

    accuracy: Grid = field(default_factory=dict)
    needle_share: list[float] = field(default_factory=list)
    jaccard: list[float] = field(default_factory=list)


class LongHeadsExperiment(Experiment):
    """Recall grid, passkey on the default model, cost curve."""

    slug: ClassVar[str] = "longheads"

    def findings(self, bench: Workbench) -> Iterator[Finding]:
        torch.set_num_threads(bench.threads)
        flat, plain, passkey, cost, prefill, memory, far = LongHeads.card.claims
        yield from self._recall(bench, flat, plain)
        yield self._long(bench, far)
        model = load_model("smollm2-135m", "bf16")
        yield self._passkey(bench, model, passkey)
        yield self._cost(bench, model, cost, CACHE_LENGTHS, 1)
        yield self._cost(bench, model, prefill, PASS_LENGTHS, PREFILL_CHUNK)
        yield self.finding(memory, None, "needs a GPU and a 7B model", reason="no GPU here, and the model does not fit")

    def _recall(self, bench: Workbench, flat: Claim, plain: Claim) -> Iterator[Finding]:
        found = recall(load_model("lab-recall", "fp32"), bench)
        ours, dense = found.accuracy["longheads"], found.accuracy["plain"]
        farthest = LENGTHS[-1]
        conditions = (
            f"lab-recall (trained on {TRAINED}), {SEQUENCES} sequences per length, fp32, "
            f"w={LAB.chunk}, A={LAB.attention_length}"
        )
        details: dict[str, Any] = {
            "accuracy": means(found.accuracy),
            "share_of_heads_with_needle_chunk": statistics.fmean(found.needle_share),
            "jaccard_between_heads": statistics.fmean(found.jaccard),
            "samples": found.accuracy,
        }
        kept = ratio_of_means(ours[farthest], ours[TRAINED])
        without = statistics.fmean(dense[farthest]) / statistics.fmean(dense[TRAINED])
        yield self.finding(flat, kept, conditions, null=without, details=details)
        yield self.finding(plain, ratio_of_means(ours[farthest], dense[farthest]), conditions)

    def _long(self, bench: Workbench, claim: Claim) -> Finding:
        found = long_retrieval("longheads", (LongHeads(), LAB_LONG), bench)
        settings = f"w={LAB_LONG.chunk}, A={LAB_LONG.attention_length}; {found.conditions}"
        return self.finding(claim, found.kept, settings, null=found.plain, details=found.details)

    def _passkey(self, bench: Workbench, model: LanguageModel, claim: Claim) -> Finding:
        """Both at the same length, because the default model itself is shaky at 2K."""
        columns: dict[str, Column] = {"plain": (Dense(), Dense.Config()), "longheads": (LongHeads(), SERVED)}
        scores = passkey_scores(model, columns, PASSKEY_TOKENS, PASSKEYS, bench)
        conditions = (
            f"smollm2-135m bf16, {PASSKEYS} prompts of about {PASSKEY_TOKENS} tokens, A={SERVED.attention_length}; "
            "the same prompts, dense"
        )
        by_recency = SERVED.attention_length / PASSKEY_TOKENS  # what a recent window of the same size would find
        estimate = ratio_of_means(scores["longheads"], scores["plain"])
        reason = "" if estimate else "the dense model retrieves no key at this length"
        return self.finding(claim, estimate, conditions, null=by_recency, reason=reason, details={"scores": scores})

    def _cost(self, bench: Workbench, model: LanguageModel, claim: Claim, lengths: Sequence[int], new: int) -> Finding:
        """Passes of `new` tokens behind caches of these lengths."""
        curve = {length: step_times(model, length, bench, new) for length in lengths}
        first, last = curve[lengths[0]], curve[lengths[-1]]
        dense = ratio_of_means(last["dense"], first["dense"])
        conditions = (
            f"smollm2-135m bf16, synthetic cache, {new} new tokens, {bench.threads} threads, "
            f"w={SERVED.chunk}, A={SERVED.attention_length}; dense grows {dense.value if dense else 0:.2f}x"
        )
        estimate = ratio_of_means(last["longheads"], first["longheads"])
        details = {
            "step_ms": curve,
            "median_step_ms": {n: {k: statistics.median(v) for k, v in row.items()} for n, row in curve.items()},
        }
        null = dense.value if dense else 1.0
        return self.finding(claim, estimate, conditions, direction="at most", null=null, details=details)


def recall(model: LanguageModel, bench: Workbench) -> Recall:
    """The card's table on the lab model, with a look at what the heads chose at the longest length."""
    watched, found = Watched(), Recall()
    columns: dict[str, Column] = {
        "plain": (Dense(), Dense.Config()),
        "sinks_and_recent": (Streaming(), StreamingConfig(sinks=4, window=LAB.attention_length - 4)),
        "longheads": (watched, LAB),
        "random_chunks": (RandomChunks(), LAB),
    }

    def look(name: str, length: int, request: Request) -> None:
        if name == "longheads" and length == LENGTHS[-1]:
            _note_choices(found, watched, request.metadata["needle_token"] // LAB.chunk)

    found.accuracy = recall_grid(model, columns, LENGTHS, SEQUENCES, bench, look)
    return found


def _note_choices(recall: Recall, watched: Watched, needle: int) -> None:
    """Share of heads that read the needle's chunk, and the mean overlap of what two heads of a layer read."""
    heads = [chosen for layer in watched.chosen.values() for chosen in layer]
    recall.needle_share.append(statistics.fmean(needle in chosen for chosen in heads))
    for layer in watched.chosen.values():
        pairs = [(a, b) for i, a in enumerate(layer) for b in layer[i + 1 :]]
        recall.jaccard.append(statistics.fmean(len(a & b) / len(a | b) for a, b in pairs))


def step_times(model: LanguageModel, tokens: int, bench: Workbench, new: int = 1) -> dict[str, list[float]]:
    """Milliseconds of passes of `new` tokens behind a cache of `tokens`, dense and LongHeads interleaved."""
    bench.tick(f"filling caches of {tokens} tokens")
    method = LongHeads()
    method.begin_batch(model.config, SERVED, 1)
    attentions = {"dense": DenseAttention(model.config), "longheads": SelectedAttention(model.config, method)}
    cache = filled_cache(model, tokens, new, partial(index_piece, model, method))
    bench.tick(f"timing {new} new tokens behind {tokens}")
    return race_steps(model, cache, attentions, ROUNDS, new=new)


def index_piece(model: LanguageModel, method: LongHeads, step: Step, layer: int, generator: torch.Generator) -> None:
    """The method itself builds its index over random queries."""
    q = torch.randn(step.width, model.config.heads, model.config.head_dim, generator=generator)
    method.learn(layer, q.to(step.cache.dtype), 0, step)
