"""`suite tune --engine vllm`: searches a live engine's arguments, each trial in an engine process of its own."""

from __future__ import annotations

import json
import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suite.commands import engine_search
from suite.commands.calibration import ensure_calibration
from suite.commands.engine_models import engine_model
from suite.commands.engine_search import LIMITS, RACE_ROUNDS, EngineTuning, Found, Setting, rate, ratio
from suite.commands.output import interval, number, print_json, stderr, stdout, table
from suite.commands.reporting import check_writable
from suite.commands.stores import keep_document, open_store
from suite.commands.wishes import workload_options
from suite.engines.base import Engine, EngineModel, Prompt
from suite.engines.load import slo
from suite.engines.trials import Repeat, Slices
from suite.errors import InputError, StoppedError
from suite.harness import threads
from suite.harness.options import requests_in_turn, validated
from suite.spec import Dtype, WorkloadSpec

if TYPE_CHECKING:
    from optuna import Study

    from analysis.tuning import Options


def tune(tuning: EngineTuning, output: Path, as_json: bool, store_file: Path | None = None) -> int:
    """Every setting is searched; then default, own best, the other setting's best and batch 1 race in each."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", module="optuna|analysis.tuning")  # which of its parts Optuna calls experimental
    _check_enough(tuning)
    check_writable(output)
    try:
        found = [engine_search.search(tuning, setting) for setting in tuning.settings]
        bests = [engine_search.best(tuning, one) for one in found]
        races = [
            engine_search.race(tuning, one.setting, engine_search.contenders(tuning, bests, place))
            for place, one in enumerate(found)
        ]
    except KeyboardInterrupt:
        raise StoppedError("interrupted: finished trials are kept, and the same command goes on.") from None
    document = _document(tuning, found, bests, races, output)
    _write_page(tuning, found, document, output)
    keep_document(store_file, "tuning", tuning.name, document)
    if as_json:
        print_json(document)
    else:
        _print(document)
    return 0


def _check_enough(tuning: EngineTuning) -> None:
    needed = 1 + tuning.repeats + RACE_ROUNDS
    if len(tuning.slices) < needed:
        raise InputError(
            f"the workload has {len(tuning.slices.prompts)} items, but fresh prompts for every repeat take "
            f"{needed * tuning.slices.size}; lower --limit or --repeats."
        )


# ---- what came out -----------------------------------------------------------------------------------------------


def _document(
    tuning: EngineTuning,
    found: Sequence[Found],
    bests: Sequence[Options],
    races: Sequence[Mapping[str, Sequence[Repeat]]],
    output: Path,
) -> dict[str, Any]:
    return {
        "study": tuning.name,
        "settings": [_setting(tuning, *one) for one in zip(found, bests, races, strict=True)],
        "report": str(output),
    }


def _setting(
    tuning: EngineTuning, found: Found, best: Options, raced: Mapping[str, Sequence[Repeat]]
) -> dict[str, Any]:
    from analysis import tuning as tuner
    from analysis.statistics import coefficient_of_variation

    gain = ratio(raced["default"], raced["best here"])
    arguments = validated(tuning.arguments, best, "engine")
    model = found.setting.model
    floor = coefficient_of_variation(found.default_rates)
    return {
        "setting": found.setting.name,
        "best": best,
        "found": max(t.values[0] for t in tuner.feasible(found.study)),
        "verdict": tuner.verdict(gain.low, gain.high, floor) if gain else "not measured",
        "noise_floor": floor,
        "default_rates": found.default_rates,
        "race": {name: _raced(raced, name) for name in raced},
        "best_so_far": {name: tuner.best_so_far(study) for name, study in found.studies.items()},
        "importances": tuner.importances(found.study),
        "command": getattr(arguments, "command", lambda *_: "")(
            model.directory, model.window, model.torch_dtype, found.setting.threads
        ),
        "trials": {name: _trials(study) for name, study in found.studies.items()},
    }


def _raced(raced: Mapping[str, Sequence[Repeat]], name: str) -> dict[str, Any]:
    runs, over = raced[name], ratio(raced["default"], raced[name])
    p95 = [run.p95_ms() for run in runs]
    return {
        "output_throughput": rate(runs),
        "p95_ms": {metric: statistics.median(one[metric] for one in p95) for metric in p95[0]},
        "largest_batch": max(run.largest_batch for run in runs),
        "over_default": None if over is None or name == "default" else vars(over),
        "rates": [run.output_throughput for run in runs],
    }


def _trials(study: Study) -> list[dict[str, Any]]:
    return [
        {"number": t.number, "state": t.state.name.lower(), "params": t.params, "values": t.values, **t.user_attrs}
        for t in study.trials
    ]


def _rows(setting: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for name, raced in setting["race"].items():
        over = raced["over_default"]
        gain = "1" if over is None else interval(over["value"], over["low"], over["high"])
        rows.append([name, number(raced["output_throughput"]), gain, number(raced["p95_ms"]["ttft"]),
                     str(raced["largest_batch"])])  # fmt: skip
    return rows


COLUMNS = ["", "output tok/s", "x the default", "p95 ttft ms", "largest batch"]


def _title(setting: Mapping[str, Any]) -> str:
    return f"{setting['setting']}: {setting['verdict']}, raced {RACE_ROUNDS} rounds"


def _print(document: Mapping[str, Any]) -> None:
    console = stdout()
    for setting in document["settings"]:
        table(_title(setting), COLUMNS, _rows(setting))
        told = ", ".join(f"{name}={value}" for name, value in setting["best"].items())
        console.print(f"best: {told}; as it was found: {setting['found']:.1f} tok/s", markup=False)
        for trial in chain.from_iterable(setting["trials"].values()):
            if trial.get("origin") == "roofline":
                console.print(_told_guess(trial), markup=False)
        console.print(f"noise floor (spread of the default): {setting['noise_floor']:.1%}", markup=False)
        for name, trials in setting["trials"].items():
            failed = [trial for trial in trials if trial["state"] != "complete"]
            console.print(f"{name}: {len(trials)} trials, {len(failed)} without a figure", markup=False)
        for name, share in setting["importances"].items():
            console.print(f"importance of {name}: {share:.0%}", markup=False)
        if setting["command"]:
            console.print(setting["command"], markup=False, soft_wrap=True)
    console.print(f"report: {document['report']}", markup=False)


def _told_guess(trial: Mapping[str, Any]) -> str:
    guess = ", ".join(f"{name}={value}" for name, value in trial["params"].items())
    came = f"{trial['values'][0]:.1f} tok/s" if trial["values"] else trial.get("reason", "no figure")
    return f"the roofline's guess ({guess}): {came}"


def _write_page(tuning: EngineTuning, found: Sequence[Found], document: Mapping[str, Any], output: Path) -> None:
    from reports.tuning import Section, write_page

    sections = [
        Section(_title(told), one.studies, "output tokens/s", (COLUMNS, _rows(told)))
        for one, told in zip(found, document["settings"], strict=True)
    ]
    write_page(tuning.name, sections, output)


# ---- what a user asked for ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EngineTuneOptions:
    """The options of `suite tune --engine vllm`, as given."""

    workload: str
    tasks: Sequence[str]
    settings: Sequence[str]
    data: Path | None
    limit: int
    model: str
    dtype: str
    threads: int
    trials: int
    repeats: int
    sampler: str
    against: Sequence[str]
    parameters: Sequence[str]
    slo: Sequence[str]
    transfer: str
    seed: int
    study: str
    studies: Path
    store: Path | None


def wanted(options: EngineTuneOptions, engine: str) -> EngineTuning:
    """Checks all of it before anything is started."""
    from analysis.tuning import SAMPLERS
    from suite.engines import vllm_environment
    from suite.engines.vllm import VllmEngine
    from suite.engines.vllm_arguments import VllmArguments

    if engine != "vllm":
        raise InputError(f"engine {engine} has no arguments to tune; `--engine vllm` has.")
    samplers = list(dict.fromkeys([options.sampler, *options.against]))
    for name in samplers:
        if name not in SAMPLERS:
            raise InputError(f"there is no sampler {name!r}; known: {', '.join(SAMPLERS)}.")
    vllm_environment.python()  # raises when it is not installed
    first = _first_setting(options)

    def make(setting: Setting, arguments: VllmArguments) -> Engine:
        if reason := arguments.misfit(setting.model.window):
            raise InputError(reason)
        return VllmEngine(setting.model, setting.threads, LIMITS, arguments)

    slices = _slices(options, first.model)
    return EngineTuning(
        make=make, arguments=VllmArguments, settings=[first, *_other(first, options.transfer)],
        slices=slices, guess=partial(_guess, slices, options.store), trials=options.trials,
        repeats=options.repeats, samplers=samplers, parameters=options.parameters, bounds=slo.parse(options.slo),
        seed=options.seed, name=options.study or _name(options, engine), studies=options.studies,
    )  # fmt: skip


def _guess(slices: Slices, store_file: Path | None, setting: Setting) -> dict[str, Any]:
    """The roofline's best batching for a repeat's prompts, all as long as their mean; {} without stable ceilings."""
    from optuna.distributions import IntDistribution

    from analysis.roofline.batching import Batching, Traffic, suggested
    from analysis.roofline.ceilings import DRAM, Ceilings
    from analysis.roofline.operators import Precision
    from analysis.roofline.shape import ModelShape
    from analysis.tuning import search_space
    from suite.engines.vllm_arguments import VllmArguments

    with open_store(store_file) as store:
        ceilings = Ceilings(ensure_calibration(store, setting.threads, stderr()))
    target = ceilings.machine(setting.model.dtype, setting.threads, DRAM)
    if target is None:
        return {}
    prompts = slices.prompts
    traffic = Traffic(
        prompts=slices.size,
        input_tokens=round(statistics.fmean(len(prompt.ids) for prompt in prompts)),
        output_tokens=round(statistics.fmean(prompt.max_new_tokens for prompt in prompts)),
    )
    tops = {name: kind.high for name, kind in search_space(VllmArguments).items() if isinstance(kind, IntDistribution)}
    highest = Batching(tops["max_num_seqs"], tops["max_num_batched_tokens"])
    bits = 16 if setting.model.dtype == "bf16" else 32
    shape = ModelShape.from_hf(json.loads((Path(setting.model.directory) / "config.json").read_text()))
    return asdict(suggested(shape, Precision.of_bits(bits, bits, bits), target, traffic, highest))


def _name(options: EngineTuneOptions, engine: str) -> str:
    """The same question continues the same study."""
    searched = "+".join(options.parameters) or "all"
    asked = ", ".join([*options.tasks, *options.settings, *options.slo, f"{options.limit} requests"])
    return f"{engine} on {options.model}: {options.workload} ({asked}; {searched}, seed {options.seed})"


def _first_setting(options: EngineTuneOptions) -> Setting:
    return Setting(engine_model(options.model, options.dtype, 0), options.threads or threads.available_cores())


def _other(first: Setting, text: str) -> list[Setting]:
    """The second setting: the first one with one thing changed."""
    if not text:
        return []
    name, _, value = text.partition("=")
    if name == "dtype" and value in ("bf16", "fp32"):
        dtype: Dtype = "bf16" if value == "bf16" else "fp32"
        return [replace(first, model=replace(first.model, dtype=dtype))]
    if name == "threads" and value.isdigit() and int(value) > 0:
        return [replace(first, threads=int(value))]
    raise InputError(f"--transfer {text!r} is no other setting; write threads=1 or dtype=fp32.")


def _slices(options: EngineTuneOptions, model: EngineModel) -> Slices:
    """The workload's requests as prompts of ids, all of whose tokens are made."""
    from suite.models.tokenizer import HFTokenizer

    given = {
        "name": options.workload, "task": "", "limit": options.limit * (1 + options.repeats + RACE_ROUNDS),
        "seed": options.seed, "options": workload_options(options.settings, options.data),
    }  # fmt: skip
    spec = validated(WorkloadSpec, given, f"workload {options.workload}")
    tokenizer = HFTokenizer.from_directory(Path(model.directory))
    prompts = []
    for request in requests_in_turn(spec, options.tasks):
        ids = tokenizer.prompt(request.prompt, request.chat)[: model.window - request.max_new_tokens]
        prompts.append(Prompt(tuple(ids), request.max_new_tokens))
    return Slices(prompts, options.limit)
