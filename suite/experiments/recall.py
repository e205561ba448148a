"""Accuracies of methods on the same prompts.

The recall grid has those of the lab model, from its trained length to many times that; pass keys are for larger models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from suite.experiments.base import Workbench
from suite.experiments.texts import passkeys
from suite.harness.contender import Contender
from suite.harness.meter import RequestMeter
from suite.harness.options import make_workload
from suite.methods.base import Method, MethodConfig
from suite.models.language_model import LanguageModel
from suite.spec import WorkloadSpec
from workloads.schema import Request

TRAINED = 128

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
                completion = contender.complete([request], RequestMeter())[0]
                scores.append(workload.score(completion, request) / 100)
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


def means(grid: Grid) -> dict[str, dict[int, float]]:
    """The table."""
    return {name: {length: fmean(scores) for length, scores in row.items()} for name, row in grid.items()}
