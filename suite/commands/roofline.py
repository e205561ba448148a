"""`suite roofline`: calibrates this machine, or predicts a model on any machine from the analytic model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suite.commands.calibration import measure
from suite.commands.output import number, print_json, stderr, stdout, table
from suite.commands.stores import open_store
from suite.errors import InputError
from suite.harness import machine
from suite.harness import threads as thread_pool
from suite.harness.measurement import Calibration

if TYPE_CHECKING:
    from analysis.roofline.model import Machine
    from analysis.roofline.operators import Precision
    from analysis.roofline.shape import ModelShape
    from suite.models.config import ModelConfig

DRAM = 1 << 40  # a working set that fits no cache


def calibrate_machine(threads: int, store_file: Path | None, as_json: bool) -> int:
    """Measures the ceilings at one thread and at all cores (or `threads`), stores them, prints them."""
    counts = sorted({1, threads or thread_pool.available_cores()})
    with open_store(store_file) as store:
        calibration = measure(store, counts, stderr())
    if as_json:
        print_json(calibration.model_dump(mode="json"))
    else:
        _print_calibration(calibration)
    return 0


def _print_calibration(calibration: Calibration) -> None:
    from analysis.roofline.ceilings import human_bytes

    rows = [
        [
            ceiling.kind,
            ceiling.dtype,
            str(ceiling.threads),
            human_bytes(ceiling.size) if ceiling.kind in ("read", "copy", "triad") else f"edge {ceiling.size}",
            number(ceiling.value) + (" GFLOP/s" if ceiling.kind in ("gemm", "gemv") else " GB/s"),
            f"{ceiling.spread:.1%}",
        ]
        for ceiling in calibration.ceilings
    ]
    table(
        f"ceilings of machine {calibration.machine_id}",
        ["kind", "dtype", "threads", "size", "median", "spread"],
        rows,
        left=4,
    )
    console = stdout()
    console.print(f"an empty operation costs {calibration.call_overhead_us:.2f} µs", markup=False)
    for line in calibration.conditions.get("refused", []):
        console.print(f"refused: {line}", markup=False)


def predict(
    model: str, hardware: str, batch: int, seqlen: int, bits: str, store_file: Path | None, as_json: bool
) -> int:
    """Prefill of `seqlen` tokens, and one decode step over them: operators, bytes, FLOPs, time, bound."""
    from analysis.roofline import predict as roofline

    precision = _precision(bits)
    target = _machine(hardware, precision, store_file)
    phases = roofline.predict(model_shape(model), target, precision, batch=batch, seqlen=seqlen)
    rows = {phase: roofline.prediction_rows(times) for phase, times in phases.items()}
    if as_json:
        totals = {
            phase: {"seconds": sum(r["ms"] for r in found) / 1e3, "operators": found} for phase, found in rows.items()
        }
        asked = {"model": model, "hardware": target.name, "batch": batch, "seqlen": seqlen, "bits": bits}
        print_json({**asked, "phases": totals})
    else:
        for phase, found in rows.items():
            _print_phase(f"{phase} of {model}, batch {batch}, {seqlen} tokens, on {target.name}", found)
    return 0


def model_shape(name: str) -> ModelShape:
    """The shape of a model that can be loaded here."""
    from suite.models.loaders import load_model

    return shape_of(load_model(name, "bf16").config)


def shape_of(config: ModelConfig) -> ModelShape:
    """What the analytic model needs of a model's config."""
    from analysis.roofline.shape import ModelShape

    return ModelShape(
        config.layers, config.hidden, config.intermediate, config.heads, config.kv_heads, config.head_dim, config.vocab,
        config.tied, config.windows,
    )  # fmt: skip


def _precision(bits: str) -> Precision:
    from analysis.roofline.operators import Precision

    parts = bits.split("/")
    if len(parts) != 3 or not all(part.strip().isdigit() and 1 <= int(part) <= 32 for part in parts):
        raise InputError(f"--bits {bits!r} is not W/KV/A; give three widths from 1 to 32, such as 4/16/16.")
    weight, kv, activation = (float(part) for part in parts)
    return Precision.of_bits(weight, kv, activation)


def _machine(hardware: str, precision: Precision, store_file: Path | None) -> Machine:
    from analysis.hardware import load_hardware
    from analysis.roofline.ceilings import Ceilings
    from analysis.roofline.predict import datasheet_machine

    if hardware != "local":
        return datasheet_machine(load_hardware(hardware), precision)
    with open_store(store_file) as store:
        calibration = store.calibration(machine.machine_id())
    if calibration is None:
        raise InputError(
            "this machine is not calibrated; run `python -m suite roofline --calibrate`, or give --hardware."
        )
    ceilings = Ceilings(calibration)
    dtype = "fp32" if precision.activation > 2 else "bf16"
    found = ceilings.machine(dtype, max(ceilings.threads()), DRAM)
    if found is None:
        raise InputError(
            "the calibration lacks a stable ceiling; run `python -m suite roofline --calibrate` on an idle machine."
        )
    return found


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
