"""`suite roofline --compat`: what LLM-Viewer says of a model, what the corrected model says, and the error."""

from __future__ import annotations

from collections.abc import Sequence

from suite.commands.output import number, print_json, table
from suite.commands.roofline import model_shape, read_precision, target_machine
from suite.commands.roofline_estimate import EstimateOptions, Row, write_csv
from suite.errors import InputError


def compare(options: EstimateOptions, points: Sequence[tuple[int, int]]) -> int:
    """LLM-Viewer's figures, the corrected ones, and the error of the former."""
    from analysis.hardware import hardware_names
    from analysis.roofline.comparison import comparison_rows
    from analysis.roofline.estimate import Setup
    from analysis.roofline.llm_viewer import RELEASES, Viewer, load_device
    from analysis.roofline.model import Machine
    from analysis.roofline.parallel import Parallel

    if options.compat not in RELEASES:
        raise InputError(f"there is no --compat {options.compat!r}; known: {', '.join(RELEASES)}.")
    if strange := _unknown_to_it(options):
        raise InputError(f"LLM-Viewer knows no {', '.join(strange)}; leave it out, or leave out --compat.")
    release, shape, precision = RELEASES[options.compat], model_shape(options.model), read_precision(options.bits)
    name = options.hardware.lower().replace("_", "-")
    viewer = Viewer(release, shape, load_device(name, release), precision, options.fused, options.tensor)
    theirs = viewer.device
    target = Machine(f"{name} as LLM-Viewer lists it", theirs.peak(precision), theirs.bytes_per_s, 0.0, float("inf"))
    if name in hardware_names():
        target, _ = target_machine(name, precision, options.store)
    setup = Setup(shape, precision, target, fused=options.fused, parallel=Parallel(options.tensor))
    rows = [
        {"batch": batch, "seqlen": length, **row}
        for batch, length in points
        for row in comparison_rows(viewer, setup, batch, length, options.generate)
    ]
    _show_comparison(options, target.name, rows)
    return 0


def _unknown_to_it(options: EstimateOptions) -> list[str]:
    """What was asked for and would change nothing here."""
    asked = {
        "--method": options.method != "dense",
        "--chunk": options.chunk > 0,
        "--accepted": options.accepted != 1,
        "--pipeline": options.pipeline > 1,
        "--expert": options.expert > 1,
        "--price": options.price > 0,
    }
    return [option for option, given in asked.items() if given]


def _show_comparison(options: EstimateOptions, where: str, rows: Sequence[Row]) -> None:
    if options.form == "csv":
        write_csv(rows)
    elif options.form == "json":
        print_json({"compat": options.compat, "model": options.model, "hardware": where, "rows": rows})
    else:
        columns = ["batch", "seqlen", "stage", "quantity", "unit", "compat", "corrected", "error"]
        cells = [
            [str(row[c]) for c in columns[:5]]
            + [number(row["compat"], 4), number(row["corrected"], 4)]
            + ["-" if row["error"] is None else f"{row['error']:+.1%}"]
            for row in rows
        ]
        table(f"{options.compat} against the corrected model, {options.model} on {where}", columns, cells, left=5)
