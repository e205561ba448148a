"""`suite roofline`, parsed: `suite.commands.roofline` calibrates, `..._estimate` predicts, `..._validate` judges."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from suite.cli_options import Json, Store, Threads


def roofline_command(
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Measure this machine's ceilings and store them.")
    ] = False,
    validate: Annotated[
        bool,
        typer.Option(
            "--validate", help="Time passes of the model here, 128 to 8192 tokens; say how well they are predicted."
        ),
    ] = False,
    model: Annotated[
        str, typer.Option("--model", help="A model of `suite list models` or `shapes`, a directory, or a config.json.")
    ] = "smollm2-135m",
    method: Annotated[
        str, typer.Option("--method", "-m", help="NAME or NAME:option=value,...; `suite list methods`.")
    ] = "dense",
    option: Annotated[list[str] | None, typer.Option("--set", help="Method option as name=value; repeatable.")] = None,
    hardware: Annotated[
        str, typer.Option("--hardware", help="A device of `suite list hardware`, FILE.toml[:NAME], or `local`.")
    ] = "local",
    batch: Annotated[
        str, typer.Option("--batch", help="Sequences; several as 1,4,16 (default 1; for --validate 1,2,4,8,16).")
    ] = "",
    seqlen: Annotated[
        str,
        typer.Option("--seqlen", help="Tokens of context; several as 1024,8192 (default 4096; see --validate)."),
    ] = "",
    bits: Annotated[str, typer.Option("--bits", help="Weight/KV/activation bits.")] = "16/16/16",
    unfused: Annotated[bool, typer.Option("--unfused", help="Attention that writes its scores to memory.")] = False,
    chunk: Annotated[int, typer.Option("--chunk", min=0, help="Prefill in chunks of so many tokens.")] = 0,
    generate: Annotated[int, typer.Option("--generate", min=0, help="A chat too: so many tokens behind it.")] = 0,
    accepted: Annotated[
        float, typer.Option("--accepted", min=1, help="Tokens per step of a method that drafts, as measured.")
    ] = 1.0,
    tensor: Annotated[int, typer.Option("--tensor", min=1, help="Devices that share every layer.")] = 1,
    pipeline: Annotated[int, typer.Option("--pipeline", min=1, help="Devices that hold layers each.")] = 1,
    expert: Annotated[int, typer.Option("--expert", min=1, help="Devices that hold experts each.")] = 1,
    price: Annotated[float, typer.Option("--price", min=0, help="Price of a device's hour.")] = 0.0,
    compat: Annotated[
        str, typer.Option("--compat", help="llm-viewer-2024 or llm-viewer-2026: its figures beside these.")
    ] = "",
    explore: Annotated[
        Path | None,
        typer.Option("--explore", help="Write FILE.html, a page that computes, and begins with this question."),
    ] = None,
    budget: Annotated[
        str, typer.Option("--budget", help="Time for --validate (default 4m); a later run adds to what is stored.")
    ] = "",
    threads: Threads = 0,
    store: Store = None,
    csv: Annotated[bool, typer.Option("--csv", help="Comma-separated values on stdout.")] = False,
    json: Json = False,
) -> int:
    """Calibrate this machine, predict what a model and a method cost on any machine, or judge the predictions here."""
    from suite.commands import roofline as command
    from suite.commands import roofline_estimate as estimate

    if calibrate:
        return command.calibrate_machine(threads, store, json)
    if validate:
        from suite.commands import roofline_validate as judging

        return judging.validate(
            judging.ValidateOptions(model, method, hardware, batch, seqlen, bits, threads, budget, store, json)
        )
    wishes = estimate.EstimateOptions(
        model=model, method=method, settings=option or [], hardware=hardware, batch=batch or "1",
        seqlen=seqlen or "4096", bits=bits, fused=not unfused, chunk=chunk, generate=generate, accepted=accepted,
        tensor=tensor, pipeline=pipeline, expert=expert, price=price, compat=compat, store=store,
        form="json" if json else "csv" if csv else "table",
    )  # fmt: skip
    if explore is not None:
        from suite.commands.roofline_explore import explore as write

        return write(wishes, explore)
    return estimate.estimate(wishes)
