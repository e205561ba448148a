"""TAG's row of the Qwen2.5-1M ledger: the model runner's idle time in the suite's own two step loops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import fmean

import torch

from analysis.statistics import Estimate, paired_ratio
from suite.engines.step_loop import Run, asynchronous, synchronous
from suite.experiments.base import Workbench
from suite.experiments.texts import prose
from suite.harness.heap import quiet_heap
from suite.models.language_model import LanguageModel
from workloads.generators.seeding import item_rng
from workloads.schema import Request

ROWS, REQUESTS, ROUNDS = 8, 16, 5
PROMPT_TOKENS, NEW_TOKENS = (16, 48), (16, 48)
STOPS = (".",)
"""On every other request, so that some end before their limit, which only the detokeniser can see."""
LOOPS = {"synchronous": synchronous, "asynchronous": asynchronous}


@dataclass
class LoopRace:
    """Runs of both loops over the same requests, in turn; the order changes from round to round."""

    runs: dict[str, list[Run]] = field(default_factory=lambda: {name: [] for name in LOOPS})

    @property
    def identical(self) -> bool:
        """All runs gave the same tokens, texts and ends."""
        first = self.runs["synchronous"][0].outputs
        return all(run.outputs == first for runs in self.runs.values() for run in runs)

    def idle_ratio(self) -> Estimate | None:
        """Idle seconds of the runner in a whole run, asynchronous / synchronous."""
        return self._ratio(lambda run: run.idle_s)

    def speed_ratio(self) -> Estimate | None:
        """Tokens per second, asynchronous / synchronous."""
        return self._ratio(lambda run: run.tokens_per_s)

    def _ratio(self, figure: Callable[[Run], float]) -> Estimate | None:
        values = {name: {("round", i): figure(run) for i, run in enumerate(runs)} for name, runs in self.runs.items()}
        return paired_ratio(values["asynchronous"], values["synchronous"])

    def told(self, name: str) -> str:
        """One loop's figures, averaged over its runs."""
        runs = self.runs[name]
        gap, share = fmean(run.median_gap_us for run in runs), fmean(run.idle_share for run in runs)
        rate, lost = fmean(run.tokens_per_s for run in runs), fmean(run.discarded for run in runs)
        return f"{name} median gap {gap:.0f} us, {share:.2%} idle, {rate:.1f} tokens/s, {lost:.1f} tokens discarded"

    def details(self) -> dict[str, list[dict[str, float]]]:
        """Every run's figures."""
        names = ("idle_s", "median_gap_us", "idle_share", "tokens_per_s", "discarded")
        return {
            loop: [{name: getattr(run, name) for name in names} for run in runs] for loop, runs in self.runs.items()
        }


def race_loops(bench: Workbench, model: LanguageModel) -> LoopRace:
    """The runner computes on one thread, so that there is a core for the other processes; a first turn is not kept."""
    waiting, race = requests(model), LoopRace()
    torch.set_num_threads(1)
    try:
        for turn in range(ROUNDS + 1):
            for name in sorted(LOOPS, reverse=turn % 2 == 0):
                bench.tick(f"{name} step loop, round {turn} of {ROUNDS}")
                with quiet_heap():
                    run = LOOPS[name](model, waiting, ROWS)
                if turn:
                    race.runs[name].append(run)
    finally:
        torch.set_num_threads(bench.threads)
    return race


def requests(model: LanguageModel) -> list[Request]:
    """Prose to go on with, of different lengths, and different numbers of tokens to make."""
    draw = item_rng("step loop", 0)
    made = []
    for number in range(REQUESTS):
        ids = prose(model, int(draw.randint(*PROMPT_TOKENS)), seed=number)[0].tolist()
        made.append(
            Request(
                id=f"step-{number}", task="step loop", metric="none", prompt=model.tokenizer.decode(ids),
                max_new_tokens=int(draw.randint(*NEW_TOKENS)), stop=STOPS if number % 2 else (),
            )
        )  # fmt: skip
    return made
