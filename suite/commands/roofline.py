"""`suite roofline`: calibrates this machine; reads what the analytic model is asked for (a model, bits, a machine)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from suite.commands.calibration import measure
from suite.commands.output import number, print_json, stderr, stdout, table
from suite.commands.stores import open_store
from suite.errors import InputError
from suite.harness import machine
from suite.harness import threads as thread_pool
from suite.harness.measurement import Calibration
from suite.registry import MODELS

if TYPE_CHECKING:
    from analysis.hardware import Hardware
    from analysis.roofline.model import Machine
    from analysis.roofline.operators import Precision
    from analysis.roofline.shape import ModelShape


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


def model_shape(name: str) -> ModelShape:
    """The shape of a preset, a `config.json` or its directory, or of a registered model or what can be loaded."""
    from analysis.roofline.shape import load_preset, preset_names, read_config

    path = Path(name).expanduser()
    if path.suffix == ".json":
        return read_config(path)
    if (path / "config.json").is_file():
        return read_config(path / "config.json")
    if name in preset_names():
        return load_preset(name)
    loadable = name in MODELS or path.exists() or "/" in name or path.suffix == ".gguf"
    if not loadable:
        return load_preset(name, also=MODELS)
    from suite.models.loaders import load_model
    from suite.shapes import shape_of

    return shape_of(load_model(name, "bf16").config)


def read_precision(bits: str) -> Precision:
    """Bytes per element from `W/KV/A`."""
    from analysis.roofline.operators import Precision

    parts = bits.split("/")
    if len(parts) != 3 or not all(part.strip().isdigit() and 1 <= int(part) <= 32 for part in parts):
        raise InputError(f"--bits {bits!r} is not W/KV/A; give three widths from 1 to 32, such as 4/16/16.")
    weight, kv, activation = (float(part) for part in parts)
    return Precision.of_bits(weight, kv, activation)


def calibration_here(store_file: Path | None) -> Calibration | None:
    """The stored ceilings of this machine."""
    with open_store(store_file) as store:
        return store.calibration(machine.machine_id())


def target_machine(hardware: str, precision: Precision, store_file: Path | None) -> tuple[Machine, Hardware | None]:
    """The ceilings of a listed device and its datasheet; for `local` the calibrated ones."""
    from analysis.hardware import load_hardware
    from analysis.roofline.ceilings import Ceilings
    from analysis.roofline.predict import datasheet_machine

    if hardware != "local":
        device = load_hardware(hardware)
        return datasheet_machine(device, precision), device
    if (calibration := calibration_here(store_file)) is None:
        raise InputError(
            "this machine is not calibrated; run `python -m suite roofline --calibrate`, or give --hardware."
        )
    return Ceilings(calibration).whole_machine(precision), None
