"""`suite tune`: searches a method's options, every trial interleaved with the default, and lets the best race it."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from suite.commands.output import interval, number, print_json, stderr, stdout, table
from suite.commands.reporting import check_writable
from suite.commands.running import model_cost
from suite.commands.stores import keep_document, open_store
from suite.commands.wishes import RunOptions
from suite.engines import native
from suite.errors import InputError, NothingMeasuredError, StoppedError, UnitError
from suite.harness import threads
from suite.harness.contender import Contender
from suite.harness.measurement import UnitResult
from suite.harness.options import cleaned
from suite.harness.plan import Plan, contender_id, load_contenders, plan
from suite.harness.runner import Bench, run_blocks, start_sweep
from suite.registry import METHODS
from suite.spec import MethodSpec

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

    from analysis.statistics import Estimate
    from analysis.tuning import Hopeless, Options, Outcome
    from suite.models.language_model import LanguageModel

STUDIES = Path("results/studies.sqlite")
RACE_REPEATS = 5


@dataclass(frozen=True)
class TuneOptions:
    """What is searched, how, and how much of the default's score the winner must keep."""

    run: RunOptions
    trials: int
    sampler: str
    parameters: Sequence[str]
    keep_score: float
    name: str
    studies: Path
    output: Path


@dataclass(frozen=True)
class Race:
    """A configuration beside the default: paired speed-ups over the default and over dense, and both scores."""

    over_default: Estimate | None
    over_dense: Estimate | None
    score: float
    default_score: float
    tokens: int


class Track:
    """The model and the plan (dense and the default) that every trial runs on."""

    def __init__(self, planned: Plan, bench: Bench) -> None:
        self._planned, self._bench = planned, bench
        self.default = planned.methods[-1]

    def candidate(self, options: Options) -> MethodSpec:
        """The default with some options changed; `InputError` where they do not fit together."""
        return cleaned(MethodSpec(name=self.default.name, options={**self.default.options, **options}))

    def race(self, spec: MethodSpec, repeats: int = 1) -> Race:
        """Dense, the default and the candidate, interleaved on every task; `UnitError` where one has no figures."""
        contender = Contender.load(spec, cast("LanguageModel", self._bench.model))
        if reason := contender.refusal():
            raise UnitError(reason)
        planned = self._with(spec, repeats)
        bench = replace(self._bench, contenders={**self._bench.contenders, contender_id(spec): contender})
        units = run_blocks(planned, start_sweep(bench.store, planned), bench).units
        for unit in units:
            if unit.status not in ("ok", "unstable"):
                raise UnitError(unit.error or f"{unit.spec.method.name} did not pass its gates")
        return _race(units)

    def _with(self, spec: MethodSpec, repeats: int) -> Plan:
        blocks = []
        for block in self._planned.blocks:
            units = (*block.units, block.units[-1].model_copy(update={"method": spec}))
            protocol = block.protocol.model_copy(update={"repeats": repeats, "counted": 0})
            blocks.append(
                block.model_copy(
                    update={"units": tuple(unit.model_copy(update={"protocol": protocol}) for unit in units)}
                )
            )
        return self._planned.model_copy(update={"blocks": tuple(blocks)})


def _race(units: Sequence[UnitResult]) -> Race:
    from analysis.comparison import unit_logs
    from analysis.metrics import score_metrics
    from analysis.statistics import ratio_from_logs

    dense, default, own = (units[place::3] for place in range(3))

    def estimate(base: Sequence[UnitResult]) -> Estimate | None:
        pairs = zip(own, base, strict=True)
        return ratio_from_logs([log for unit, other in pairs for log in unit_logs(unit, other).get("e2el", [])])

    def score(of: Sequence[UnitResult]) -> float:
        return score_metrics([sample for unit in of for sample in unit.samples])["score"] or 0.0

    tokens = sum(len(sample.token_ids) for unit in own for sample in unit.samples)
    return Race(estimate(default), estimate(dense), score(own), score(default), tokens)


def tune(options: TuneOptions, store_file: Path | None, as_json: bool) -> int:
    """Everything a user can get wrong is found before a model is loaded."""
    import optuna

    from analysis import tuning

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", module="optuna|analysis.tuning")  # which of its parts Optuna calls experimental
    planned = plan(options.run.wishes())
    default = planned.methods[-1]
    space = _space(default.name, options)
    check_writable(options.output)
    sampler = tuning.make_sampler(options.sampler, space, options.run.seed)
    objectives = ["speedup", "score"] if options.sampler == "nsga2" else ["speedup"]
    study = tuning.open_study(options.studies, _study_name(planned, options), sampler, objectives)
    with open_store(store_file) as store:
        count = planned.engine.threads or threads.choose_threads()
        with stderr().status(f"loading {planned.model.name}"):
            model = native.load(planned.model, count)
            planned, contenders = load_contenders(planned, model)
        track = Track(planned, Bench(model, contenders, store, count, model_cost(model)))
        tuning.search(study, space, options.trials, _measure(track, objectives, options.keep_score), _progress(options))
        best = tuning.best(study)
        final = None if best is None else track.race(track.candidate(best.params), RACE_REPEATS)
    return _present(study, track, best, final, options, store_file, as_json)


def _space(method: str, options: TuneOptions) -> dict[str, Any]:
    from analysis import tuning

    if method == "dense":
        raise InputError("dense has nothing to tune; give the method with --method.")
    if options.sampler not in tuning.SAMPLERS:
        raise InputError(f"there is no sampler {options.sampler!r}; known: {', '.join(tuning.SAMPLERS)}.")
    kind = METHODS.load(method).Config
    try:
        space = tuning.search_space(kind, options.parameters)
    except KeyError as error:
        known = ", ".join(tuning.search_space(kind))
        raise InputError(f"method {method} has no tunable option {error}; it has: {known or 'none'}.") from error
    if not space:
        raise InputError(f"method {method} has no tunable option.")
    return space


def _study_name(planned: Plan, options: TuneOptions) -> str:
    """The same question continues the same study."""
    if options.name:
        return options.name
    tasks = "+".join(block.workload.task for block in planned.blocks)
    wanted = f"{options.sampler}, {'+'.join(options.parameters) or 'all'}, seed {options.run.seed}"
    return f"{planned.methods[-1].name} on {planned.model.name}: {planned.blocks[0].workload.name} {tasks} ({wanted})"


def _measure(track: Track, objectives: Sequence[str], keep_score: float) -> Any:
    from analysis.tuning import Outcome

    def measure(options: Options, _: Hopeless) -> Outcome:
        facts: dict[str, Any] = {"started": time.time(), "pid": os.getpid()}
        start = time.perf_counter()
        try:
            spec = track.candidate(options)
            if spec == track.candidate({}):
                return Outcome(reason="it is the default", facts=facts)
            race = track.race(spec)
        except StoppedError:
            raise StoppedError("interrupted: finished trials are kept, and the same command goes on.") from None
        except (InputError, UnitError) as error:
            return Outcome(reason=str(error), facts=facts)
        facts |= {"wall_s": time.perf_counter() - start, "tokens": race.tokens, "score": race.score}
        if race.over_default is None:
            return Outcome(reason="it was not timed", facts=facts)
        if len(objectives) > 1:
            return Outcome((race.over_default.value, race.score), facts=facts)
        return Outcome((race.over_default.value,), keep_score * race.default_score - race.score, facts=facts)

    return measure


def _progress(options: TuneOptions) -> Any:
    start, seen = time.perf_counter(), 0

    def show(trial: FrozenTrial) -> None:
        nonlocal seen
        seen += 1
        left = (options.trials - trial.number - 1) * (time.perf_counter() - start) / seen
        said = f"{trial.values[0]:.3f} x the default" if trial.values else trial.user_attrs.get("reason", "failed")
        chosen = ", ".join(f"{name}={number(v) if isinstance(v, float) else v}" for name, v in trial.params.items())
        stderr().print(f"[{trial.number + 1}/{options.trials}] {chosen}: {said}; about {left:.0f} s left", markup=False)

    return show


def _present(
    study: Study,
    track: Track,
    best: FrozenTrial | None,
    final: Race | None,
    options: TuneOptions,
    store_file: Path | None,
    as_json: bool,
) -> int:
    from analysis import tuning
    from reports.tuning import Section, write_page

    if best is None or final is None or final.over_default is None:
        reasons = [trial.user_attrs["reason"] for trial in study.trials if "reason" in trial.user_attrs]
        raise NothingMeasuredError(
            "no configuration kept the score" + (f"; one said: {reasons[0]}" if reasons else ".")
        )
    gain, default = final.over_default, track.default
    verdict = tuning.verdict(gain.low, gain.high)
    section = Section(verdict, {options.sampler: study}, "x faster than the default, score kept")
    write_page(study.study_name, [section], options.output)
    document = _document(study, default, best, final, verdict, options)
    keep_document(store_file, "tuning", study.study_name, document)
    if as_json:
        print_json(document)
        return 0
    rows = [
        ["default", *(str(default.options.get(name, "")) for name in best.params), "1", number(final.default_score)],
        ["best", *map(str, best.params.values()), interval(gain.value, gain.low, gain.high), number(final.score)],
    ]
    table(f"{study.study_name}, raced {RACE_REPEATS} times", ["", *best.params, "x faster", "score"], rows)
    console = stdout()
    console.print(f"{verdict}; best trial as it was found: {best.values[0]:.3f} x", markup=False)
    for name, share in document["importances"].items():
        console.print(f"importance of {name}: {share:.0%}", markup=False)
    settings = ",".join(f"{name}={value}" for name, value in track.candidate(best.params).options.items())
    console.print(
        f"python -m suite run --workload {options.run.workload} --method {default.name}:{settings}", markup=False
    )
    console.print(f"report: {options.output}", markup=False)
    return 0


def _document(
    study: Study, default: MethodSpec, best: FrozenTrial, final: Race, verdict: str, options: TuneOptions
) -> dict[str, Any]:
    from dataclasses import asdict

    from analysis import tuning

    trials = [
        {"number": t.number, "state": t.state.name.lower(), "params": t.params, "values": t.values, **t.user_attrs}
        for t in study.trials
    ]
    return {
        "study": study.study_name,
        "default": default.options,
        "best": best.params,
        "found": best.values[0],
        "race": asdict(final),
        "verdict": verdict,
        "best_so_far": tuning.best_so_far(study),
        "importances": {name: share for name, share in tuning.importances(study).items() if math.isfinite(share)},
        "trials": trials,
        "report": str(options.output),
    }
