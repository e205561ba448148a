"""The search of `suite tune --engine vllm`: studies of a live engine by setting, and the race that judges them.

Every trial starts an engine process of its own; one that fails is a trial with a reason and no figure.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suite.commands.output import stderr
from suite.engines.base import Engine, EngineError, EngineModel, Limits
from suite.engines.trials import Repeat, Slices, measure
from suite.engines.trials import race as run_race
from suite.errors import InputError, NothingMeasuredError
from suite.harness.options import validated

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial
    from pydantic import BaseModel

    from analysis.statistics import Estimate
    from analysis.tuning import Hopeless, Options, Outcome

RACE_ROUNDS = 5
DRIFT_EVERY = 8
"""Trials between two measurements of the default, whose spread is the noise floor."""
LIMITS = Limits(start_s=600, generate_s=600)

Make = Callable[["Setting", Any], Engine]
"""Makes the engine of a setting with its arguments."""


@dataclass(frozen=True)
class Setting:
    """The "hardware" of the paper, as far as one machine has several: cores and dtype."""

    model: EngineModel
    threads: int

    @property
    def name(self) -> str:
        """`2 threads, bf16`."""
        return f"{self.threads} threads, {self.model.dtype}"


@dataclass(frozen=True)
class EngineTuning:
    """What is searched and how. `arguments` is the class of the engine's arguments, `make` starts it with some."""

    make: Make
    arguments: type[BaseModel]
    settings: Sequence[Setting]
    slices: Slices
    trials: int
    repeats: int
    samplers: Sequence[str]
    parameters: Sequence[str]
    bounds: Mapping[str, float]
    seed: int
    name: str
    studies: Path | None
    guess: Callable[[Setting], Mapping[str, Any]] = lambda setting: {}
    """Arguments worth measuring first, besides the defaults."""


@dataclass
class Found:
    """One setting's studies (the first sampler's counts), and the rates of the default in the course of them."""

    setting: Setting
    studies: dict[str, Study] = field(default_factory=dict)
    default_rates: list[float] = field(default_factory=list)

    @property
    def study(self) -> Study:
        """That of the first sampler."""
        return next(iter(self.studies.values()))


def search(tuning: EngineTuning, setting: Setting) -> Found:
    """One study per sampler; finished trials of an earlier run count, and the default comes first."""
    from analysis import tuning as tuner

    found = Found(setting)
    space = _space(tuning)
    objectives = ["output_throughput", "minus_p95_ttft_ms"] if "nsga2" in tuning.samplers else ["output_throughput"]
    for name in tuning.samplers:
        sampler = tuner.make_sampler(name, space, tuning.seed)
        study = tuner.open_study(tuning.studies, f"{tuning.name} ({setting.name}, {name})", sampler, objectives)
        if not study.trials:
            _start_from(study, tuning, setting, space)
        found.studies[name] = study
        tuner.search(
            study, space, tuning.trials, _measure(tuning, found, study), _progress(tuning, setting, name, study)
        )
    of_default = found.study.trials[0].user_attrs.get("rates", []) if found.study.trials else []
    found.default_rates = [*of_default, *found.study.user_attrs.get("default_rates", [])]
    return found


def _start_from(study: Study, tuning: EngineTuning, setting: Setting, space: Mapping[str, Any]) -> None:
    """The defaults, and with them what the roofline predicts to be best; a guess that is the default adds nothing."""
    defaults = tuning.arguments().model_dump()
    guess = {option: value for option, value in tuning.guess(setting).items() if option in space}
    for origin, options in (("default", defaults), ("roofline", {**defaults, **guess})):
        if origin == "default" or options != defaults:
            study.enqueue_trial({option: options[option] for option in space}, user_attrs={"origin": origin})


def _space(tuning: EngineTuning) -> dict[str, Any]:
    from analysis import tuning as tuner

    try:
        return tuner.search_space(tuning.arguments, tuning.parameters)
    except KeyError as error:
        known = ", ".join(tuner.search_space(tuning.arguments))
        raise InputError(f"the engine has no tunable argument {error}; it has: {known}.") from error


def _measure(tuning: EngineTuning, found: Found, study: Study) -> Callable[[Options, Hopeless], Outcome]:
    def one(options: Options, hopeless: Hopeless) -> Outcome:
        from analysis.tuning import finished

        if (count := len(finished(study))) and count % DRIFT_EVERY == 0:
            rates = study.user_attrs.get("default_rates", [])
            control = trial(tuning, found.setting, {}, lambda repeat, value: False)
            study.set_user_attr("default_rates", [*rates, *control.facts.get("rates", [])])
        return trial(tuning, found.setting, options, hopeless)

    return one


def trial(tuning: EngineTuning, setting: Setting, options: Options, hopeless: Hopeless) -> Outcome:
    """Starts an engine, warms it up and measures; a failure is an outcome with its reason, never a number."""
    from analysis.tuning import Outcome

    start = time.perf_counter()
    facts: dict[str, Any] = {"started": time.time()}
    runs: list[Repeat] = []
    try:
        with tuning.make(setting, validated(tuning.arguments, options, "engine")) as engine:
            facts |= {"start_s": time.perf_counter() - start, "pids": engine.pids()}
            engine.generate(tuning.slices[0])
            for repeat in range(tuning.repeats):
                runs.append(measure(engine, tuning.slices[1 + repeat]))
                if hopeless(repeat, rate(runs)):
                    return Outcome(
                        reason="slower than the median of the trials before", facts=facts | _facts(runs, start)
                    )
    except (InputError, EngineError) as error:
        return Outcome(reason=str(error), facts=facts | {"wall_s": time.perf_counter() - start})
    facts |= _facts(runs, start)
    late = max((facts["p95_ms"][name] / bound - 1 for name, bound in tuning.bounds.items()), default=0.0)
    values = (rate(runs), -facts["p95_ms"]["ttft"]) if "nsga2" in tuning.samplers else (rate(runs),)
    return Outcome(values, late, facts=facts)


def rate(runs: Sequence[Repeat]) -> float:
    """Median output tokens per second of the repeats."""
    return statistics.median(run.output_throughput for run in runs)


def _facts(runs: Sequence[Repeat], start: float) -> dict[str, Any]:
    p95 = [run.p95_ms() for run in runs]
    return {
        "wall_s": time.perf_counter() - start,
        "tokens": sum(run.tokens for run in runs),
        "rates": [run.output_throughput for run in runs],
        "p95_ms": {name: statistics.median(one[name] for one in p95) for name in p95[0]},
        "largest_batch": max(run.largest_batch for run in runs),
    }


def _progress(tuning: EngineTuning, setting: Setting, sampler: str, study: Study) -> Callable[[FrozenTrial], None]:
    from analysis.tuning import finished

    start, seen = time.perf_counter(), 0

    def show(trial: FrozenTrial) -> None:
        nonlocal seen
        seen += 1
        done = len(finished(study))  # a killed trial has a number, too, and is measured again
        left = max(0, tuning.trials - done) * (time.perf_counter() - start) / seen
        said = f"{trial.values[0]:.1f} tok/s" if trial.values else trial.user_attrs.get("reason", "failed")
        chosen = ", ".join(f"{name}={value}" for name, value in trial.params.items())
        place = f"{setting.name}, {sampler} [{done}/{tuning.trials}]"
        stderr().print(f"{place} {chosen}: {said}; about {left:.0f} s left", markup=False)

    return show


def best(tuning: EngineTuning, found: Found) -> Options:
    """The fastest within the objectives; without one, `NothingMeasuredError` names a reason."""
    from analysis import tuning as tuner

    best = tuner.best(found.study)
    if best is None:
        reasons = [t.user_attrs["reason"] for t in found.study.trials if "reason" in t.user_attrs]
        said = f"; one said: {reasons[0]}" if reasons else "."
        raise NothingMeasuredError(f"no configuration gave figures within the objectives ({found.setting.name}){said}")
    return dict(best.params)


def contenders(tuning: EngineTuning, bests: Sequence[Options], place: int) -> dict[str, Options]:
    """Who races: arguments by name.

    The gain over batch 1 is the one that flatters; that over the default and over what was known already count.
    """
    contenders: dict[str, Options] = {"default": {}, "best here": bests[place]}
    if len(bests) > 1:
        contenders["best of the other setting"] = bests[1 - place]
    if "max_num_seqs" in tuning.arguments.model_fields:
        contenders["batch 1"] = {"max_num_seqs": 1}
    return contenders


def race(tuning: EngineTuning, setting: Setting, contenders: Mapping[str, Options]) -> dict[str, list[Repeat]]:
    """Interleaved rounds of all contenders on prompts no trial has seen."""
    engines = {
        name: tuning.make(setting, validated(tuning.arguments, options, "engine"))
        for name, options in contenders.items()
    }
    with stderr().status("racing") as status:
        return run_race(engines, tuning.slices, 1 + tuning.repeats, RACE_ROUNDS, status.update)


def ratio(base: Sequence[Repeat], other: Sequence[Repeat]) -> Estimate | None:
    """How many times the throughput of `base` the other has, paired by round."""
    from analysis.statistics import paired_ratio

    ours, theirs = ({("round", i): run.seconds / run.tokens for i, run in enumerate(runs)} for runs in (base, other))
    return paired_ratio(ours, theirs)
