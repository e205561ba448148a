"""What the reasoning lab is: its policies, lengths, steps and reward models, measured before anything is shown on it.

The lab's problems are small and its models tiny, so its figures say something about search methods only where it has
the property that the method lives from. These are the gates of `_verifiers.md`, section 8, on problems that no model
was trained on or chosen by.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import fmean, median
from typing import Any, ClassVar

import numpy as np
import torch
from scipy import stats

from analysis.statistics import CONFIDENCE, SEED, Estimate, mean_estimate
from suite.experiments.base import Experiment, Workbench
from suite.harness.measurement import Finding
from suite.methods.base import Claim
from suite.models.decoder import Decoder
from suite.models.loaders import lab, load_model
from suite.models.recipes.chain import WORDS, encode, padded
from suite.models.recipes.chain_rewards import (
    TASK,
    FloatArray,
    auc,
    judged,
    lasts,
    outcome_quality,
    process_quality,
    products,
    solved,
    step_scores,
)
from suite.models.rollout import rollout
from workloads.chain import TASKS, Chain, final_answer
from workloads.generators.chain import NL, Problem, Thought, is_hard, parse, trace
from workloads.lab import BoolArray

TEMPERATURES = (0.0, 0.6, 1.0)
PROBLEMS, SAMPLES = 500, 16
LONG_PROBLEMS, LONG_SAMPLES = 150, 20
RESAMPLES = 500
POLICIES = ("chain-early", "chain-mid", "chain-strong", "chain-large")
LONG = ("chain-long", "chain-long-control")
REWARDS = ("chain-likelihood", "chain-prm", "chain-orm")

CLAIMS = {
    claim.id: claim
    for claim in (
        Claim("early-room", "the early policy leaves room for search", "greedy 20-35 %", "greedy accuracy, 0-1", 0.35),
        Claim("early-right", "the early policy is right at times", "15-25 % at T=1", "accuracy at T=1, 0-1", 0.15),
        Claim("mid-right", "the middle policy is right nearly every other time", "30-50 %", "at T=1, 0-1", 0.30),
        Claim("mid-reach", "the middle policy can solve nearly all", "pass@16 at least 0.9", "pass@16, T=1, 0-1", 0.90),
        Claim("strong", "the strong policy solves nearly all", "at least 95 %", "accuracy at T=1, 0-1", 0.95),
        Claim("large", "the large policy solves nearly all", "at least 95 %", "accuracy at T=1, 0-1", 0.95),
        Claim("length", "long thoughts are wrong more often than short ones of the same question",
              "AUC at least 0.65 (0.67 measured at slips of 0.35)", "AUC within questions", 0.65),
        Claim("length-control", "where rounds end at random, length says nothing", "AUC about 0.5",
              "AUC within questions", 0.55),
        Claim("entropy", "the entropy of a step's first token tells hard steps from easy ones",
              "AUC at least 0.9 (0.99 measured)", "AUC of the early policy's entropies", 0.90),
        Claim("likelihood", "the likelihood PRM tells right solutions from wrong ones", "0.97-0.99", "AUC", 0.90),
        Claim("prm", "the trained PRM does", "at least 0.9 (0.62-0.65 with 3 layers)", "AUC", 0.90),
        Claim("orm", "the outcome reward does", "at least 0.9 for a good one", "AUC", 0.90),
    )
}  # fmt: skip


@dataclass(frozen=True)
class Answered:
    """Samples of one question: which were right, and how many tokens each took."""

    right: list[bool]
    tokens: list[int]


class ReasoningLab(Experiment):
    """Twelve gates; the tables behind them are in the details."""

    slug: ClassVar[str] = "reasoning_lab"

    def findings(self, bench: Workbench) -> Iterator[Finding]:
        torch.set_num_threads(bench.threads)
        yield from self._policies(bench)
        yield from self._lengths(bench)
        yield self._entropies(bench)
        for name in REWARDS:
            yield self._reward(bench, name)

    def _policies(self, bench: Workbench) -> Iterator[Finding]:
        tables: dict[str, dict[float, list[Answered]]] = {}
        for name in POLICIES:
            bench.tick(f"{name}: {PROBLEMS} problems at T = {', '.join(map(str, TEMPERATURES))}")
            asked = problems(TASK, PROBLEMS)
            tables[name] = {t: answers(policy(name), TASK, asked, 1, t) for t in TEMPERATURES}
        bench.tick(f"chain-mid: {SAMPLES} samples")
        reach = [any(a.right) for a in answers(policy("chain-mid"), TASK, problems(TASK, PROBLEMS), SAMPLES, 1.0)]
        shown = {name: {f"T={t}": accuracy(rows) for t, rows in table.items()} for name, table in tables.items()}
        conditions = f"{PROBLEMS} problems of {TASK}, fp32; greedy / T=0.6 / T=1: " + "; ".join(
            f"{name} " + " / ".join(f"{value:.2f}" for value in row.values()) for name, row in shown.items()
        )
        details: dict[str, Any] = {"accuracy": shown, "tokens": {n: lengths(t[1.0]) for n, t in tables.items()}}
        for claim, name, temperature in (
            ("early-right", "chain-early", 1.0), ("mid-right", "chain-mid", 1.0), ("strong", "chain-strong", 1.0),
            ("large", "chain-large", 1.0),
        ):  # fmt: skip
            estimate = mean_estimate([float(a.right[0]) for a in tables[name][temperature]])
            yield self.finding(CLAIMS[claim], estimate, conditions, null=0.0, details=details)
        greedy = mean_estimate([float(a.right[0]) for a in tables["chain-early"][0.0]])
        yield self.finding(CLAIMS["early-room"], greedy, conditions, direction="at most", details=details)
        yield self.finding(CLAIMS["mid-reach"], mean_estimate([float(r) for r in reach]), conditions, null=0.0)

    def _lengths(self, bench: Workbench) -> Iterator[Finding]:
        tables: dict[str, list[Answered]] = {}
        for name in LONG:
            bench.tick(f"{name}: {LONG_SAMPLES} samples of {LONG_PROBLEMS} problems")
            tables[name] = answers(policy(name), "long", problems("long", LONG_PROBLEMS), LONG_SAMPLES, 1.0)
        details = {name: {"accuracy": accuracy(rows), **lengths(rows)} for name, rows in tables.items()}
        for claim, name in zip(("length", "length-control"), LONG, strict=True):
            shown = details[name]
            conditions = (
                f"{name}, {LONG_PROBLEMS} questions x {LONG_SAMPLES} samples, T=1: single {shown['accuracy']:.2f}, "
                f"shortest {shown['shortest']:.2f}, longest {shown['longest']:.2f}"
            )
            estimate = mean_estimate(length_aucs(tables[name]))
            direction: Any = "at least" if claim == "length" else "at most"
            null = 0.5 if claim == "length" else 1.0
            yield self.finding(CLAIMS[claim], estimate, conditions, direction=direction, null=null, details=details)

    def _entropies(self, bench: Workbench) -> Finding:
        bench.tick("entropies of first tokens")
        entropies, hard = first_token_entropies(policy("chain-early"), problems(TASK, PROBLEMS))
        means = {"easy": float(entropies[~hard].mean()), "hard": float(entropies[hard].mean())}
        conditions = f"{len(hard)} steps of right traces; easy {means['easy']:.2f}, hard {means['hard']:.2f} nats"
        return self.finding(CLAIMS["entropy"], auc_estimate(entropies, hard), conditions, null=0.5, details=means)

    def _reward(self, bench: Workbench, name: str) -> Finding:
        bench.tick(f"{name} on traces of chain-early and chain-mid")
        asked = problems(TASK, PROBLEMS)
        model = lab.reward(name)
        rows = {p: judged(policy(p), asked, 1.0, seed=2) for p in ("chain-early", "chain-mid")}
        quality, aggregate = (outcome_quality, lasts) if name == "chain-orm" else (process_quality, products)
        table = {p: quality(model, traces) for p, traces in rows.items()}
        values = aggregate(step_scores(model, rows["chain-mid"]))
        conditions = f"traces of chain-mid at T=1, {PROBLEMS} problems; " + "; ".join(
            f"{p}: " + ", ".join(f"{key} {value:.2f}" for key, value in row.items()) for p, row in table.items()
        )
        claim = CLAIMS[name.removeprefix("chain-")]
        return self.finding(claim, auc_estimate(values, solved(rows["chain-mid"])), conditions, null=0.5, details=table)


@cache
def policy(name: str) -> Decoder:
    """A committed policy in fp32."""
    return load_model(name, "fp32").decoder


def problems(task: str, count: int) -> list[Problem]:
    """The first problems of the workload."""
    return [parse(request.prompt) for request in Chain().requests(task, count, 0)]


def answers(model: Decoder, task: str, asked: Sequence[Problem], samples: int, temperature: float) -> list[Answered]:
    """Samples of every question, a batch of all questions at a time."""
    prompts, found = [encode(problem) for problem in asked], [Answered([], []) for _ in asked]
    for seed in range(samples):
        written = rollout(model, prompts, TASKS[task].max_new_tokens, temperature, seed)
        for problem, row, answered in zip(asked, written, found, strict=True):
            text = " ".join(WORDS[i] for i in row if i not in model.config.eos_ids)
            answered.right.append(final_answer(text) == " ".join(problem.answer))
            answered.tokens.append(len(row))
    return found


def accuracy(rows: Sequence[Answered]) -> float:
    """Share of right samples."""
    return fmean(right for row in rows for right in row.right)


def lengths(rows: Sequence[Answered]) -> dict[str, float]:
    """Tokens of a sample, and how often a question's shortest and longest sample are right (the first of equals)."""
    tokens = [count for row in rows for count in row.tokens]
    picks = {"shortest": min, "longest": max}
    ends = {name: fmean(r.right[r.tokens.index(pick(r.tokens))] for r in rows) for name, pick in picks.items()}
    return {"mean": fmean(tokens), "median": median(tokens), "most": max(tokens), **ends}


def length_aucs(rows: Sequence[Answered]) -> list[float]:
    """For every question with right and wrong samples: how often a right one is shorter than a wrong one."""
    mixed = [row for row in rows if len(set(row.right)) == 2]
    return [auc(-np.array(row.tokens, dtype=np.float64), np.array(row.right)) for row in mixed]


@torch.no_grad()
def first_token_entropies(model: Decoder, asked: Sequence[Problem]) -> tuple[FloatArray, BoolArray]:
    """Entropies in nats of every step's first token behind right traces, and whether the step is hard."""
    rng = np.random.default_rng(0)
    traces = [trace(problem, Thought(), rng) for problem in asked]
    ids, _ = padded(
        [(encode(p), [WORDS.index(word) for word in words]) for p, words in zip(asked, traces, strict=True)]
    )
    logs = model.train_logits(torch.from_numpy(ids)).log_softmax(dim=-1)
    entropies = -(logs.exp() * logs).sum(dim=-1).double().numpy()
    ends = [np.flatnonzero(row == WORDS.index(NL))[: len(p.operations)] for row, p in zip(ids, asked, strict=True)]
    values = np.concatenate([row[places] for row, places in zip(entropies, ends, strict=True)])
    return values, np.array([is_hard(operation) for problem in asked for operation in problem.operations])


def auc_estimate(values: FloatArray, labels: BoolArray) -> Estimate:
    """An AUC with its bootstrap interval."""
    found = stats.bootstrap(
        (values, labels),
        lambda drawn, right: auc(drawn, right > 0),  # scipy hands all samples over as floats
        paired=True,
        vectorized=False,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        rng=np.random.default_rng(SEED),
    ).confidence_interval
    return Estimate(auc(values, labels), float(found.low), float(found.high), len(values))
