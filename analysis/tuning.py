"""Hyper-parameter search with Optuna: what can be tuned, who proposes, what a trial leaves, and what came out best.

Trials are kept in a SQLite file with a heartbeat: a killed tuner loses none that had finished, the trial it was in is
tried again, and the same command goes on where it stopped. A configuration that fails is a trial with a reason, never a
magic number (card `hyperparams`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, GridSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState
from pydantic import BaseModel

SAMPLERS = ("tpe", "random", "grid", "nsga2")
HEARTBEAT_S = 60
GRID_POINTS = 4
"""Values of a number on the grid, evenly spaced (in its logarithm where the search is logarithmic)."""

Options = dict[str, Any]
Hopeless = Callable[[int, float], bool]
"""(repeat, value so far) -> whether the rest of this trial's repeats may be saved."""


@dataclass(frozen=True)
class Outcome:
    """What one configuration gave: objectives, all larger is better, or a `reason` why there are none.

    `shortfall` is by how much it misses the quality asked for; at most 0 where it does not. `facts` are kept with it.
    """

    values: tuple[float, ...] = ()
    shortfall: float = 0.0
    reason: str | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


def search_space(config: type[BaseModel], names: Sequence[str] = ()) -> dict[str, BaseDistribution]:
    """The distributions of a config's tunable fields: all, or those named. Raises KeyError for one it does not have."""
    tunable = {}
    for name, info in config.model_fields.items():
        extra = info.json_schema_extra
        if isinstance(extra, dict) and isinstance(search := extra.get("tunable"), dict):
            tunable[name] = _distribution(search, whole=info.annotation is int)
    return {name: tunable[name] for name in names} if names else tunable


def _distribution(search: Mapping[str, Any], *, whole: bool) -> BaseDistribution:
    if search["choices"]:
        return CategoricalDistribution(search["choices"])
    kind = IntDistribution if whole else FloatDistribution
    return kind(search["low"], search["high"], log=bool(search["log"]))


def grid(space: Mapping[str, BaseDistribution]) -> dict[str, list[Any]]:
    """The values every parameter takes on the grid."""
    return {name: _grid_values(distribution) for name, distribution in space.items()}


def _grid_values(distribution: BaseDistribution) -> list[Any]:
    if isinstance(distribution, CategoricalDistribution):
        return list(distribution.choices)
    assert isinstance(distribution, IntDistribution | FloatDistribution)
    spaced = np.geomspace if distribution.log else np.linspace
    values = spaced(distribution.low, distribution.high, GRID_POINTS)
    if isinstance(distribution, FloatDistribution):
        return [float(value) for value in values]
    return sorted({round(float(value)) for value in values})


def make_sampler(name: str, space: Mapping[str, BaseDistribution], seed: int) -> BaseSampler:
    """One of `SAMPLERS`; "tpe" and "nsga2" learn from the trials, and from which of them missed the quality."""
    if name == "grid":
        return GridSampler(grid(space), seed=seed)
    if name == "random":
        return RandomSampler(seed=seed)
    if name == "nsga2":
        return NSGAIISampler(seed=seed)
    return TPESampler(seed=seed, multivariate=True)


def open_study(file: Path | None, name: str, sampler: BaseSampler, objectives: Sequence[str]) -> optuna.Study:
    """The study `name` in the SQLite `file`, new or as it was left; in memory without a file."""
    storage, retry = None, optuna.storages.RetryHeartbeatStaleTrialCallback()
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        storage = optuna.storages.RDBStorage(
            f"sqlite:///{file}", heartbeat_interval=HEARTBEAT_S, heartbeat_stale_trial_callback=retry
        )
    study = optuna.create_study(
        storage=storage,
        study_name=name,
        sampler=sampler,
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5),
        directions=["maximize"] * len(objectives),
        load_if_exists=True,
    )
    study.set_metric_names(list(objectives))
    return study


def search(
    study: optuna.Study,
    space: Mapping[str, BaseDistribution],
    trials: int,
    measure: Callable[[Options, Hopeless], Outcome],
    listener: Callable[[FrozenTrial], None] = lambda trial: None,
) -> None:
    """Measures configurations until the study holds `trials` finished ones; on a grid, at most all of it."""
    single = len(study.directions) == 1

    def objective(trial: optuna.Trial) -> Sequence[float]:
        def hopeless(repeat: int, value: float) -> bool:
            if single:  # of several objectives none is the one to judge by
                trial.report(value, repeat)
            return single and trial.should_prune()

        options = {name: _suggested(trial, name, distribution) for name, distribution in space.items()}
        outcome = measure(options, hopeless)
        for key, value in outcome.facts.items():
            trial.set_user_attr(key, value)
        if outcome.reason is not None:
            trial.set_user_attr("reason", outcome.reason)
            raise optuna.TrialPruned(outcome.reason)
        trial.set_user_attr("shortfall", outcome.shortfall)
        trial.set_constraint("shortfall", outcome.shortfall)
        return outcome.values

    if (left := trials - len(finished(study))) > 0:
        study.optimize(objective, n_trials=left, callbacks=[lambda _, trial: listener(trial)])


def _suggested(trial: optuna.Trial, name: str, distribution: BaseDistribution) -> Any:
    if isinstance(distribution, CategoricalDistribution):
        return trial.suggest_categorical(name, distribution.choices)
    if isinstance(distribution, IntDistribution):
        return trial.suggest_int(name, distribution.low, distribution.high, log=distribution.log)
    assert isinstance(distribution, FloatDistribution)
    return trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log)


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """The trials that ended with figures or with a reason why there are none."""
    return study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))


def feasible(study: optuna.Study) -> list[FrozenTrial]:
    """The trials with figures whose quality is as asked for."""
    complete = study.get_trials(states=(TrialState.COMPLETE,))
    return [trial for trial in complete if trial.user_attrs.get("shortfall", 0.0) <= 0]


def best(study: optuna.Study) -> FrozenTrial | None:
    """The feasible trial with the largest first objective."""
    return max(feasible(study), key=lambda trial: trial.values[0], default=None)


def best_so_far(study: optuna.Study) -> list[float | None]:
    """After every finished trial, the largest first objective that was feasible until then."""
    able = {trial.number for trial in feasible(study)}
    curve: list[float | None] = []
    for trial in finished(study):
        last = curve[-1] if curve else None
        value = trial.values[0] if trial.number in able and trial.values else None
        curve.append(last if value is None else value if last is None else max(last, value))
    return curve


def importances(study: optuna.Study) -> dict[str, float]:
    """How much of the first objective each parameter explains (PED-ANOVA); empty of too few trials."""
    if len(study.get_trials(states=(TrialState.COMPLETE,))) < 4:
        return {}
    evaluator = optuna.importance.PedAnovaImportanceEvaluator()
    try:
        return optuna.importance.get_param_importances(
            study, evaluator=evaluator, target=lambda trial: -trial.values[0]
        )
    except (ValueError, RuntimeError):  # all trials alike
        return {}


def verdict(low: float | None, high: float | None, noise_floor: float = 0.0) -> str:
    """What the final race of best against default says, by the interval of its ratio.

    All of it must lie beyond the `noise_floor`, the spread of the default from start to start: five rounds of two
    engines that were started once agree better than two starts of one.
    """
    if low is None or high is None:
        return "not measured often enough for a verdict"
    if low > 1 + noise_floor:
        return "the best is faster than the default"
    return "the best is slower than the default" if high < 1 - noise_floor else "no significant gain"
