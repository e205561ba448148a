"""The command line: parses, calls, prints. What a command does lives in `suite/commands/`, imported when it runs."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from suite.cli_engines import engines, load_command
from suite.cli_options import Dtype, Json, Model, Store, Threads
from suite.cli_roofline import roofline_command
from suite.errors import InputError, SuiteError

app = typer.Typer(
    name="suite",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Benchmarks and rooflines for LLM-inference methods: one bench, one clock, one byte counter.",
    epilog="Example: python -m suite run --workload longbench",
)

kernels = typer.Typer(no_args_is_help=True, help="Kernels: their contract, their speed, their machine code.")
app.add_typer(kernels, name="kernels")

app.add_typer(engines, name="engines")


def run(arguments: Sequence[str]) -> int:
    """Parses and runs; turns every known failure into one sentence on stderr and its exit code."""
    from workloads.schema import DataError

    try:
        _check_environment()
        code = app(args=list(arguments), standalone_mode=False)
    except typer.Exit as exit_:
        return exit_.exit_code
    except SuiteError as error:
        return _complain(str(error), error.exit_code)
    except DataError as error:
        return _complain(str(error), InputError.exit_code)
    except KeyboardInterrupt:
        return _complain("interrupted.", 130)
    except typer.Abort:
        return _complain("interrupted.", 130)
    except Exception as error:
        return _usage(error)
    return code if isinstance(code, int) else 0


def _check_environment() -> None:
    if os.environ.get("SUITE_KERNELS"):
        from kernels import build

        try:
            build.level()
        except ValueError as error:
            raise InputError(f"{error}.") from error


def _complain(sentence: str, code: int) -> int:
    print(f"suite: {sentence}", file=sys.stderr)
    return code


def _usage(error: Exception) -> int:
    """Click's own usage errors carry a sentence; anything else is a bug and keeps its traceback."""
    if not hasattr(error, "format_message"):
        raise error
    return _complain(f"{error.format_message()} Try --help.", InputError.exit_code)


@app.command("run", epilog="Example: python -m suite run --workload longbench --method longheads --budget 3m")
def run_command(
    workload: Annotated[str, typer.Option("--workload", "-w", help="What to run; `suite list workloads`.")],
    method: Annotated[
        list[str] | None,
        typer.Option(
            "--method",
            "-m",
            help="NAME or NAME:option=value,...; repeatable. Two at once: A+B:A.option=value. Default: all that apply.",
        ),
    ] = None,
    model: Model = "smollm2-135m",
    task: Annotated[list[str] | None, typer.Option("--task", "-t", help="Only these tasks; repeatable.")] = None,
    limit: Annotated[int | None, typer.Option("--limit", help="Items per task.")] = None,
    budget: Annotated[str | None, typer.Option("--budget", help="Time for the run: 90s, 3m, 1h (default 3m).")] = None,
    kv_budget: Annotated[
        int,
        typer.Option("--kv-budget", min=16, help="Tokens a selecting method reads per head, unless it says itself."),
    ] = 512,
    data: Annotated[
        Path | None, typer.Option("--data", help="Your own copy of the data, in the public schema.")
    ] = None,
    option: Annotated[
        list[str] | None, typer.Option("--set", help="Workload option as name=value; repeatable.")
    ] = None,
    dtype: Dtype = "bf16",
    engine: Annotated[str, typer.Option("--engine", help="`suite list engines`.")] = "native",
    threads: Threads = 0,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Requests per batch.")] = 1,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Timed repeats of every request.")] = 1,
    temperature: Annotated[float, typer.Option("--temperature", min=0, help="0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option("--top-k", min=0)] = 0,
    top_p: Annotated[float, typer.Option("--top-p", min=0, max=1)] = 1.0,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    store: Store = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Report file (default report.html).")] = None,
    json: Json = False,
) -> int:
    """Measure methods against the dense baseline, and leave a report."""
    from suite.commands import running
    from suite.commands.wishes import RunOptions

    options = RunOptions(
        workload=workload, methods=method or [], model=model, tasks=task or [], limit=limit, budget=budget,
        kv_budget=kv_budget, data=data, settings=option or [], dtype=dtype, engine=engine, threads=threads, batch=batch,
        repeats=repeats, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed,
    )  # fmt: skip
    return running.run(options, store, output, json)


@app.command("tune", epilog="Example: python -m suite tune --method longheads --workload needle --trials 20")
def tune_command(
    workload: Annotated[str, typer.Option("--workload", "-w", help="What to run; `suite list workloads`.")],
    method: Annotated[
        str, typer.Option("--method", "-m", help="NAME or NAME:option=value,...: where to start from.")
    ] = "",
    engine: Annotated[
        str, typer.Option("--engine", help="vllm: search the arguments of this engine, running live.")
    ] = "native",
    trials: Annotated[
        int, typer.Option("--trials", min=1, help="Configurations to measure, earlier ones included.")
    ] = 25,
    sampler: Annotated[
        str, typer.Option("--sampler", help="tpe, random, grid or nsga2 (speed against score).")
    ] = "tpe",
    parameter: Annotated[
        list[str] | None,
        typer.Option("--parameter", "-p", help="Only these options; repeatable. Default: all tunable."),
    ] = None,
    keep_score: Annotated[
        float, typer.Option("--keep-score", min=0, help="Share of the default's score that must remain.")
    ] = 0.95,
    model: Model = "smollm2-135m",
    task: Annotated[list[str] | None, typer.Option("--task", "-t", help="Only these tasks; repeatable.")] = None,
    limit: Annotated[
        int, typer.Option("--limit", min=1, help="Items per task and trial; with --engine, requests per repeat.")
    ] = 3,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="With --engine: repeats of a trial.")] = 3,
    against: Annotated[
        list[str] | None, typer.Option("--against", help="With --engine: samplers to compare with; repeatable.")
    ] = None,
    bounds: Annotated[
        list[str] | None, typer.Option("--slo", help="With --engine: p95 to keep, as ttft=500ms; repeatable.")
    ] = None,
    transfer: Annotated[
        str, typer.Option("--transfer", help="With --engine: a second setting, as threads=1 or dtype=fp32.")
    ] = "",
    kv_budget: Annotated[int, typer.Option("--kv-budget", min=16, help="Tokens the default reads per head.")] = 512,
    data: Annotated[Path | None, typer.Option("--data", help="Your own copy of the data.")] = None,
    option: Annotated[list[str] | None, typer.Option("--set", help="Workload option as name=value.")] = None,
    dtype: Dtype = "bf16",
    threads: Threads = 0,
    batch: Annotated[int, typer.Option("--batch", min=1, help="Requests per batch.")] = 1,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    study: Annotated[str, typer.Option("--study", help="Its name; by default the question itself.")] = "",
    store: Store = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Report file.")] = Path("tuning.html"),
    json: Json = False,
) -> int:
    """Search a method's options, or a live engine's arguments; stopped or killed, the same command goes on."""
    from suite.commands import tune, tune_engine
    from suite.commands.wishes import RunOptions

    if engine != "native":
        if method:
            raise InputError(f"--method and --engine {engine} are two searches: give one of them.")
        wishes = tune_engine.EngineTuneOptions(
            workload=workload, tasks=task or [], settings=option or [], data=data, limit=limit, model=model,
            dtype=dtype, threads=threads, trials=trials, repeats=repeats, sampler=sampler, against=against or [],
            parameters=parameter or [], slo=bounds or [], transfer=transfer, seed=seed, study=study,
            studies=tune.STUDIES, store=store,
        )  # fmt: skip
        return tune_engine.tune(tune_engine.wanted(wishes, engine), output, json, store)
    if not method:
        raise InputError("what is to be tuned? Give a method with --method, or --engine vllm.")
    run_options = RunOptions(
        workload=workload, methods=[method], model=model, tasks=task or [], limit=limit, budget=None,
        kv_budget=kv_budget, data=data, settings=option or [], dtype=dtype, engine="native", threads=threads,
        batch=batch, repeats=1, temperature=0.0, top_k=0, top_p=1.0, seed=seed,
    )  # fmt: skip
    options = tune.TuneOptions(run_options, trials, sampler, parameter or [], keep_score, study, tune.STUDIES, output)
    return tune.tune(options, store, json)


app.command(
    "load",
    epilog="Example: python -m suite load --base-url http://127.0.0.1:8000 --rate 4 --slo ttft=200ms --slo tpot=50ms",
)(load_command)


@app.command(epilog="Example: python -m suite resume")
def resume(
    store: Store = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Report file (default report.html).")] = None,
    json: Json = False,
) -> int:
    """Continue the last run that was interrupted; finished units are kept."""
    from suite.commands import running

    return running.resume(store, output, json)


@app.command(epilog="Example: python -m suite sweep sweep.toml --executor ray")
def sweep(
    spec: Annotated[Path, typer.Argument(help="TOML file: [defaults], and lists under [axes] whose product is run.")],
    executor: Annotated[
        str, typer.Option("--executor", help="local, or ray: an existing cluster (RAY_ADDRESS, else this machine's).")
    ] = "local",
    store: Store = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Report file.")] = Path("report.html"),
    json: Json = False,
) -> int:
    """Measure every combination of a file's axes; stopped or killed, the same command goes on."""
    from suite.commands import sweep as command

    return command.sweep(spec, executor, store, output, json)


@app.command("list", epilog="Example: python -m suite list methods")
def list_command(
    kind: Annotated[
        str, typer.Argument(help="methods, workloads, models, engines, hardware, shapes, kernels or claims.")
    ],
    json: Json = False,
) -> int:
    """List what there is."""
    from suite.commands import listing

    return listing.show(kind, json)


app.command(
    "roofline",
    epilog="Example: python -m suite roofline --calibrate; python -m suite roofline --validate --budget 10m; "
    "python -m suite roofline --model llama-3-8b --method chunkllm --hardware h100-sxm --seqlen 131072",
)(roofline_command)


@app.command(epilog="Example: python -m suite reproduce longheads")
def reproduce(
    slugs: Annotated[list[str] | None, typer.Argument(help="Systems; `suite list claims`.")] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every system that has claims here.")] = False,
    threads: Threads = 0,
    store: Store = None,
    json: Json = False,
) -> int:
    """The claims ledger: what a paper claims beside what this machine measures."""
    from suite.commands import ledger

    return ledger.reproduce(slugs or [], everything, threads, store, json)


@app.command(
    epilog="Example: python -m suite report -o report.html; "
    "python -m suite report lrm-table --workload gsm8k --hardware h100-sxm"
)
def report(
    kind: Annotated[
        str, typer.Argument(help="page, or lrm-table: accuracy beside tokens, FLOPs and time, by the survey's tree.")
    ] = "page",
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Where to write the page (default report.html).")
    ] = None,
    workload: Annotated[str, typer.Option("--workload", "-w", help="lrm-table: only this workload.")] = "",
    hardware: Annotated[str, typer.Option("--hardware", help="lrm-table: also the roofline's time there.")] = "",
    store: Store = None,
    json: Json = False,
) -> int:
    """One self-contained HTML file of everything in the store; or one table of it."""
    from suite.commands import reporting

    return reporting.report(kind, reporting.Wanted(output, workload, hardware), store, json)


@app.command(epilog="Example: python -m suite export --format parquet -o results/")
def export(
    format: Annotated[
        str,
        typer.Option(
            "--format", help="parquet, csv, json; github-action-benchmark, bencher, pytest-benchmark or lm-eval."
        ),
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Directory to write into.")] = Path("results/export"),
    store: Store = None,
    json: Json = False,
) -> int:
    """Write the store's units and samples as files other programs read."""
    from suite.commands import reporting

    return reporting.export(format, output, store, json)


@app.command(epilog="Example: python -m suite compare main.sqlite results/suite.sqlite --markdown comment.md")
def compare(
    base: Annotated[str, typer.Argument(help="What was: a store, a history, or a code version, sweep, night, commit.")],
    new: Annotated[str, typer.Argument(help="What is, named the same way.")],
    min_effect: Annotated[
        float, typer.Option("--min-effect", min=0, help="Relative change of a time below which nothing is said.")
    ] = 0.05,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", help="Also write the body of a pull request's comment.")
    ] = None,
    github: Annotated[
        bool, typer.Option("--github", help="Also write GitHub's annotations of regressions to stderr.")
    ] = False,
    store: Store = None,
    json: Json = False,
) -> int:
    """What got worse between two results: speed, quality, KV cache, memory; exit code 1 if anything did."""
    from suite.commands import comparing

    return comparing.compare(base, new, min_effect, store, markdown, github, json)


@app.command(epilog="Example: python -m suite nightly --budget 20m")
def nightly(
    spec: Annotated[
        Path | None,
        typer.Argument(help="TOML file of the runs, as for `suite sweep`. Default: a set for this machine."),
    ] = None,
    budget: Annotated[str, typer.Option("--budget", help="Time for the night: 90s, 20m, 2h.")] = "20m",
    ledger: Annotated[
        list[str] | None,
        typer.Option(
            "--ledger", help="Only these systems' claims; repeatable; `none` for none. Default: all, in turn."
        ),
    ] = None,
    history: Annotated[
        Path | None, typer.Option("--history", help="File of the nights (default nightly.jsonl beside the store).")
    ] = None,
    markdown: Annotated[Path | None, typer.Option("--markdown", help="Also write the body of an issue.")] = None,
    github: Annotated[
        bool, typer.Option("--github", help="Also write GitHub's annotations of regressions to stderr.")
    ] = False,
    store: Store = None,
    output: Annotated[Path, typer.Option("-o", "--output", help="Report file.")] = Path("report.html"),
    json: Json = False,
) -> int:
    """Measure what was left longest, refresh the ledger, grow the history, and say what has got worse."""
    from suite.commands import nightly as command

    options = command.NightlyOptions(spec, budget, ledger or [], history, output, markdown, github)
    return command.nightly(options, store, json)


@app.command(epilog="Example: python -m suite train lab-recall -o my-model")
def train(
    recipe: Annotated[str, typer.Argument(help="The recipe's name.")],
    model: Annotated[str | None, typer.Option(help="The frozen model that adapters are trained for.")] = None,
    data: Annotated[Path | None, typer.Option(help="Text to train adapters on; default: the model's own.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Directory of the checkpoint.")] = None,
    json: Json = False,
) -> int:
    """Train one of the suite's small models from its recipe."""
    from suite.commands import training

    return training.train(recipe, model, data, output, json)


@app.command(epilog="Example: python -m suite doctor")
def doctor(store: Store = None, json: Json = False) -> int:
    """What this machine can do, what is missing, and what the harness itself costs."""
    from suite.commands import doctor as command

    return command.examine(store, json)


Ops = Annotated[list[str] | None, typer.Option("--op", help="Only this op; repeatable. `suite list kernels`.")]


@kernels.command("check", epilog="Example: python -m suite kernels check --op flash_decode")
def kernels_check(op: Ops = None, json: Json = False) -> int:
    """Every kernel on every backend against its fp64 reference."""
    from suite.commands import kernels as command

    return command.check(op or [], json)


@kernels.command("bench", epilog="Example: python -m suite kernels bench --op gemv --threads 1")
def kernels_bench(
    op: Ops = None,
    threads: Annotated[int, typer.Option("--threads", min=0, help="0 shows one thread and all cores.")] = 0,
    json: Json = False,
) -> int:
    """Achieved GB/s and GFLOP/s, the fraction of this machine's ceiling, and the ratio to each peer."""
    from suite.commands import kernels as command

    return command.bench(op or [], threads, json)


@kernels.command("compile", epilog="Example: python -m suite kernels compile --target sm_90 --target gfx942")
def kernels_compile(
    op: Ops = None,
    target: Annotated[
        list[str] | None, typer.Option("--target", help="sm_80, sm_90, sm_100 or gfx942; repeatable. Default: all.")
    ] = None,
    json: Json = False,
) -> int:
    """Compile the Triton kernels with no GPU: registers, spills, shared memory, tensor-core instructions."""
    from suite.commands import kernels as command

    return command.compile_kernels(op or [], target or [], json)


@app.command("import", epilog="Example: python -m suite import load.json vllm.json benchmarks.json")
def import_command(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Results of `suite load`, `vllm bench serve`, AIPerf or GuideLLM; or one of `pytest --benchmark-json`."
        ),
    ],
    json: Json = False,
) -> int:
    """Show load results of several tools side by side, or the kernel benchmarks that pytest-benchmark measured."""
    from suite.commands import importing

    return importing.import_files(files, json)
