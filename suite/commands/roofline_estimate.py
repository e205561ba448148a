"""`suite roofline` without `--calibrate`: what a model under a method costs on a machine, at one point or many."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from suite.commands.output import number, print_json, stdout, table
from suite.commands.roofline import model_shape, read_precision, target_machine
from suite.commands.wishes import numbers, workload_options
from suite.cost import Count, MethodCost, Situation
from suite.harness.options import named_options

if TYPE_CHECKING:
    from analysis.roofline.estimate import Phases, Setup
    from analysis.roofline.summary import Usage

Row = dict[str, Any]


@dataclass(frozen=True)
class EstimateOptions:
    """The options of `suite roofline`, as given."""

    model: str
    method: str
    settings: Sequence[str]
    hardware: str
    batch: str
    seqlen: str
    bits: str
    fused: bool
    chunk: int
    generate: int
    accepted: float
    tensor: int
    pipeline: int
    expert: int
    price: float
    compat: str
    store: Path | None
    form: Literal["table", "csv", "json"]


def estimate(options: EstimateOptions) -> int:
    """One point in full, several as a table, or a comparison with LLM-Viewer."""
    batches, lengths = numbers(options.batch, "--batch"), numbers(options.seqlen, "--seqlen")
    if options.compat:
        from suite.commands.roofline_compat import compare

        return compare(options, list(product(batches, lengths)))
    setup, usage = setup_and_usage(options)
    if len(batches) * len(lengths) == 1:
        _show_point(_Answer(options, setup, usage, batches[0], lengths[0]))
    else:
        batch, length = (axis.ravel() for axis in np.meshgrid(batches, lengths, indexing="ij"))
        _show_sweep(_Answer(options, setup, usage, batch, length))
    return 0


def setup_and_usage(options: EstimateOptions) -> tuple[Setup, Usage]:
    """The question in the analytic model's terms; `InputError` for what it does not know."""
    from analysis.roofline.estimate import Setup
    from analysis.roofline.parallel import Parallel
    from analysis.roofline.summary import Usage

    precision = read_precision(options.bits)
    method = _method_cost(options)
    target, device = target_machine(options.hardware, precision, options.store)
    setup = Setup(
        shape=model_shape(options.model),
        precision=precision,
        machine=target,
        method=method,
        fused=options.fused,
        parallel=Parallel(options.tensor, options.pipeline, options.expert),
        chunk=options.chunk,
    )
    drafter = setup.execution(1.0).method.drafter
    if drafter is not None and drafter.name:
        setup = replace(setup, drafter=model_shape(drafter.name))
    return setup, Usage(device, options.generate, options.accepted, options.price or None)


def _method_cost(options: EstimateOptions) -> Callable[[Situation], MethodCost]:
    """What the method with its options costs where."""
    from suite.harness.options import validated
    from suite.registry import METHODS

    name, given = named_options(options.method)
    kind = METHODS.load(name)
    config = validated(kind.Config, {**given, **workload_options(options.settings, None)}, f"method {name}")
    return lambda at: kind.cost(config, at)


class _Answer:
    """Everything about one batch size and length, or about arrays of them."""

    def __init__(self, options: EstimateOptions, setup: Setup, usage: Usage, batch: Count, length: Count) -> None:
        self.options, self.setup, self.usage = options, setup, usage
        self.batch, self.length = batch, length
        self.phases: Phases = setup.phases(batch, length)

    def rows(self) -> list[Row]:
        """Figures by name, one row per point."""
        from analysis.roofline.summary import rows, summary

        figures = summary(self.setup, self.usage, self.phases, self.batch, self.length)
        return rows(figures, int(np.size(self.batch)))

    def asked(self) -> Row:
        """The question, without batch and length."""
        return {
            "model": self.options.model,
            "method": self.options.method,
            "hardware": self.setup.machine.name,
            "bits": self.options.bits,
            "devices": self.setup.parallel.devices,
        }


def _show_point(point: _Answer) -> None:
    from analysis.roofline.predict import prediction_rows

    options, rows = point.options, {phase: prediction_rows(times) for phase, times in point.phases.items()}
    if options.form == "csv":
        write_csv([{"phase": phase, **row} for phase, found in rows.items() for row in found])
        return
    (summary,) = point.rows()
    if options.form == "json":
        totals = {
            phase: {"seconds": sum(r["ms"] for r in found) / 1e3, "operators": found} for phase, found in rows.items()
        }
        print_json({**point.asked(), **summary, "phases": totals})
        return
    under = "" if options.method == "dense" else f" under {options.method}"
    where = f"batch {point.batch}, {point.length} tokens, on {point.setup.machine.name}"
    for phase, found in rows.items():
        _print_phase(f"{phase} of {options.model}{under}, {where}", found)
    for line in _sentences(point, summary):
        stdout().print(line, markup=False)


def _print_phase(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    total = sum(row["ms"] for row in rows)
    cells = [
        [
            row["operator"],
            row["bound"],
            number(row["flops"] / 1e9),
            number(row["bytes"] / 1e6),
            number(row["ms"]),
            f"{row['ms'] / total:.0%}",
        ]
        for row in rows
    ]
    table(title, ["operator", "bound", "GFLOP", "MB", "ms", "share"], cells, left=2)
    stdout().print(f"at least {total:.3f} ms", markup=False)


def _sentences(point: _Answer, summary: Row) -> list[str]:
    """The summary in words; what nobody asked for, or nobody knows, is left out."""
    options, verdict = point.options, {True: "fits", False: "does not fit", None: ""}[summary["fits"]]
    lines = [
        f"at most {number(summary['tokens_per_s'])} tokens/s; first token after {number(summary['prefill_ms'])} ms",
        f"{number(summary['memory_gb'])} GB per device, {number(summary['weights_gb'])} of them weights and "
        f"{number(summary['kv_cache_gb'])} keys and values" + (f": {verdict}" if verdict else ""),
    ]
    if "verify" in point.phases:
        even = number(summary["break_even_tokens_per_step"])
        lines.append(
            f"a round pays when it gives more than {even} tokens; {options.accepted:g} are counted (--accepted)"
        )
    if summary["chat_s"] is not None:
        lines.append(f"{options.generate} tokens behind the prompt: {number(summary['chat_s'])} s in all")
    if summary["joules_per_token"] is not None:
        lines.append(f"{number(summary['joules_per_token'])} J per generated token")
    elif (most := summary["joules_per_token_at_rated_power"]) is not None:
        lines.append(f"energy constants not available; rated power would be {number(most)} J per generated token")
    if summary["price_per_million_out"] is not None:
        paid = [number(summary[f"price_per_million_{way}"]) for way in ("in", "out")]
        lines.append(f"a million tokens cost {paid[0]} read and {paid[1]} written")
    return lines


def _show_sweep(answer: _Answer) -> None:
    asked, rows = answer.asked(), answer.rows()
    if answer.options.form == "json":
        print_json({**asked, "points": rows})
    elif answer.options.form == "csv":
        write_csv([{**asked, **row} for row in rows])
    else:
        columns = [name for name in rows[0] if any(row[name] is not None for row in rows) and name != "fits"]
        cells = [[number(row[name], 4) for name in columns] for row in rows]
        title = f"{asked['model']} under {asked['method']} on {asked['hardware']}, at least"
        table(title, [name.replace("_", " ") for name in columns], cells)


def write_csv(rows: Sequence[Row]) -> None:
    writer = csv.DictWriter(sys.stdout, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
