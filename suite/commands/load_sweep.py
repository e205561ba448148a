"""`suite load --sweep`: the rate up to which a server keeps up."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from suite.commands import load
from suite.commands.load_report import slipped
from suite.commands.output import number, print_json, stderr, stdout, table
from suite.commands.reporting import check_writable
from suite.engines.load import slo, sweep
from suite.errors import InputError, StoppedError

SCHEMA = "inference-suite.load-sweep/1"
START = 1.0


def run(options: load.LoadOptions, as_json: bool) -> int:
    """One open-loop run per rate, each with requests of its own; Ctrl-C ends the sweep with what it has."""
    if options.concurrency is not None or options.trace is not None or options.export is not None:
        raise InputError("--sweep chooses the rates itself; give it no --concurrency, --trace or --export.")
    bounds = slo.parse(options.slo)
    start = START if options.rate is None else options.rate
    load.make_plan(replace(options, rate=start))
    check_writable(options.output)
    tokenizer = load.find_tokenizer(options)
    target = load.find_target(options)
    documents: list[dict[str, Any]] = []

    def measure(rate: float) -> sweep.Point:
        """Another seed for each rate: no prompt comes twice, so none is in the prefix cache already."""
        own = replace(
            options, rate=rate, seed=options.seed + len(documents), output=_beside(options.output, f"{rate:.4g}")
        )
        outcome, found = load.measure(load.make_plan(own), own, target, bounds, tokenizer)
        documents.append(found)
        point = sweep.Point(rate, sweep.failing(found["metrics"], outcome.records), found["metrics"])
        stderr().print(f"{rate:.4g} requests/s: {point.failing or 'sustained'}", markup=False)
        return point

    def ended() -> bool:
        return bool(documents) and bool(documents[-1]["interrupted"])

    found = sweep.search(measure, start, ended)
    complete = [point for point, document in zip(found.points, documents, strict=True) if not document["interrupted"]]
    document = _document(sweep.Saturation(tuple(complete)), documents, options)
    load.write_json(options.output, document)
    if as_json:
        print_json(document)
    else:
        _show(document, options.output)
    return StoppedError.exit_code if ended() else 0


def _beside(output: Path, rate: str) -> Path:
    return output.with_suffix(f".{rate}rps.json")


def _document(found: sweep.Saturation, documents: list[dict[str, Any]], options: load.LoadOptions) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "base_url": options.base_url,
        "model": documents[0]["model"],
        "slo_ms": documents[0]["slo_ms"],
        "sustained_rate": found.sustained,
        "too_much_rate": found.too_much,
        "points": [
            {"rate": point.rate, "failing": point.failing, "late": slipped(document), **document}
            for point, document in zip(found.points, documents, strict=False)
        ],
    }


def _show(document: dict[str, Any], output: Path) -> None:
    columns = [
        "rate, requests/s",
        "completed/s",
        "output tokens/s",
        "TTFT p99, ms",
        "E2E p99, ms",
        "client slip p99, ms",
    ]
    names = ["request_throughput", "output_throughput", "p99_ttft_ms", "p99_e2el_ms", "p99_client_queue_time_ms"]
    rows = [
        [
            point["failing"] or "sustained",
            number(point["rate"]),
            *(number(point["metrics"].get(name)) for name in names),
        ]
        for point in sorted(document["points"], key=lambda point: point["rate"])
    ]
    table("rates that were tried, latencies from the scheduled arrival", ["", *columns], rows)
    console = stdout()
    low, high = document["sustained_rate"], document["too_much_rate"]
    console.print(f"sustained: {number(low)} requests/s; too much: {number(high)} requests/s", markup=False)
    if any(point["late"] for point in document["points"]):
        console.print(
            "note: at some rates the client itself sent late: the limit found may be the client's", markup=False
        )
    console.print(f"report: {output}; one report and record file per rate beside it", markup=False)
