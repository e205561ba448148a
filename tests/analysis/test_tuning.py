"""The tuner: spaces from configs, resumed studies, failures with a reason, and search on a landscape as the paper's."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from pydantic import BaseModel, ValidationError

from analysis import tuning
from analysis.tuning import Outcome
from suite.methods.attention.longheads import LongHeads
from suite.registry import METHODS

optuna.logging.set_verbosity(optuna.logging.WARNING)

BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1028)
GPUS = (1, 2, 4, 8)
SPACE = {"batch": CategoricalDistribution(BATCHES), "gpus": CategoricalDistribution(GPUS)}
ONE = {"x": FloatDistribution(0.0, 1.0)}


def landscape(seed: int) -> dict[tuple[int, int], float | None]:
    """Tokens/s as in the paper: saturating in batch, irregular in GPUs, out of memory in a corner, 3 % noise."""
    make = np.random.default_rng(seed)
    scale = dict(zip(GPUS, (1.0, 0.75, 1.35, 1.2), strict=True))
    table: dict[tuple[int, int], float | None] = {}
    for batch in BATCHES:
        for gpus in GPUS:
            value = 220 * scale[gpus] * batch / (batch + 4 * gpus**0.5) * float(1 + 0.03 * make.standard_normal())
            table[batch, gpus] = None if batch >= 512 and gpus == 1 else value
    return table


def looked_up(table: dict[tuple[int, int], float | None]) -> Any:
    def measure(options: dict[str, Any], _: Any) -> Outcome:
        value = table[options["batch"], options["gpus"]]
        return Outcome(reason="out of memory") if value is None else Outcome((value,))

    return measure


def tuned(sampler: str, seed: int, trials: int, table: dict[tuple[int, int], float | None]) -> optuna.Study:
    study = tuning.open_study(None, "study", tuning.make_sampler(sampler, SPACE, seed), ["speed"])
    tuning.search(study, SPACE, trials, looked_up(table))
    return study


def reached(study: optuna.Study) -> float:
    best = tuning.best(study)
    return 0.0 if best is None else best.values[0]


def test_tpe_is_near_the_optimum_after_a_third_of_the_grid() -> None:
    shares = []
    for seed in range(20):
        table = landscape(seed)
        optimum = reached(tuned("grid", seed, 1000, table))
        assert optimum == max(value for value in table.values() if value is not None)
        shares.append(reached(tuned("tpe", seed, round(0.3 * len(table)), table)) / optimum)
    assert median(shares) >= 0.95


def test_a_configuration_that_fails_is_a_trial_with_its_reason() -> None:
    study = tuned("grid", 0, 1000, landscape(0))
    reasons = [trial.user_attrs["reason"] for trial in tuning.finished(study) if not trial.values]
    assert len(tuning.finished(study)) == 44
    assert reasons == ["out of memory"] * 2


def test_the_best_keeps_the_quality_asked_for() -> None:
    study = tuning.open_study(None, "study", tuning.make_sampler("tpe", ONE, 0), ["speed"])
    tuning.search(study, ONE, 30, lambda options, _: Outcome((options["x"],), shortfall=options["x"] - 0.5))
    best = tuning.best(study)
    assert best is not None
    assert 0.3 < best.params["x"] <= 0.5
    assert max(trial.values[0] for trial in study.trials) > 0.5


def test_best_so_far_never_falls_and_knows_no_infeasible_value() -> None:
    study = tuning.open_study(None, "study", tuning.make_sampler("random", ONE, 1), ["speed"])
    outcomes = iter([Outcome(reason="died"), Outcome((3.0,)), Outcome((9.0,), 1.0), Outcome((1.0,)), Outcome((5.0,))])
    tuning.search(study, ONE, 5, lambda options, _: next(outcomes))
    assert tuning.best_so_far(study) == [None, 3.0, 3.0, 3.0, 5.0]


def test_the_parameter_that_matters_is_the_important_one() -> None:
    space = ONE | {"y": FloatDistribution(0.0, 1.0)}
    study = tuning.open_study(None, "study", tuning.make_sampler("random", space, 0), ["speed"])
    tuning.search(study, space, 40, lambda options, _: Outcome((options["x"] + 0.01 * options["y"],)))
    found = tuning.importances(study)
    assert found["x"] > 5 * found["y"]


KILLED = """
import os, sys
from pathlib import Path
sys.path.insert(0, os.getcwd())
from analysis import tuning
from optuna.distributions import FloatDistribution
space = {"x": FloatDistribution(0.0, 1.0)}
done = 0
def measure(options, _):
    global done
    done += 1
    if done == 4:
        os.kill(os.getpid(), 9)
    return tuning.Outcome((options["x"],))
study = tuning.open_study(Path(sys.argv[1]), "study", tuning.make_sampler("tpe", space, 0), ["speed"])
tuning.search(study, space, 10, measure)
"""


def test_a_killed_tuner_loses_no_finished_trial(tmp_path: Path) -> None:
    file = tmp_path / "studies.sqlite"
    child = subprocess.run([sys.executable, "-c", KILLED, str(file)], capture_output=True, check=False)
    assert child.returncode == -9
    study = tuning.open_study(file, "study", tuning.make_sampler("tpe", ONE, 0), ["speed"])
    before = [trial.params for trial in tuning.finished(study)]
    measured: list[float] = []

    def measure(options: dict[str, Any], _: Any) -> Outcome:
        measured.append(options["x"])
        return Outcome((options["x"],))

    tuning.search(study, ONE, 10, measure)
    assert len(before) == 3
    assert [trial.params for trial in tuning.finished(study)][:3] == before
    assert len(measured) == 7


def test_an_interrupted_trial_does_not_count() -> None:
    study = tuning.open_study(None, "study", tuning.make_sampler("tpe", ONE, 0), ["speed"])

    def interrupted(options: dict[str, Any], _: Any) -> Outcome:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tuning.search(study, ONE, 3, interrupted)
    assert tuning.finished(study) == []


def test_the_space_of_a_config_is_what_its_fields_say() -> None:
    space = tuning.search_space(LongHeads.Config)
    assert space["chunk"] == IntDistribution(1, 1024, log=True)
    assert space["selection"] == CategoricalDistribution(["per_query_head", "per_kv_head"])
    assert list(tuning.search_space(LongHeads.Config, ["chunk"])) == ["chunk"]
    with pytest.raises(KeyError):
        tuning.search_space(LongHeads.Config, ["chunks"])


@pytest.mark.parametrize("method", list(METHODS))
def test_every_value_on_the_grid_is_allowed_by_itself(method: str) -> None:
    kind = METHODS.load(method).Config
    ends = [
        (name, v) for name, values in tuning.grid(tuning.search_space(kind)).items() for v in (values[0], values[-1])
    ]
    assert [refused for name, value in ends for refused in refusals(kind, name, value)] == []


def refusals(kind: type[BaseModel], name: str, value: Any) -> list[Any]:
    """What the field says against a value; that it may not fit the other options is no matter."""
    try:
        kind(**{name: value})
    except ValidationError as error:
        return [one for one in error.errors() if one["loc"]]
    return []


@pytest.mark.parametrize(
    ("low", "high", "said"),
    [(1.01, 1.2, "faster"), (0.97, 1.2, "no significant gain"), (0.8, 0.9, "slower"), (None, None, "not measured")],
)
def test_a_gain_whose_interval_holds_1_is_none(low: float | None, high: float | None, said: str) -> None:
    assert said in tuning.verdict(low, high)


def test_a_gain_within_the_spread_of_the_default_is_none() -> None:
    """Seen on vLLM: 1.016 [1.007, 1.028] where the default itself varies by 1.8 % from start to start."""
    assert tuning.verdict(1.007, 1.028, 0.018) == "no significant gain"
    assert "faster" in tuning.verdict(1.03, 1.05, 0.018)
    assert "slower" in tuning.verdict(0.9, 0.95, 0.018)
