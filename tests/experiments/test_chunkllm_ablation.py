"""The way from uniform blocks to ChunkLLM: every variant changes the one thing that its name says."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from suite.experiments.chunkllm_ablation import EVERY, VARIANTS, EveryToken, MeanKeys, OneList, Stale, losses_on_the_way
from suite.experiments.frontier import Point
from suite.harness.contender import Contender
from suite.harness.meter import RequestMeter
from suite.methods.attention.chunkllm import ChunkLLM, Chunks
from suite.methods.attention.controls import Uniform
from suite.models.language_model import LanguageModel
from suite.models.loaders import load_model
from workloads.passkey import Passkey

TOKENS = 2 * EVERY + 2


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return load_model("smollm2-135m", "bf16")


def complete(model: LanguageModel, method: Any) -> None:
    target = model.tokenizer.decode(model.tokenizer.encode("The river is wide. The hill is steep. " * TOKENS)[:TOKENS])
    request = next(Passkey().requests("512", 1, 0)).model_copy(update={"target": target})
    contender = Contender(method, method.Config(**method.at_budget(96)), model)
    contender.prepare()
    contender.complete([request], RequestMeter())


@pytest.mark.model
@pytest.mark.parametrize(
    ("kind", "shared", "fresh"), [(Uniform, False, True), (OneList, True, True), (Stale, True, False)]
)
def test_uniform_loses_its_lists_by_head_and_then_its_new_choices(
    model: LanguageModel, kind: type[Uniform], shared: bool, fresh: bool
) -> None:
    chosen: list[torch.Tensor] = []

    class Noted(kind):  # type: ignore[misc, valid-type]
        def choose(self, layer: int, row: int, recent: int, step: Any) -> Any:
            found = super().choose(layer, row, recent, step)
            if layer == 7:
                chosen.append(found[0])
            return found

    complete(model, Noted())
    assert all(bool((lists == lists[0]).all()) for lists in chosen) == shared
    choices = {tuple(lists.flatten().tolist()) for lists in chosen}
    assert (len(choices) > 3) == fresh


@pytest.mark.model
def test_mean_keys_are_the_means_of_their_chunks(model: LanguageModel) -> None:
    class Noted(MeanKeys):
        def _choose(self, chunks: Chunks, seen: int) -> None:
            super()._choose(chunks, seen)
            step, means = self._now[1], self._means[id(chunks)]
            assert means.shape[1] == len(chunks.ends)
            for chunk in (0, len(chunks.ends) - 1):
                start, end = ([0, *chunks.ends])[chunk : chunk + 2]
                keys = step.cache.keys[5][0, :, start:end].float().mean(dim=1).flatten()
                torch.testing.assert_close(means[5, chunk], keys)
            self.checked = True

    method = Noted()
    complete(model, method)
    assert method.checked


@pytest.mark.model
def test_one_variant_chooses_after_every_token(model: LanguageModel) -> None:
    counts = []
    for method in (ChunkLLM(), EveryToken()):
        complete(model, method)
        counts.append(method.selections)
    assert counts[1] > counts[0]
    assert counts[1] >= TOKENS - 1


def test_the_losses_are_told_from_uniform_to_chunkllm() -> None:
    points = [Point("dense", 1.0, [1.0], [1.5], 1.0, 1.0)]
    points += [
        Point(n, 0.125, [1.0], [1.5 + 0.1 * i], 1.0, 0.1) for i, n in enumerate(("uniform", *VARIANTS, "chunkllm"))
    ]
    told = losses_on_the_way(points, 0.125)
    assert told.startswith("at 12.5%: uniform +0.000, one list for all heads +0.100")
    assert told.endswith("chunkllm +0.500")
