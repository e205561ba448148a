"""`suite roofline --explore FILE`: the explorer as a page of its own, in which what was asked for is chosen first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from suite.commands.output import print_json, stdout
from suite.commands.roofline import calibration_here, model_shape
from suite.commands.roofline_estimate import EstimateOptions, setup_and_usage
from suite.commands.verdicts import write_text
from suite.commands.wishes import numbers
from suite.errors import InputError

if TYPE_CHECKING:
    from analysis.roofline.explorer import Choices


def explore(options: EstimateOptions, output: Path) -> int:
    """Writes the page; what is wrong with the question is said as without `--explore`."""
    from analysis.roofline.explorer import FIRST_DEVICE, LOCAL, explorer_document
    from reports.build import render_explorer

    if strange := _unknown_to_it(options):
        raise InputError(f"the explorer knows no {', '.join(strange)}; leave it out, or leave out --explore.")
    if options.hardware == LOCAL and calibration_here(options.store) is None:
        options = replace(options, hardware=FIRST_DEVICE)
    batch, tokens = _single(options.batch, "--batch"), _single(options.seqlen, "--seqlen")
    choices, device, method = _choices(options)
    asked = {
        "model": options.model, "hardware": device, "method": method, "batch": batch, "tokens": tokens,
        "attention": "flash" if options.fused else "unfused", "devices": options.tensor,
        "accepted": options.accepted, "price": options.price or "",
    }  # fmt: skip
    write_text(output, render_explorer(explorer_document(choices, asked)), "--explore")
    if options.form == "json":
        print_json({"explorer": str(output)})
    else:
        stdout().print(f"explorer: {output}", markup=False)
    return 0


def _unknown_to_it(options: EstimateOptions) -> list[str]:
    """What was asked for and no control of the page says."""
    asked = {
        "--chunk": options.chunk > 0,
        "--generate": options.generate > 0,
        "--pipeline": options.pipeline > 1,
        "--expert": options.expert > 1,
        "--compat": bool(options.compat),
        "--csv": options.form == "csv",
    }
    return [option for option, given in asked.items() if given]


def _single(text: str, option: str) -> int:
    found = numbers(text, option)
    if len(found) > 1:
        raise InputError(f"{option} {text!r} names {len(found)} values; the explorer begins with one.")
    return found[0]


def _choices(options: EstimateOptions) -> tuple[Choices, str, str]:
    """What everybody is offered and what was asked for, and the names of the device and the method among it."""
    from analysis.roofline.explorer import LOCAL, datasheet_device, known_choices, measured_device

    setup, usage = setup_and_usage(options)
    known, calibration = known_choices(), calibration_here(options.store)
    devices = {**({LOCAL: measured_device(calibration)} if calibration else {}), **known.devices}
    if usage.device is not None:
        devices[usage.device.name] = datasheet_device(usage.device)
    method = ", ".join([options.method, *options.settings])
    weight, kv, activation = (int(part) for part in options.bits.split("/"))
    choices = replace(
        known,
        models={**known.models, options.model: setup.shape},
        methods={**known.methods, method: setup.method},
        devices=devices,
        shape_of=model_shape,
        bits=(weight, kv, activation),
        degrees=tuple(sorted({*known.degrees, options.tensor})),
    )
    return choices, usage.device.name if usage.device else LOCAL, method
