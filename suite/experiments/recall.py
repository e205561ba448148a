"""Retrieval: methods on the lab models, up to many times their trained length, and pass keys for larger models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from analysis.statistics import Estimate, ratio_of_means
from suite.experiments.base import Workbench
from suite.experiments.texts import passkeys
from suite.harness.contender import Contender
from suite.harness.meter import RequestMeter
from suite.harness.options import make_workload
from suite.methods.attention.dense import Dense
from suite.methods.attention.streaming import Streaming, StreamingConfig
from suite.methods.base import Method, MethodConfig
from suite.models.language_model import LanguageModel
from suite.models.loaders import load_model
from suite.spec import WorkloadSpec
from workloads.lab_longbench import SCRIPTS
from workloads.schema import Request, Workload

TRAINED = 128
LONG_TRAINED, LONG_LENGTH = 512, 16384  # of lab-long: 32 times, as from 4K to 128K
LONG_SEQUENCES = 3  # per task and length

Column = tuple[Method, MethodConfig]
Grid = dict[str, dict[int, list[float]]]
"""Accuracies (0 to 1) of single sequences by column and length."""


def recall_grid(
    model: LanguageModel,
    columns: Mapping[str, Column],
    lengths: Sequence[int],
    sequences: int,
    bench: Workbench,
    after: Callable[[str, int, Request], None] = lambda name, length, request: None,
) -> Grid:
    """Every column on the same sequences; `after` is called when one has been completed."""
    workload = make_workload(WorkloadSpec(name="recall", task=str(TRAINED), limit=sequences))
    grid: Grid = {name: {} for name in columns}
    for length in lengths:
        requests = list(workload.requests(str(length), sequences, 0))
        for name, (method, config) in columns.items():
            bench.tick(f"recall at {length}: {name}")
            contender = Contender(method, config, model)
            scores = grid[name].setdefault(length, [])
            for request in requests:
                scores.append(_accuracy(contender, workload, request))
                after(name, length, request)
    return grid


def passkey_scores(
    model: LanguageModel, columns: Mapping[str, Column], tokens: int, prompts: int, bench: Workbench
) -> dict[str, list[float]]:
    """Accuracies (0 to 1) by column, on the same prompts of about `tokens` tokens."""
    workload, requests = passkeys(tokens, prompts)
    scores: dict[str, list[float]] = {name: [] for name in columns}
    for name, (method, config) in columns.items():
        contender = Contender(method, config, model)
        contender.prepare()
        for index, request in enumerate(requests):
            bench.tick(f"passkey {index + 1} of {prompts}: {name}")
            completion = contender.complete([request], RequestMeter())[0]
            scores[name].append(workload.score(completion, request) / 100)
    return scores


@dataclass(frozen=True)
class LongRetrieval:
    """What a ledger says of one method on `lab-longbench`: accuracy kept, the plain model's share, and the rest."""

    kept: Estimate | None
    plain: float
    conditions: str
    details: dict[str, Any]


def long_retrieval(name: str, column: Column, bench: Workbench) -> LongRetrieval:
    """Both tasks on `lab-long` at its trained length and at 32 times that, beside the plain model and a window."""
    window = StreamingConfig(**Streaming.at_budget(LONG_TRAINED))
    columns = {"plain": (Dense(), Dense.Config()), "sinks and recent": (Streaming(), window), name: column}
    grids = {dataset: _long_grid(dataset, columns, bench) for dataset in SCRIPTS}
    pooled = {
        key: {n: [score for grid in grids.values() for score in grid[key][n]] for n in (LONG_TRAINED, LONG_LENGTH)}
        for key in columns
    }
    table = {dataset: means(grid) for dataset, grid in grids.items()}
    reached = "; ".join(
        f"{dataset} " + ", ".join(f"{key} {row[LONG_LENGTH]:.2f}" for key, row in rows.items())
        for dataset, rows in table.items()
    )
    ours, plain = pooled[name], means(pooled)["plain"]
    return LongRetrieval(
        kept=ratio_of_means(ours[LONG_LENGTH], ours[LONG_TRAINED]),
        plain=plain[LONG_LENGTH] / plain[LONG_TRAINED],
        conditions=f"lab-long (trained on {LONG_TRAINED}), fp32, {LONG_SEQUENCES} items per task and length; "
        f"at {LONG_LENGTH} tokens: {reached}",
        details={"accuracy": table, "samples": grids},
    )


def _long_grid(dataset: str, columns: Mapping[str, Column], bench: Workbench) -> Grid:
    model = load_model("lab-long", "fp32")
    workload = make_workload(WorkloadSpec(name="lab-longbench", task=f"{dataset}-{LONG_LENGTH}", limit=LONG_SEQUENCES))
    grid: Grid = {name: {} for name in columns}
    for length in (LONG_TRAINED, LONG_LENGTH):
        requests = list(workload.requests(f"{dataset}-{length}", LONG_SEQUENCES, 0))
        for name, (method, config) in columns.items():
            bench.tick(f"{dataset} at {length}: {name}")
            contender = Contender(method, config, model)
            grid[name][length] = [_accuracy(contender, workload, request) for request in requests]
    return grid


def _accuracy(contender: Contender, workload: Workload, request: Request) -> float:
    completion = contender.complete([request], RequestMeter())[0]
    return workload.score(completion, request) / 100


def means(grid: Grid) -> dict[str, dict[int, float]]:
    """The table."""
    return {name: {length: fmean(scores) for length, scores in row.items()} for name, row in grid.items()}
