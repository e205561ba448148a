"""`suite roofline`: calibrates this machine, or predicts a model on any machine from the analytic model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from suite.commands.calibration import measure
from suite.commands.output import number, print_json, stderr, stdout, table
from suite.commands.stores import open_store
from suite.errors import InputError
from suite.harness import machine
from suite.harness import threads as thread_pool
from suite.harness.measurement import Calibration

if TYPE_CHECKING:
    from analysis.roofline.model import Machine, ModelShape, OperatorTime
    from analysis.roofline.operators import Precision
    from suite.models.config import ModelConfig


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
    """Prefill of `seqlen` tokens, and one decode step after them: operators, bytes, FLOPs, time, bound."""
    from analysis.roofline.model import decode, operator_times, prefill

    shape, precision = model_shape(model), _precision(bits)
    target = _machine(hardware, bits, store_file)
    phases = {
        "prefill": operator_times(prefill(shape, precision, batch=batch, tokens=seqlen), target),
        "decode": operator_times(decode(shape, precision, batch=batch, context=seqlen), target),
    }
    if as_json:
        print_json(_document(model, target, batch, seqlen, bits, phases))
    else:
        for phase, times in phases.items():
            _print_phase(f"{phase} of {model}, batch {batch}, {seqlen} tokens, on {target.name}", times)
    return 0


def model_shape(name: str) -> ModelShape:
    """The shape of a model that can be loaded here."""
    from suite.models.loaders import load_model

    return shape_of(load_model(name, "bf16").config)


def shape_of(config: ModelConfig) -> ModelShape:
    """What the analytic model needs of a model's config."""
    from analysis.roofline.model import ModelShape

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


def _machine(hardware: str, bits: str, store_file: Path | None) -> Machine:
    from analysis.hardware import load_hardware
    from analysis.roofline.ceilings import Ceilings
    from analysis.roofline.model import Machine

    dtype: Literal["fp32", "bf16"] = "fp32" if bits.split("/")[2].strip() == "32" else "bf16"
    if hardware != "local":
        device = load_hardware(hardware)
        peak, bandwidth = device.peak_tflops(dtype), device.memory_gb_per_s
        if peak is None or bandwidth is None:
            raise InputError(
                f"the datasheet of {hardware} gives no {dtype} peak or no bandwidth; choose another device."
            )
        return Machine(f"{hardware} (datasheet)", peak * 1e12, bandwidth * 1e9, 0.0)
    with open_store(store_file) as store:
        calibration = store.calibration(machine.machine_id())
    if calibration is None:
        raise InputError(
            "this machine is not calibrated; run `python -m suite roofline --calibrate`, or give --hardware."
        )
    ceilings = Ceilings(calibration)
    found = ceilings.machine(dtype, max(ceilings.threads()), 1 << 40)
    if found is None:
        raise InputError(
            "the calibration lacks a stable ceiling; run `python -m suite roofline --calibrate` on an idle machine."
        )
    return found


def _print_phase(title: str, times: Sequence[OperatorTime]) -> None:
    total = sum(time.seconds for time in times)
    rows = [
        [
            time.operator.name,
            time.bound,
            number(time.operator.flops / 1e9),
            number(time.operator.bytes / 1e6),
            number(time.seconds * 1e3),
            f"{time.seconds / total:.0%}",
        ]
        for time in times
    ]
    table(title, ["operator", "bound", "GFLOP", "MB", "ms", "share"], rows, left=2)
    stdout().print(f"at least {total * 1e3:.3f} ms", markup=False)


def _document(
    model: str, target: Machine, batch: int, seqlen: int, bits: str, phases: dict[str, list[OperatorTime]]
) -> dict[str, object]:
    return {
        "model": model,
        "hardware": target.name,
        "batch": batch,
        "seqlen": seqlen,
        "bits": bits,
        "phases": {
            phase: {
                "seconds": sum(time.seconds for time in times),
                "operators": [
                    {
                        "name": time.operator.name,
                        "bound": time.bound,
                        "flops": time.operator.flops,
                        "bytes": time.operator.bytes,
                        "seconds": time.seconds,
                    }
                    for time in times
                ],
            }
            for phase, times in phases.items()
        },
    }
