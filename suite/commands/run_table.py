"""The table of a run: one row per method, and what went wrong with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from textwrap import wrap
from typing import Any, NamedTuple

from suite.commands.output import NAME, interval, number, stdout, table

_RATIOS = (("ttft", "prefill x"), ("tpot", "decode x"))
_SHOWN_PROBLEMS = 3


class _Extra(NamedTuple):
    """A column that is there where some method has another value than `usual`."""

    metric: str
    title: str
    usual: float
    show: Callable[[float | None], str]


def _in(unit: float) -> Callable[[float | None], str]:
    return lambda value: number(None if value is None else value / unit)


_EXTRAS = (
    _Extra("prefill_density", "prefill read", 1.0, number),
    _Extra("tau", "tau", 1.0, number),
    _Extra("draft_acceptance_rate", "accepted", 1.0, number),
    _Extra("draft_time_share", "draft", 0.0, number),
    _Extra("predicted_decode_speedup", "predicted x", 1.0, number),
    _Extra("kv_host_bytes", "host KV MB", 0.0, _in(1e6)),
)

_SEARCHES = (
    _Extra("search_throughput", "drawn tok/s", 0.0, number),
    _Extra("search_generated_tokens", "drawn", 0.0, number),
    _Extra("search_sequential_depth", "depth", 0.0, number),
    _Extra("search_discarded_share", "discarded", 0.0, number),
    _Extra("search_prefilled_tokens", "prefilled", 0.0, number),
    _Extra("search_verifier_passes", "verified", 0.0, number),
    _Extra("search_verifier_tokens", "verifier tok", 0.0, number),
    _Extra("search_flops", "GFLOP", 0.0, _in(1e9)),
    _Extra("search_verifier_flops", "verifier GFLOP", 0.0, _in(1e9)),
    _Extra("search_cancelled", "called off", 0.0, number),
)
"""What searches cost per request: a table of their own, as the first one is as wide as a terminal."""


def print_summary(title: str, summary: Sequence[Mapping[str, Any]], runs: Sequence[str] = ()) -> None:
    """The rows of a document's summary as a table on stdout. With several runs, `runs` names the one of each row."""
    columns = [
        "method", "status", "n", "score", "TTFT ms", "TPOT ms", "tok/s", "KV stored", "KV read", "GB/s", "roof",
        *(title for _, title in _RATIOS),
    ]  # fmt: skip
    extras, costs = _extras(summary, _EXTRAS), _extras(summary, _SEARCHES)
    columns[9:9] = [extra.title for extra in extras]
    rows = [_row(row, extras) for row in summary]
    if runs:
        columns, rows = ["run", *columns], [[run, *row] for run, row in zip(runs, rows, strict=True)]
    table(title, columns, rows, left=3 if runs else 2)
    searches = [row for row in summary if row["metrics"].get("search_generated_tokens") is not None]
    if searches:
        costs_of = [
            [
                _name(row["method"]),
                *(e.show(row["metrics"].get(e.metric)) for e in costs),
                _ratio(row["ratios"], "e2el"),
            ]
            for row in searches
        ]
        table("Searches, per request", ["method", *(extra.title for extra in costs), "whole x"], costs_of)


def print_spec_bench(rows: Sequence[Mapping[str, Any]]) -> None:
    """Spec-Bench's own figures: a line for each method, its speed-ups by category."""
    categories = list(dict.fromkeys(row["category"] for row in rows))
    by_method: dict[str, dict[str, Mapping[str, Any]]] = {}
    for row in rows:
        by_method.setdefault(row["method"], {})[row["category"]] = row
    overall = categories[0]
    lines = [
        [_name(method), number(found[overall]["tokens_per_s"]), number(found[overall]["accepted"])]
        + [_protocol_cell(found.get(category)) for category in categories]
        for method, found in by_method.items()
    ]
    table(
        "Spec-Bench protocol: mean speed over dense's mean speed, prefill included (± over repeats); not paired",
        ["method", "tok/s", "accepted", *(f"{category} x" for category in categories)],
        lines,
    )


def _protocol_cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "-"
    return number(row["speedup"]) + (f" ± {number(row['spread'], 2)}" if row["spread"] is not None else "")


def print_problems(summary: Sequence[Mapping[str, Any]], prefix: str = "") -> None:
    """Why units are unstable, gated or failed: the first few of each method."""
    console = stdout()
    for row in summary:
        name = prefix + row["method"]
        for problem in row["problems"][:_SHOWN_PROBLEMS]:
            console.print(f"{name}: {problem}", markup=False)
        if len(row["problems"]) > _SHOWN_PROBLEMS:
            console.print(f"{name}: {len(row['problems']) - _SHOWN_PROBLEMS} more, in the report", markup=False)


def _extras(summary: Sequence[Mapping[str, Any]], known: Sequence[_Extra]) -> list[_Extra]:
    """Those columns that tell something; what rounds to the usual value does not."""
    values = {extra: [row["metrics"].get(extra.metric) for row in summary] for extra in known}
    return [e for e, found in values.items() if any(x is not None and abs(x - e.usual) >= 5e-4 for x in found)]


def _row(row: Mapping[str, Any], extras: Sequence[_Extra]) -> list[str]:
    metrics, ratios = row["metrics"], row["ratios"]
    error = metrics.get("score_standard_error")
    score = number(metrics.get("score")) + (f" ± {number(error, 2)}" if error is not None else "")
    fraction = metrics.get("decode_ceiling_fraction")
    return [
        _name(row["method"]),
        ", ".join(f"{count} {status}" for status, count in row["statuses"].items() if count),
        str(row["requests"]),
        score,
        number(metrics.get("median_ttft_ms")),
        number(metrics.get("median_tpot_ms")),
        number(metrics.get("output_throughput")),
        number(metrics.get("stored_retention")),
        number(metrics.get("selected_retention")),
        *(extra.show(metrics.get(extra.metric)) for extra in extras),
        number(metrics.get("decode_gb_per_s")),
        "-" if fraction is None else f"{fraction:.0%}",
        *(_ratio(ratios, name) for name, _ in _RATIOS),
    ]


def _name(method: str) -> str:
    """The name, and below it the options in lines that a table need not fold."""
    name, bracket, options = method.partition("(")
    return "\n".join([name, *wrap(bracket + options, NAME, break_long_words=False)])


def _ratio(ratios: Mapping[str, Any], name: str) -> str:
    """The baseline has no ratios and is 1; a method may lack one: a search has no time per token."""
    ratio = ratios.get(name)
    if ratio is None:
        return "-" if ratios else "1"
    return interval(ratio["value"], ratio["low"], ratio["high"])
