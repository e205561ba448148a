"""`suite roofline` without `--calibrate`: what a model under a method costs on a machine, at one point or many."""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from suite.commands.output import number, print_json, stdout, table
from suite.commands.roofline import model_shape, read_precision, target_machine
from suite.commands.wishes import named_options, numbers, workload_options
from suite.cost import MethodCost, Situation

if TYPE_CHECKING:
    from analysis.hardware import Hardware
    from analysis.roofline.estimate import Phases, Setup

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
    setup, device = _setup(options)
    points = [_Point(options, setup, device, batch, length) for batch, length in product(batches, lengths)]
    if len(points) == 1:
        _show_point(points[0])
    else:
        _show_sweep(points)
    return 0


def _setup(options: EstimateOptions) -> tuple[Setup, Hardware | None]:
    from analysis.roofline.estimate import Setup
    from analysis.roofline.parallel import Parallel

    precision = read_precision(options.bits)
    cost, drafter = _method_cost(options)
    target, device = target_machine(options.hardware, precision, options.store)
    setup = Setup(
        shape=model_shape(options.model),
        precision=precision,
        machine=target,
        method=cost,
        drafter=model_shape(drafter) if drafter else None,
        fused=options.fused,
        parallel=Parallel(options.tensor, options.pipeline, options.expert),
        chunk=options.chunk,
    )
    return setup, device


def _method_cost(options: EstimateOptions) -> tuple[Callable[[Situation], MethodCost], str]:
    """What the method with its options costs where, and the name of the model that drafts for it."""
    from suite.harness.options import validated
    from suite.registry import METHODS

    name, given = named_options(options.method)
    kind = METHODS.load(name)
    config = validated(kind.Config, {**given, **workload_options(options.settings, None)}, f"method {name}")
    return lambda at: kind.cost(config, at), str(getattr(config, "drafter", ""))


class _Point:
    """Everything about one batch size and length."""

    def __init__(
        self, options: EstimateOptions, setup: Setup, device: Hardware | None, batch: int, length: int
    ) -> None:
        self.options, self.setup, self.device, self.batch, self.length = options, setup, device, batch, length
        self.phases: Phases = setup.phases(batch, length)

    def summary(self) -> Row:
        """Figures by name; None where nothing is known, as with energy."""
        from analysis.roofline.estimate import memory, price_per_million, seconds

        options, setup, devices = self.options, self.setup, self.setup.parallel.devices
        first, step = setup.prefill_seconds(self.phases, self.batch), setup.round_seconds(self.phases)
        rate = setup.tokens_per_second(self.phases, self.batch, options.accepted)
        held, read = memory(setup, self.phases, self.batch, self.length), self.batch * self.length / first
        price = options.price or None
        chat = options.generate and setup.chat_seconds(self.batch, self.length, options.generate, options.accepted)
        return {
            "batch": self.batch,
            "seqlen": self.length,
            "prefill_ms": 1e3 * float(first),
            "step_ms": 1e3 * float(step),
            "break_even_tokens_per_step": float(step / seconds(self.phases["decode"])),
            "tokens_per_s": float(rate),
            "chat_s": float(chat) if chat else None,
            "memory_gb": float(held.total) / 1e9,
            "weights_gb": float(held.weights) / 1e9,
            "kv_cache_gb": float(held.kv_cache) / 1e9,
            "fits": None if self.device is None or self.device.memory_gb is None
            else float(held.total) <= self.device.memory_gb * 1e9,
            **self._energy(float(rate), float(step)),
            "price_per_million_in": price and float(price_per_million(price, devices, read)),
            "price_per_million_out": price and float(price_per_million(price, devices, rate)),
        }  # fmt: skip

    def _energy(self, rate: float, step: float) -> Row:
        """Joules per generated token, and a bound on it: the device's rated power all the time."""
        from analysis.roofline.estimate import joules

        device, devices = self.device, self.setup.parallel.devices
        times = [*self.phases.get("verify", self.phases["decode"]), *self.phases.get("draft", [])]
        spent = None if device is None else joules(device, times)
        return {
            "joules_per_token": None if spent is None else devices * float(spent) / (rate * step),
            "joules_per_token_at_rated_power": None if device is None or device.tdp_w is None
            else devices * device.tdp_w / rate,
        }  # fmt: skip


def _show_point(point: _Point) -> None:
    from analysis.roofline.predict import prediction_rows

    options, rows = point.options, {phase: prediction_rows(times) for phase, times in point.phases.items()}
    if options.form == "csv":
        write_csv([{"phase": phase, **row} for phase, found in rows.items() for row in found])
        return
    summary = point.summary()
    if options.form == "json":
        totals = {
            phase: {"seconds": sum(r["ms"] for r in found) / 1e3, "operators": found} for phase, found in rows.items()
        }
        print_json({**_asked(point), **summary, "phases": totals})
        return
    under = "" if options.method == "dense" else f" under {options.method}"
    where = f"batch {point.batch}, {point.length} tokens, on {point.setup.machine.name}"
    for phase, found in rows.items():
        _print_phase(f"{phase} of {options.model}{under}, {where}", found)
    for line in _sentences(point, summary):
        stdout().print(line, markup=False)


def _asked(point: _Point) -> Row:
    options = point.options
    return {
        "model": options.model, "method": options.method, "hardware": point.setup.machine.name, "bits": options.bits,
        "devices": point.setup.parallel.devices,
    }  # fmt: skip


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


def _sentences(point: _Point, summary: Row) -> list[str]:
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


def _show_sweep(points: Sequence[_Point]) -> None:
    first, rows = points[0], [point.summary() for point in points]
    if first.options.form == "json":
        print_json({**_asked(first), "points": rows})
    elif first.options.form == "csv":
        write_csv([{**_asked(first), **row} for row in rows])
    else:
        columns = [name for name in rows[0] if any(row[name] is not None for row in rows) and name != "fits"]
        asked = _asked(first)
        title = f"{asked['model']} under {asked['method']} on {asked['hardware']}, at least"
        table(
            title, [name.replace("_", " ") for name in columns], [[number(row[c], 4) for c in columns] for row in rows]
        )


def write_csv(rows: Sequence[Row]) -> None:
    writer = csv.DictWriter(sys.stdout, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
