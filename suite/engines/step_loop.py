"""Two step loops over the native decoder: one whose parts wait for each other, one whose parts do not.

The second is the idea of the totally asynchronous generator of Qwen2.5-1M (TAG, arXiv 2501.15383; card qwen2_5_1m,
section 6). Scheduler and detokeniser are processes of their own. Step n+1 starts as if no row had ended in step n; what
the detokeniser finds out later arrives as a change of rows, and the tokens that an ended row made meanwhile are
discarded. Both loops decode greedily, and give the same tokens. What is measured is the model runner's idle time.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

import torch

from kernels.sample import sample
from suite.engines.step_front import Change, Detokeniser, Scheduler
from suite.engines.step_processes import front_processes
from suite.models.attention import DenseAttention
from suite.models.cache import KVCache
from suite.models.language_model import LanguageModel
from workloads.schema import Request


@dataclass(frozen=True)
class Output:
    """One request's tokens, its text before the stop string, and why it ended."""

    token_ids: tuple[int, ...]
    text: str
    stop_reason: str


@dataclass(frozen=True)
class Run:
    """One run of a loop. `steps_ns` are start and end of each step's computation, `known_ns` when its text was known.

    Times are `time.perf_counter_ns()`. `discarded` counts tokens made for requests that had already ended.
    """

    outputs: list[Output]
    steps_ns: list[tuple[int, int]]
    known_ns: list[int]
    discarded: int

    @property
    def gaps_ns(self) -> list[int]:
        """From the end of each step to the start of the next."""
        return [start - end for (_, end), (start, _) in pairwise(self.steps_ns)]

    @property
    def idle_s(self) -> float:
        """All gaps together."""
        return sum(self.gaps_ns) / 1e9

    @property
    def median_gap_us(self) -> float:
        """The usual gap."""
        return median(self.gaps_ns) / 1e3

    @property
    def idle_share(self) -> float:
        """Of the time from the first step's start to the last one's end."""
        return self.idle_s * 1e9 / (self.steps_ns[-1][1] - self.steps_ns[0][0])

    @property
    def tokens_per_s(self) -> float:
        """Tokens kept, from the first step's start until the last text is known."""
        tokens = sum(len(output.token_ids) for output in self.outputs)
        return tokens * 1e9 / (max(self.known_ns) - self.steps_ns[0][0])


class Runner:
    """Runs the model: a prefill for rows that got a request, else one decode step of all rows.

    A row stops by itself at its limit, which is known beforehand. Rows without work go along with an empty cache.
    """

    def __init__(self, model: LanguageModel, requests: Sequence[Request], rows: int) -> None:
        self._model = model
        longest = max(len(model.tokenizer.prompt(one.prompt, one.chat)) + one.max_new_tokens for one in requests)
        self._cache = model.decoder.new_cache(rows, longest)
        self._attention = DenseAttention(model.config)
        self._running: dict[int, int] = {}
        self._left = [0] * rows
        self._last = [0] * rows
        self._fills: list[Change] = []
        self.steps_ns: list[tuple[int, int]] = []

    @property
    def idle(self) -> bool:
        """There is nothing to compute."""
        return not self._running and not self._fills

    def change(self, changes: Iterable[Change]) -> None:
        """These rows drop what they do."""
        for change in changes:
            self._running.pop(change.row, None)
            if change.request >= 0:
                self._fills.append(change)

    def step(self) -> list[tuple[int, int]]:
        """Computes one token for some rows; returns (request, token) of each."""
        start = time.perf_counter_ns()
        with torch.inference_mode():
            tokens = self._prefill() if self._fills else self._decode()
        self.steps_ns.append((start, time.perf_counter_ns()))
        return [self._record(row, token) for row, token in tokens.items()]

    def _prefill(self) -> dict[int, int]:
        """Every prompt alone, so that its result does not depend on what else waits."""
        tokens = {}
        for fill in self._fills:
            own = KVCache(self._model.config, 1, self._model.decoder.dtype, len(fill.ids))
            tokens[fill.row] = self._draw(self._model.decoder(torch.tensor([fill.ids]), own, self._attention))[0]
            self._adopt(own, fill.row)
            self._running[fill.row], self._left[fill.row] = fill.request, fill.limit
        self._fills = []
        return tokens

    def _adopt(self, own: KVCache, row: int) -> None:
        length = own.lengths[0]
        for ours, theirs in zip((*self._cache.keys, *self._cache.values), (*own.keys, *own.values), strict=True):
            ours[row, :, :length] = theirs[0, :, :length]
        self._cache.lengths[row] = length

    def _decode(self) -> dict[int, int]:
        for row in set(range(self._cache.batch)) - self._running.keys():
            self._cache.truncate(row, 0)
        drawn = self._draw(self._model.decoder(torch.tensor(self._last)[:, None], self._cache, self._attention))
        return {row: drawn[row] for row in self._running}

    def _draw(self, logits: torch.Tensor) -> list[int]:
        tokens: list[int] = sample(logits, torch.zeros(len(logits)), temperature=0.0).tolist()
        return tokens

    def _record(self, row: int, token: int) -> tuple[int, int]:
        request = self._running[row]
        self._last[row] = token
        self._left[row] -= 1
        if self._left[row] == 0:
            del self._running[row]
        return request, token


def synchronous(model: LanguageModel, requests: Sequence[Request], rows: int) -> Run:
    """Schedule, compute, detokenise and look for the end, then the next step."""
    runner, scheduler = Runner(model, requests, rows), Scheduler(model.tokenizer, requests, rows)
    detokeniser = Detokeniser(model.tokenizer, requests, model.config.eos_ids)
    runner.change(scheduler.first)
    while not scheduler.done:
        runner.change(scheduler.plan(detokeniser.take(runner.step())))
    return _run(runner, detokeniser.report())


def asynchronous(model: LanguageModel, requests: Sequence[Request], rows: int) -> Run:
    """The runner hands its tokens on and takes the next step at once, with the changes that have arrived until then."""
    with front_processes(model, requests, rows) as front:
        runner = Runner(model, requests, rows)
        while (changes := front.changes(wait=runner.idle)) is not None:
            runner.change(changes)
            if not runner.idle:
                front.detokenise(runner.step())
        return _run(runner, front.report())


def _run(runner: Runner, report: Mapping[str, Any]) -> Run:
    outputs = [Output(tuple(tokens), text, reason) for tokens, text, reason in report["outputs"]]
    return Run(outputs, runner.steps_ns, report["known_ns"], report["discarded"])
