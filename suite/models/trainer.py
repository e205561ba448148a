"""The generic trainer: a recipe says what is trained on what, this says how, and writes the checkpoint's manifest."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from suite.errors import UnitError
from suite.models.checkpoints.manifest import (
    DataSource,
    Manifest,
    Outcome,
    Point,
    TrainingPlan,
    check_output,
    hash_files,
    replacing,
    write_manifest,
)

Model = TypeVar("Model", bound=nn.Module)


class Recipe(Protocol[Model]):
    """What is trained. Randomness comes from torch's global generator in `build` and from `rng` in `loss` only.

    `dev_figure` names the entry of `evaluate` by which the best weights are kept; higher is better (a recipe that is
    judged by a loss reports it negated). `selection` says in words how settings and weights were chosen.
    """

    name: str
    version: str
    summary: str
    selection: str
    plan: TrainingPlan
    data: DataSource
    dev_figure: str

    def build(self) -> Model:
        """A freshly initialised model."""
        ...

    def loss(self, model: Model, rng: np.random.Generator) -> Tensor:
        """The scalar loss of one batch drawn from `rng`, which is seeded anew for every step."""
        ...

    def evaluate(self, model: Model) -> dict[str, float]:
        """Figures on the same held-out items at every call; runs without gradients."""
        ...

    def describe(self, model: Model) -> dict[str, Any]:
        """Shape and size of the model, for the manifest."""
        ...

    def save(self, model: Model, directory: Path) -> None:
        """Writes the model's files (safetensors, JSON; no pickle) into an empty directory."""
        ...


@dataclass(frozen=True)
class Progress:
    """Reported after every step. `figures` are those of the last evaluation; `outcome` is set in the last report."""

    step: int
    steps: int
    loss: float
    figures: dict[str, float]
    eta_s: float
    outcome: Outcome | None = None


Callback = Callable[[Progress], None]


def train(recipe: Recipe[Model], output: Path, progress: Callback) -> Manifest:
    """Trains, then writes the best weights and `manifest.json` to `output`, replacing a checkpoint that is there.

    Ctrl-C ends training early: the best weights so far are written, and the outcome says "interrupted".
    """
    check_output(output)
    with _reproducible(recipe.plan):
        run = _Run(recipe, progress)
        outcome = run.execute()
        wall_s = time.perf_counter() - run.started
        run.restore_best()
        with replacing(output) as directory:
            recipe.save(run.model, directory)
            manifest = _manifest(run, outcome, wall_s, hash_files(directory))
            write_manifest(directory, manifest)
    run.report(outcome)
    return manifest


@contextmanager
def _reproducible(plan: TrainingPlan) -> Iterator[None]:
    """The plan's seed and thread count, for the time of the training only."""
    threads = torch.get_num_threads()
    torch.set_num_threads(plan.threads)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(plan.seed)
            yield
    finally:
        torch.set_num_threads(threads)


class _Run(Generic[Model]):
    """The state of one training run: the model, its optimiser, the curve, and a copy of the best weights."""

    def __init__(self, recipe: Recipe[Model], progress: Callback) -> None:
        self.recipe, self.plan, self.progress = recipe, recipe.plan, progress
        self.model = recipe.build()
        self.optimizer = torch.optim.AdamW(
            self._groups(),
            lr=self.plan.lr,
            betas=(0.9, self.plan.beta2),
            weight_decay=self.plan.weight_decay,
        )
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(self.optimizer, self._rate)
        self.curve: list[Point] = []
        self.step = 0
        self.losses: list[float] = []
        self.best: Point | None = None
        self.best_weights: dict[str, Tensor] = {}
        self.started = time.perf_counter()

    def _groups(self) -> list[dict[str, Any]]:
        """The parameters by their factor on the learning rate."""
        groups: dict[float, list[nn.Parameter]] = {}
        for name, parameter in self.model.named_parameters():
            factors = (factor for prefix, factor in self.plan.lr_factors.items() if name.startswith(prefix))
            groups.setdefault(next(factors, 1.0), []).append(parameter)
        return [{"params": members, "lr": self.plan.lr * factor} for factor, members in groups.items()]

    def _rate(self, step: int) -> float:
        """Learning rate of a step, as a fraction of the plan's: linear warm-up, then cosine to zero."""
        warmup, steps = self.plan.warmup, self.plan.steps
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    def execute(self) -> Outcome:
        """Steps until the plan is done, its target is reached, or the user stops it."""
        try:
            while self.step < self.plan.steps:
                self._take_step()
                if self.step % self.plan.eval_every == 0 or self.step == self.plan.steps:
                    self._evaluate()
                    if self._reached_target():
                        return "target reached"
                self.report(None)
        except KeyboardInterrupt:
            return "interrupted"
        return "finished"

    def _take_step(self) -> None:
        loss = self.recipe.loss(self.model, np.random.default_rng([self.plan.seed, self.step]))
        self.losses.append(loss.item())
        if not math.isfinite(self.losses[-1]):
            raise UnitError(f"{self.recipe.name}: the loss is {self.losses[-1]} at step {self.step}; lower its lr.")
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), self.plan.clip)
        self.optimizer.step()
        self.scheduler.step()
        self.step += 1

    def _evaluate(self) -> None:
        with torch.no_grad():
            figures = self.recipe.evaluate(self.model)
        point = Point(step=self.step, loss=sum(self.losses) / len(self.losses), figures=figures)
        self.curve.append(point)
        self.losses = []
        # Of equal figures the later one is kept: its learning rate was lower.
        if self.best is None or self._figure(point) >= self._figure(self.best):
            self.best = point
            self.best_weights = {name: value.clone() for name, value in self.model.state_dict().items()}

    def _figure(self, point: Point) -> float:
        return point.figures[self.recipe.dev_figure]

    def _reached_target(self) -> bool:
        target = self.plan.target
        return target is not None and self._figure(self.curve[-1]) >= target

    def restore_best(self) -> None:
        """Puts the best evaluated weights back; a run stopped before its first evaluation keeps its last ones."""
        if self.best is not None:
            self.model.load_state_dict(self.best_weights)

    def report(self, outcome: Outcome | None) -> None:
        """Tells the caller where the run stands."""
        elapsed_s = time.perf_counter() - self.started
        eta_s = 0.0 if outcome else elapsed_s / self.step * (self.plan.steps - self.step)
        loss = self.losses[-1] if self.losses else self.curve[-1].loss if self.curve else math.nan
        figures = self.curve[-1].figures if self.curve else {}
        self.progress(Progress(self.step, self.plan.steps, loss, figures, eta_s, outcome))


def _manifest(run: _Run[Model], outcome: Outcome, wall_s: float, files: dict[str, str]) -> Manifest:
    recipe = run.recipe
    return Manifest(
        recipe=recipe.name,
        recipe_version=recipe.version,
        summary=recipe.summary,
        selection=recipe.selection,
        plan=recipe.plan,
        model=recipe.describe(run.model),
        data=recipe.data,
        outcome=outcome,
        steps=run.step,
        saved_step=run.best.step if run.best else run.step,
        dev_figure=recipe.dev_figure,
        figures=run.best.figures if run.best else {},
        wall_s=round(wall_s, 1),
        machine=_machine(),
        torch=torch.__version__,
        curve=tuple(run.curve),
        files=files,
    )


def _machine() -> dict[str, str]:
    cpu = f"{os.cpu_count()} cores, {torch.backends.cpu.get_cpu_capability()}"
    return {"cpu": cpu, "system": platform.platform(), "python": platform.python_version()}
