"""The report of a load run: one JSON document, and the tables a person reads."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from suite.commands.output import number, stdout, table
from suite.engines.load.driver import Outcome
from suite.engines.load.names import BETWEEN, FROM_ARRIVAL, FROM_SENDING
from suite.engines.load.summary import summarise
from suite.engines.load.target import Target

SCHEMA = "inference-suite.load/1"
SLIP_MS = 2.0
"""A client that sends later than this, at p99, is part of what it measures."""
P99_REQUESTS = 459
"""Requests a statement about p99 needs, with 99 % confidence (card section 4)."""
RETOKENISED = {
    "prompt": (0, "another tokenizer, chat template or begin token"),
    "completion": (2, "another tokenizer, or tokens without text"),
}
"""Largest difference without a warning, and what causes more: a prompt is one text, an answer may be cut otherwise."""
Document = dict[str, Any]


def document(
    outcome: Outcome, target: Target, bounds: Mapping[str, float], records: Path, tokenizer: str | None
) -> Document:
    """Everything about a run; `metrics` has the figures under the names of `vllm bench serve`."""
    plan = outcome.plan
    metrics = summarise(outcome.records, outcome.planned, bounds)
    found = {
        "schema": SCHEMA,
        "base_url": target.base_url,
        "model": target.model,
        "endpoint": target.endpoint,
        "mode": plan.mode,
        "load": plan.label,
        "rate": plan.rate,
        "concurrency": plan.concurrency,
        "slo_ms": dict(bounds),
        "tokenizer": tokenizer,
        "interrupted": outcome.interrupted,
        "metrics": metrics,
        "records": str(records),
    }
    return {**found, "remarks": _remarks(found)}


def _remarks(found: Document) -> list[str]:
    """What a reader must know before trusting the figures."""
    metrics, said = found["metrics"], []
    if found["interrupted"]:
        said.append("interrupted: what was due by then is counted, what was in flight has failed as cancelled")
    if found["mode"] == "closed loop":
        said.append("closed loop: nothing was sent while the server stalled, so these latencies flatter it")
    if not metrics["completed"]:
        return said
    if slipped(found):
        said.append(
            f"the client sent late (p99 over {SLIP_MS:g} ms): it is the bottleneck, or shares the server's cores"
        )
    if metrics["completed"] < P99_REQUESTS:
        said.append(f"p99 of {metrics['completed']} requests is a guess: {P99_REQUESTS} are needed")
    if metrics["token_source"].get("unknown"):
        said.append("the server does not say how many tokens it made: no token figures without --tokenizer")
    if metrics["short_answers"]:
        said.append(f"{metrics['short_answers']} answers are shorter than asked for")
    return said + _counting(metrics, found["tokenizer"])


def _counting(metrics: Document, tokenizer: str | None) -> list[str]:
    """Whose token counts these are, where not the server's alone, and whether it counts as its tokenizer does."""
    said = []
    if counted := metrics["token_source"].get("tokenizer"):
        said.append(f"the server sends no usage for {counted} requests: their tokens are those of {tokenizer}")
    for part, (slack, cause) in RETOKENISED.items():
        most = metrics["token_check"][part]["largest_difference"] or 0
        if most > slack:
            said.append(f"{part} tokens differ by up to {most} between the server and {tokenizer}: {cause}")
    return said


def slipped(found: Document) -> bool:
    """Whether the client did not keep its schedule."""
    return (found["metrics"].get("p99_client_queue_time_ms") or 0.0) > SLIP_MS


def show(found: Document, output: Path) -> None:
    """The tables on stdout: what became of the requests, then their latencies."""
    console = stdout()
    console.print(f"{found['model']} at {found['base_url']}: {found['mode']}, {found['load']}", markup=False)
    table("requests", ["", "value"], [[name, value] for name, value in _facts(found)])
    if found["metrics"]["completed"]:
        open_loop = found["mode"] == "open loop"
        rows = [*(FROM_ARRIVAL if open_loop else ()), *FROM_SENDING, *BETWEEN]
        cells = [[said, *_statistics(found["metrics"], name)] for name, said in rows]
        table(f"latencies in ms, {found['mode']}", ["", "mean", "median", "p99", "p99.9"], cells)
    for remark in found["remarks"]:
        console.print(f"note: {remark}", markup=False)
    console.print(f"report: {output}; every request: {found['records']}", markup=False)


def _statistics(metrics: Document, name: str) -> list[str]:
    return [number(metrics[f"{kind}_{name}_ms"]) for kind in ("mean", "median", "p99", "p99.9")]


def _facts(found: Document) -> list[tuple[str, str]]:
    metrics = found["metrics"]
    errors = ", ".join(f"{kind}: {count}" for kind, count in metrics.get("errors", {}).items())
    counts = [
        ("completed", str(metrics["completed"])),
        ("failed", f"{metrics['failed']} ({errors})" if errors else str(metrics["failed"])),
        ("lost", str(metrics["lost"])),
    ]
    if "duration" not in metrics:
        return counts
    slip = number(metrics["p99_client_queue_time_ms"]) + (" (late!)" if slipped(found) else "")
    asked = f"{number(found['rate'], 4)} ({number(metrics['asked_rate'], 4)} as drawn)"
    schedule = [("asked rate, requests/s", asked), ("client slip p99, ms", slip)]
    checks = metrics["token_check"].items()
    return [
        *counts,
        *(schedule if found["mode"] == "open loop" else []),
        ("delivered rate, requests/s", number(metrics["delivered_rate"], 4)),
        ("completed, requests/s", number(metrics["request_throughput"], 4)),
        ("output, tokens/s", number(metrics["output_throughput"], 4)),
        *_goodput(found),
        ("tokens counted by", ", ".join(f"{kind}: {count}" for kind, count in metrics["token_source"].items()) or "-"),
        *(
            (f"{part} tokens as {found['tokenizer']} counts", _agreement(check))
            for part, check in checks
            if check["checked"]
        ),
    ]


def _agreement(check: Document) -> str:
    return (
        f"{check['agree']} of {check['checked']} ({check['share']:.1%}), off by {check['largest_difference']} at most"
    )


def _goodput(found: Document) -> list[tuple[str, str]]:
    metrics = found["metrics"]
    if not found["slo_ms"]:
        return []
    bounds = ", ".join(f"{name} <= {bound:g} ms" for name, bound in found["slo_ms"].items())
    value = f"{number(metrics['request_goodput'], 4)} ({metrics['slo_attainment']:.1%} of all due)"
    return [(f"goodput, requests/s: {bounds}", value)]
