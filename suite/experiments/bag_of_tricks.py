"""Bag of Tricks as a study: which of its directions hold on the reasoning lab, each with its interval.

The runs are those of `bag_of_tricks.toml`, which `suite sweep` measures as well: one trick is varied, all else stays at
the paper's defaults. Temperature and top-p are chosen on other questions than those that are reported.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

import torch

from analysis.statistics import mean_estimate
from suite.experiments.base import Experiment, Workbench
from suite.experiments.thinking import differences
from suite.harness.contender import Contender
from suite.harness.measurement import Finding
from suite.harness.meter import RequestMeter
from suite.harness.options import make_workload, named_options
from suite.methods.base import Claim
from suite.models.loaders import load_model
from suite.spec import MethodSpec, WorkloadSpec
from workloads.schema import Request

SWEEP = Path(__file__).with_suffix(".toml")
DEFAULTS = "temperature=0.7,top_p=0.9"
TEMPERATURES, TOP_PS = (0.6, 0.7, 0.8, 0.9, 1.0), (0.6, 0.7, 0.8, 0.9, 1.0)
DEV_SEED, DEV_QUESTIONS = 1, 100

CLAIMS = (
    Claim("temperature", "a temperature tuned for the task is better than the default", "up to 5 points",
          "points on other questions", 5.0),
    Claim("top-p", "a top-p tuned for the task is better than the default", "up to 5 points",
          "points on other questions", 5.0),
    Claim("prompt", "the instruction prompt has a large effect", "standard, CoT, reflective CoT", "points"),
    Claim("self-evaluation", "self-evaluation often cannot tell good solutions from bad ones",
          "best of N by self-evaluation against random selection", "points against random selection", 0.0),
    Claim("rewards", "what a reward is made of matters", "differs by task", "points, process - outcome reward, N=16"),
    Claim("inflation", "under a poor reward more samples are worse", "rewards can inflate apparent gains",
          "points, N=16 against N=4", 0.0),
    Claim("sum", "gains of combined tricks do not simply add", "voting and reward together against the sum of both",
          "points against the sum of the gains", 0.0),
    Claim("steps", "choosing at every step is better than choosing at the end, at equal N", "six methods, one budget",
          "points, step-level against whole best of N, N=16", 0.0),
    Claim("tree", "tree search is better than step-level choice", "MCTS against step-level best of N", "points", 0.0),
)  # fmt: skip

NOTHING_LEFT = "where one of 16 samples is right, best of N finds it at its end (the exact oracle finds no more)"
SHORTFALLS = {
    "temperature": "a vote of 16 hardly depends on it near the default; it would hold where the default is far off",
    "top-p": "a vote of 16 hardly depends on it near the default; it would hold where the default is far off",
    "self-evaluation": "these policies are sure where they are right; it is said of models that are asked in words",
    "rewards": "both rewards tell right from wrong (reasoning_lab); it would hold where one of them is poor",
    "inflation": "at this temperature most single samples are right; it does hold at T=1, where best of 16 is worse "
    "than best of 4 (ablations of particle_filtering)",
    "steps": f"{NOTHING_LEFT}; it would hold where whole samples are seldom right (particle filtering on chain-early)",
    "tree": f"{NOTHING_LEFT}, and no step needs a look ahead; it would hold where early steps are judged badly",
}


@dataclass(frozen=True)
class Cell:
    """One method on one task: the score of every question (0 or 100), and its tokens."""

    scores: list[float]
    tokens: list[float]
    sequential: list[float]


Table = dict[tuple[str, str], Cell]
"""By task and method, as the sweep writes it."""


class BagOfTricksExperiment(Experiment):
    """The whole sweep, then one row for each direction; the table is in the details of the first row."""

    slug: ClassVar[str] = "bag_of_tricks"
    shortfalls: ClassVar[Mapping[str, str]] = SHORTFALLS

    def findings(self, bench: Workbench) -> Iterator[Finding]:
        torch.set_num_threads(bench.threads)
        sweep = tomllib.loads(SWEEP.read_text())
        study = Study(sweep["defaults"]["model"], sweep["defaults"]["limit"], bench)
        tasks, methods = sweep["axes"]["task"], sweep["axes"]["method"]
        table = {(task, method): study.run(task, method) for task in tasks for method in methods}
        rows = {claim.id: claim for claim in CLAIMS}
        details = {"table": shown(table), "unit": "accuracy %, tokens, sequential tokens"}
        for name, values, method in (("temperature", TEMPERATURES, tempered), ("top-p", TOP_PS, nucleus)):
            chosen = {task: study.best(task, [method(value) for value in values]) for task in tasks}
            tuned = [score for task in tasks for score in table[task, chosen[task]].scores]
            estimate = differences(tuned, joined(table, tasks, VOTING))
            told = "; ".join(f"{task}: {method}" for task, method in chosen.items())
            yield self.finding(rows[name], estimate, f"{study.told}; chosen on {DEV_QUESTIONS} others: {told}",
                               null=0.0, details=details)  # fmt: skip
        yield self.finding(rows["prompt"], None, study.told, reason="the lab's policies know one format of traces")
        yield from self._pairs(rows, table, tasks, study.told)

    def _pairs(self, rows: dict[str, Claim], table: Table, tasks: Sequence[str], text: str) -> Iterator[Finding]:
        """Directions that are a difference of two methods."""
        pairs: tuple[tuple[str, str, str, Any, float], ...] = (
            ("self-evaluation", best_of(16, "self"), best_of(16, "random"), "at most", 2.0),
            ("rewards", best_of(16, "likelihood"), best_of(16, "orm,aggregate=last"), "at least", 0.0),
            ("inflation", best_of(16, "flipped"), best_of(4, "flipped"), "at most", 0.0),
            ("steps", f"step_{best_of(16, 'likelihood')}", best_of(16, "likelihood"), "at least", 0.0),
            ("tree", f"mcts:samples=12,{DEFAULTS},verifier=likelihood", f"step_{best_of(16, 'likelihood')}",
             "at least", 0.0),
        )  # fmt: skip
        for name, ours, theirs, direction, null in pairs:
            told = "; ".join(f"{task}: {versus(table, task, ours, theirs)}" for task in tasks)
            estimate = differences(joined(table, tasks, ours), joined(table, tasks, theirs))
            yield self.finding(rows[name], estimate, f"{text}; {ours} against {theirs}; {told}",
                               direction=direction, null=null)  # fmt: skip
        yield self._sum(rows["sum"], table, tasks, text)

    def _sum(self, claim: Claim, table: Table, tasks: Sequence[str], text: str) -> Finding:
        """(both - one sample) - (voting - one sample) - (reward - one sample)."""
        one = f"self_consistency:samples=1,{DEFAULTS}"
        both = f"weighted_voting:samples=16,{DEFAULTS},verifier=likelihood,min_max=true"
        columns = [joined(table, tasks, name) for name in (both, VOTING, best_of(16, "likelihood"), one)]
        values = [b - vote - reward + alone for b, vote, reward, alone in zip(*columns, strict=True)]
        told = ", ".join(f"{fmean(column):.1f}" for column in columns)
        text = f"{text}; both, voting, reward, one sample: {told} %"
        return self.finding(claim, mean_estimate(values), text, direction="at most", null=0.0)


class Study:
    """The policy, and how many questions each method is asked."""

    def __init__(self, model: str, limit: int, bench: Workbench) -> None:
        self._model, self._limit, self._bench = load_model(model, "fp32"), limit, bench
        self.told = f"{model} fp32, {limit} questions of each task"

    def run(self, task: str, method: str, seed: int = 0, limit: int | None = None) -> Cell:
        """The method on the task's questions, all in one batch of searches."""
        self._bench.tick(f"{task}: {method}")
        name, options = named_options(method)
        contender = Contender.load(MethodSpec(name=name, options=options), self._model)
        contender.prepare()
        count = limit or self._limit
        workload = make_workload(WorkloadSpec(name="chain", task=task, limit=count, seed=seed))
        asked = list(workload.requests(task, count, seed))
        cell = Cell([], [], [])
        for some in batches(asked):
            for request, done in zip(some, contender.complete(some, RequestMeter()), strict=True):
                assert done.search is not None
                cell.scores.append(workload.score(done, request))
                cell.tokens.append(float(done.search.generated))
                cell.sequential.append(float(done.search.sequential))
        return cell

    def best(self, task: str, methods: Sequence[str]) -> str:
        """The one that does best on questions that are not reported; the first of equals."""
        return max(methods, key=lambda method: fmean(self.run(task, method, DEV_SEED, DEV_QUESTIONS).scores))


def batches(asked: Sequence[Request], size: int = 20) -> Iterator[Sequence[Request]]:
    """Questions whose searches share the passes."""
    for first in range(0, len(asked), size):
        yield asked[first : first + size]


def tempered(value: float) -> str:
    """Self-consistency at a temperature."""
    return f"self_consistency:samples=16,temperature={value},top_p=0.9,rounds=5"


def nucleus(value: float) -> str:
    """Self-consistency at a top-p."""
    return f"self_consistency:samples=16,temperature=0.7,top_p={value},rounds=5"


VOTING = tempered(0.7)


def best_of(n: int, verifier: str) -> str:
    """Best of n at the defaults."""
    return f"best_of_n:samples={n},{DEFAULTS},verifier={verifier}"


def joined(table: Table, tasks: Sequence[str], method: str) -> list[float]:
    """Scores of all questions of all tasks."""
    return [score for task in tasks for score in table[task, method].scores]


def versus(table: Table, task: str, ours: str, theirs: str) -> str:
    """Both accuracies, each with its tokens."""
    return " against ".join(
        f"{fmean(cell.scores):.1f} % ({fmean(cell.tokens):.0f})" for cell in (table[task, ours], table[task, theirs])
    )


def shown(table: Table) -> dict[str, dict[str, tuple[float, float, float]]]:
    """Means by task and method."""
    found: dict[str, dict[str, tuple[float, float, float]]] = {}
    for (task, method), cell in table.items():
        found.setdefault(task, {})[method] = (fmean(cell.scores), fmean(cell.tokens), fmean(cell.sequential))
    return found
