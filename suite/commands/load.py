"""`suite load`: requests on schedule to a running server, and an honest report of what became of them."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from suite.commands.load_report import Document, document, show
from suite.commands.output import print_json, progress_bar
from suite.commands.reporting import check_writable
from suite.commands.wishes import workload_options
from suite.engines.load import arrivals, driver, slo
from suite.engines.load.export import vllm_result
from suite.engines.load.plan import Plan, make_items
from suite.engines.load.records import rewrite
from suite.engines.load.recount import recount
from suite.engines.load.target import Endpoint, Target, messages, probe
from suite.engines.load.traces import read_trace
from suite.errors import InputError, NothingMeasuredError, StoppedError
from suite.harness.options import requests_in_turn, validated
from suite.harness.progress import Progress
from suite.models.tokenizer import HFTokenizer
from suite.spec import WorkloadSpec
from workloads.schema import Request
from workloads.serving import of_lengths

REQUESTS = 100
ENDPOINTS: tuple[Endpoint, ...] = ("completions", "chat")


@dataclass(frozen=True)
class LoadOptions:
    """The options of `suite load`, as given. A `rate` is an open loop, a `concurrency` a closed one."""

    base_url: str
    served_model: str
    endpoint: str
    workload: str
    data: Path | None
    settings: Sequence[str]
    rate: float | None
    concurrency: int | None
    burstiness: float
    requests: int | None
    warmup: int
    cooldown: int
    slo: Sequence[str]
    timeout_s: float
    seed: int
    workers: int
    output: Path
    export: Path | None
    trace: Path | None
    tokenizer: str | None

    @property
    def records(self) -> Path:
        """The record file beside the report."""
        return self.output.with_suffix(".records.jsonl")


def load(options: LoadOptions, as_json: bool) -> int:
    """Everything a user can get wrong is found before the first request is sent."""
    bounds = slo.parse(options.slo)
    plan = make_plan(options)
    check_writable(options.output)
    if options.export is not None:
        check_writable(options.export, "--export")
    tokenizer = find_tokenizer(options)
    target = find_target(options)
    outcome, found = measure(plan, options, target, bounds, tokenizer)
    if options.export is not None:
        write_json(options.export, vllm_result(outcome, target, bounds, options.burstiness, options.tokenizer))
    if as_json:
        print_json(found)
    else:
        show(found, options.output)
    if not found["metrics"]["completed"] and not outcome.interrupted:
        raise NothingMeasuredError(f"no request was answered in full; {options.records} says why.")
    return StoppedError.exit_code if outcome.interrupted else 0


def measure(
    plan: Plan, options: LoadOptions, target: Target, bounds: Mapping[str, float], tokenizer: HFTokenizer | None
) -> tuple[driver.Outcome, Document]:
    """One run, its records and its report on disk."""
    check_writable(options.records)
    outcome = _send(plan, target, options)
    if tokenizer is not None:
        outcome = replace(outcome, records=tuple(recount(plan, outcome.records, target.endpoint, tokenizer)))
        rewrite(options.records, outcome.records)
    found = document(outcome, target, bounds, options.records, options.tokenizer)
    write_json(options.output, found)
    return outcome, found


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """One JSON document in a file."""
    path.write_text(json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False) + "\n", encoding="utf-8")


def make_plan(options: LoadOptions) -> Plan:
    """The requests at their due times; warm-up and cool-down come on top of those to measure."""
    if options.trace is not None:
        return _replay(options.trace, options)
    if (options.rate is None) == (options.concurrency is None):
        raise InputError("give either --rate R (open loop) or --concurrency N (closed loop).")
    count = options.warmup + (options.requests or REQUESTS) + options.cooldown
    due, label = None, f"{options.concurrency} in flight"
    if options.rate is not None:
        arrival = _arrival(options.burstiness)
        due = arrivals.due_times(arrival, options.rate, count, options.seed, _shape(options.burstiness)).tolist()
        label = f"{arrival} arrivals, {options.rate:g} requests/s"
    items = make_items(_requests(options, count), due, options.warmup, options.cooldown)
    if len(items) < count:
        raise InputError(f"workload {options.workload} holds {len(items)} requests, and {count} are wanted in all.")
    return Plan(items, f"{options.workload}, {label}", options.concurrency, options.rate)


def _replay(path: Path, options: LoadOptions) -> Plan:
    """The trace's arrivals and lengths, with random words; a rate stretches its time."""
    if options.concurrency is not None:
        raise InputError("--trace says when requests come; a closed loop (--concurrency) cannot follow it.")
    count = None if options.requests is None else options.warmup + options.requests + options.cooldown
    trace = read_trace(path).first(count)
    if options.rate is not None:
        trace = trace.at_rate(options.rate)
    made = (of_lengths(index, options.seed, *lengths) for index, lengths in enumerate(trace.lengths))
    items = make_items(made, trace.due, options.warmup, options.cooldown)
    return Plan(items, f"trace {path.name} ({trace.left_out} without an answer left out)", rate=options.rate)


def _arrival(burstiness: float) -> arrivals.Arrival:
    """As in `vllm bench serve`: 1 is Poisson, less is bursty, infinity is constant."""
    if math.isinf(burstiness):
        return "constant"
    return "poisson" if burstiness == 1 else "gamma"


def _shape(burstiness: float) -> float:
    return 1.0 if math.isinf(burstiness) else burstiness


def _requests(options: LoadOptions, count: int) -> Iterator[Request]:
    """The workload's requests, its tasks in turn."""
    given = {"name": options.workload, "task": "", "limit": count, "seed": options.seed}
    settings = workload_options(options.settings, options.data)
    spec = validated(WorkloadSpec, {**given, "options": settings}, f"workload {options.workload}")
    for request in requests_in_turn(spec):
        if request.target is not None:
            raise InputError(f"workload {options.workload} scores given text and asks for none: nothing to send.")
        yield request


def find_target(options: LoadOptions) -> Target:
    """The running server, asked what it serves."""
    for endpoint in ENDPOINTS:
        if endpoint == options.endpoint:
            return probe(Target(options.base_url, options.served_model, endpoint))
    raise InputError(f"there is no endpoint {options.endpoint!r}; known: {', '.join(ENDPOINTS)}.")


def find_tokenizer(options: LoadOptions) -> HFTokenizer | None:
    """The tokenizer that counts after the server, if one is wanted; it must know how to make this kind of prompt."""
    if options.tokenizer is None:
        return None
    from suite.models.loaders import model_directory

    found = HFTokenizer.from_directory(model_directory(options.tokenizer))
    if options.endpoint == "chat":
        found.conversation(messages("ready?", []))
    return found


def _send(plan: Plan, target: Target, options: LoadOptions) -> driver.Outcome:
    workers = options.workers or driver.default_workers()
    with progress_bar("requests") as bar:
        listener = _progress(plan, bar)
        return driver.run(
            plan, target, options.records, timeout_s=options.timeout_s, workers=workers, listener=listener
        )


def _progress(plan: Plan, bar: Callable[[Progress], None]) -> Callable[[int], None]:
    start, total = time.perf_counter(), len(plan.items)

    def heard(done: int) -> None:
        eta_s = (time.perf_counter() - start) * (total - done) / done if done else None
        bar(Progress(plan.mode, done, total, done, total, eta_s))

    return heard
