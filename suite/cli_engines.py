"""The commands about engines and servers: `engines install`, `engines compare`, `load`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from suite.cli_options import Dtype, Json, Model, Store, Threads

engines = typer.Typer(no_args_is_help=True, help="Engines: their environments, and one beside the other.")


@engines.command("install", epilog="Example: python -m suite engines install vllm")
def engines_install(engine: Annotated[str, typer.Argument(help="vllm.")]) -> int:
    """Make an engine's own environment in the user's cache: vLLM's CPU build, or plain vLLM beside an NVIDIA driver."""
    from suite.commands import engines as command

    return command.install(engine)


@engines.command("compare", epilog="Example: python -m suite engines compare --engines native,vllm --batch 1,4")
def engines_compare(
    model: Model = "smollm2-135m",
    names: Annotated[str, typer.Option("--engines", help="Comma-separated. Default: all that work here.")] = "",
    batch: Annotated[str, typer.Option("--batch", help="Batch sizes, comma-separated.")] = "1,4,16",
    prompt_tokens: Annotated[int, typer.Option("--prompt-tokens", min=1)] = 256,
    new_tokens: Annotated[int, typer.Option("--new-tokens", min=1)] = 64,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Timed rounds after an untimed one.")] = 3,
    dtype: Dtype = "bf16",
    threads: Threads = 0,
    base_url: Annotated[str, typer.Option("--base-url", help="Address of a running server, for engine openai.")] = "",
    store: Store = None,
    json: Json = False,
) -> int:
    """The same prompts on several engines: speed, memory, their own metrics, and whether they say the same."""
    from suite.commands import engines_compare as command

    options = command.CompareOptions(
        model, names, batch, prompt_tokens, new_tokens, rounds, dtype, threads, base_url
    )  # fmt: skip
    return command.compare(options, store, json)


def load_command(
    base_url: Annotated[str, typer.Option("--base-url", help="Address of a running OpenAI-compatible server.")],
    served_model: Annotated[
        str, typer.Option("--served-model", help="Its name there. Default: the first one listed.")
    ] = "",
    endpoint: Annotated[str, typer.Option("--endpoint", help="completions or chat.")] = "completions",
    workload: Annotated[str, typer.Option("--workload", "-w", help="`suite list workloads`.")] = "serving",
    data: Annotated[Path | None, typer.Option("--data", help="Your own data; for serving, a ShareGPT file.")] = None,
    option: Annotated[
        list[str] | None, typer.Option("--set", help="Workload option as name=value; repeatable.")
    ] = None,
    rate: Annotated[float | None, typer.Option("--rate", help="Open loop: requests per second.")] = None,
    concurrency: Annotated[
        int | None, typer.Option("--concurrency", min=1, help="Closed loop: requests in flight.")
    ] = None,
    burstiness: Annotated[
        float, typer.Option("--burstiness", help="1 is Poisson, less is bursty, inf is constant.")
    ] = 1.0,
    requests: Annotated[
        int | None,
        typer.Option("--requests", "-n", min=1, help="Requests to measure (default 100, or the whole trace)."),
    ] = None,
    warmup: Annotated[int, typer.Option("--warmup", min=0, help="Requests before them, not measured.")] = 0,
    cooldown: Annotated[int, typer.Option("--cooldown", min=0, help="Requests after them, not measured.")] = 0,
    slo: Annotated[
        list[str] | None, typer.Option("--slo", help="Objective, as ttft=200ms (ttft, tpot, e2el); repeatable.")
    ] = None,
    timeout: Annotated[float, typer.Option("--timeout", min=0.001, help="Seconds for a request.")] = 300.0,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
    workers: Annotated[int, typer.Option("--workers", min=0, help="Sending processes; 0: half of the cores.")] = 0,
    output: Annotated[Path, typer.Option("-o", "--output", help="Report as JSON; the records go beside it.")] = Path(
        "load.json"
    ),
    export: Annotated[
        Path | None, typer.Option("--export", help="Also write the result JSON of `vllm bench serve`.")
    ] = None,
    trace: Annotated[
        Path | None, typer.Option("--trace", help="Replay a BurstGPT or Azure CSV, or JSON lines; --rate stretches it.")
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option("--tokenizer", help="Directory or name of the model: its tokenizer checks the server's counts."),
    ] = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Double the rate until it is too much, then bisect; --rate is the first.")
    ] = False,
    json: Json = False,
) -> int:
    """Send requests on schedule to a running server: what became of them, and how long they took."""
    from suite.commands import load, load_sweep

    options = load.LoadOptions(
        base_url=base_url, served_model=served_model, endpoint=endpoint, workload=workload, data=data,
        settings=option or [], rate=rate, concurrency=concurrency, burstiness=burstiness, requests=requests,
        warmup=warmup, cooldown=cooldown, slo=slo or [], timeout_s=timeout, seed=seed, workers=workers, output=output,
        export=export, trace=trace, tokenizer=tokenizer,
    )  # fmt: skip
    return load_sweep.run(options, json) if sweep else load.load(options, json)
