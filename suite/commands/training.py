"""`suite train`: makes one of the suite's small models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from rich import progress as bars

from suite.commands.output import number, print_json, stderr, stdout
from suite.models.adapters import place
from suite.models.loaders import load_model
from suite.models.recipes import RECIPES, run_recipe

if TYPE_CHECKING:
    from suite.models.trainer import Progress


def train(recipe: str, model_name: str | None, data: Path | None, output: Path | None, as_json: bool) -> int:
    """Trains into `output` and says where the checkpoint is.

    By default a lab model goes to a directory with the recipe's name, adapters to the cache, where methods find them.
    """
    _ = RECIPES[recipe]
    model = load_model(model_name, "fp32") if model_name else None
    if output is None:
        output = Path(recipe) if model is None else place(recipe, model)
    columns = (bars.TextColumn("{task.description}"), bars.BarColumn(), bars.TextColumn("{task.fields[figures]}"))
    with bars.Progress(*columns, console=stderr()) as bar:
        task = bar.add_task(recipe, total=None, figures="")

        def show(moment: Progress) -> None:
            figures = "  ".join(f"{name} {number(value)}" for name, value in moment.figures.items())
            left = f"loss {number(moment.loss)}  {figures}  about {moment.eta_s:.0f} s left"
            bar.update(task, completed=moment.step, total=moment.steps, figures=moment.outcome or left)

        directory = run_recipe(recipe, output, show, model, data)
    manifest = json.loads((directory / "manifest.json").read_text())
    if as_json:
        print_json({"checkpoint": str(directory), "manifest": manifest})
    else:
        stdout().print(f"checkpoint: {directory}", markup=False)
    return 0
