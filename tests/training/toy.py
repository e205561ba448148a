"""A recipe that trains in milliseconds: a linear map learns to add up its four inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from suite.models.checkpoints.manifest import DataSource, TrainingPlan
from suite.models.trainer import Progress

PLAN = TrainingPlan(steps=60, batch=16, lr=0.1, warmup=5, weight_decay=0.0, clip=1.0, seed=3, eval_every=20)


class ToyRecipe:
    name = "toy"
    version = "1"
    summary = "a sum of four numbers"
    selection = "the first seed"
    dev_figure = "minus_error"
    data = DataSource(name="normal numbers", version="1", revision="0")

    def __init__(self, plan: TrainingPlan = PLAN, scripted: tuple[float, ...] = ()) -> None:
        """`scripted` replaces the dev figure of the n-th evaluation."""
        self.plan = plan
        self.scripted = list(scripted)

    def build(self) -> nn.Linear:
        return nn.Linear(4, 1, bias=False)

    def loss(self, model: nn.Linear, rng: np.random.Generator) -> Tensor:
        x = torch.from_numpy(rng.standard_normal((self.plan.batch, 4), dtype=np.float32))
        return (model(x)[:, 0] - x.sum(dim=1)).square().mean()

    def evaluate(self, model: nn.Linear) -> dict[str, float]:
        if self.scripted:
            return {"minus_error": self.scripted.pop(0)}
        return {"minus_error": -float(self.loss(model, np.random.default_rng(0)))}

    def describe(self, model: nn.Linear) -> dict[str, Any]:
        return {"parameters": model.weight.numel()}

    def save(self, model: nn.Linear, directory: Path) -> None:
        save_file({"weight": model.weight.detach()}, directory / "model.safetensors")


class Recorder:
    """A progress callback that keeps all reports and presses Ctrl-C after step `stop_at`."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.reports: list[Progress] = []
        self.stop_at = stop_at

    def __call__(self, report: Progress) -> None:
        self.reports.append(report)
        if report.step == self.stop_at and report.outcome is None:
            raise KeyboardInterrupt


def weights(directory: Path) -> dict[str, Tensor]:
    return load_file(directory / "model.safetensors")
