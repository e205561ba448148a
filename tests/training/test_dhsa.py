"""The boundary predictor of DHSA: its code against windows one by one, its labels against loops, its checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from suite.errors import InputError
from suite.models import adapters
from suite.models.checkpoints.manifest import TrainingPlan, load_manifest
from suite.models.language_model import LanguageModel
from suite.models.recipes import RECIPES, dhsa, run_recipe
from suite.models.recipes.dhsa import (
    PIECE,
    REACH,
    BoundaryPredictor,
    BoundaryRecipe,
    attention_map,
    focal_loss,
    judged,
    mass_ratio,
    scores,
    training_layers,
)
from suite.models.trainer import train
from tests.methods.support import CONFIG, tiny_model
from tests.training.toy import Recorder, weights

SHORT = TrainingPlan(steps=3, batch=2, lr=1e-3, warmup=1, weight_decay=0.01, clip=1.0, seed=5, eval_every=3)
COMMITTED = adapters.COMMITTED / "dhsa-smollm2-135m"


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six windows of 96 tokens."""
    monkeypatch.setattr(dhsa, "WINDOWS", 6)
    monkeypatch.setattr(dhsa, "LENGTH", 96)


def naive_logits(predictor: BoundaryPredictor, keys: Tensor) -> Tensor:
    """Card, step 1: torch's own attention over every window of 8 tokens; keys [L, C]."""
    features = keys.shape[1]
    attention = nn.MultiheadAttention(features, 4, batch_first=True)
    attention.in_proj_weight, attention.in_proj_bias = predictor.qkv.weight, predictor.qkv.bias
    attention.out_proj.weight, attention.out_proj.bias = predictor.out.weight, predictor.out.bias
    logits = torch.full((len(keys),), -100.0)
    for j in range(3, len(keys) - 4):
        window = keys[j - 3 : j + 5][None]
        encoded = predictor.norm(attention(window, window, window)[0])[0]
        left, right = encoded[:4].mean(dim=0), encoded[4:].mean(dim=0)
        alike = functional.cosine_similarity(left, right, dim=0)[None]
        fused = torch.cat((left, right, (left - right).abs(), left * right, alike))
        logits[j] = predictor.fuse(fused)[0]
    return logits


@torch.no_grad()
@pytest.mark.parametrize("length", [1, 7, 8, 9, 40, 300])
def test_the_predictor_is_attention_over_every_window(length):
    torch.manual_seed(0)
    predictor, keys = BoundaryPredictor(32), torch.randn(2, length, 32)
    nn.init.normal_(predictor.norm.weight)
    for logits, one in zip(predictor(keys), keys, strict=True):
        torch.testing.assert_close(logits, naive_logits(predictor, one), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_tokens_are_projected_once_but_for_the_seams_of_pieces():
    """Not once for every window they lie in."""
    predictor, shapes = BoundaryPredictor(32), []
    predictor.qkv.register_forward_hook(lambda _module, inputs, _output: shapes.append(tuple(inputs[0].shape)))
    predictor(torch.randn(1, 700, 32))
    seam = 2 * REACH - 1
    assert shapes == [(1, PIECE + seam, 32), (1, PIECE + seam, 32), (1, 700 - 2 * PIECE, 32)]


def test_labels_are_the_ratio_of_mass_left_and_right_of_a_gap():
    generator = torch.Generator().manual_seed(0)
    attention = (torch.randn(60, 60, generator=generator) * 2).masked_fill(
        torch.ones(60, 60, dtype=torch.bool).triu(1), -torch.inf
    )
    attention = attention.softmax(dim=-1)
    ratio = mass_ratio(attention)
    for c in range(60):
        if not 7 <= c < 52:  # the ends
            assert ratio[c] == 0
            continue
        past = sum(float(attention[r, j]) for r in range(c + 5, 60) for j in range(c - 3, c + 1))
        future = sum(float(attention[r, j]) for r in range(c + 5, 60) for j in range(c + 1, c + 5))
        assert float(ratio[c]) == pytest.approx((max(past, future) + 1e-6) / (min(past, future) + 1e-6), rel=1e-6)
    assert torch.equal(ratio.nonzero()[:, 0], torch.arange(60)[judged(60)])


@pytest.mark.parametrize("softcap", [0.0, 5.0])
def test_attention_maps_are_averaged_over_heads(softcap):
    config = replace(CONFIG, attention_softcap=softcap)
    q, keys = torch.randn(20, 4, 16), torch.randn(2, 20, 16)
    ours = attention_map(q, keys, config)
    for i in range(20):
        logits = torch.stack([keys[h // 2, : i + 1] @ q[i, h] * config.scale for h in range(4)])
        logits = softcap * torch.tanh(logits / softcap) if softcap else logits
        torch.testing.assert_close(ours[i, : i + 1], logits.softmax(dim=-1).mean(dim=0))
        assert ours[i, i + 1 :].eq(0).all()


def test_the_loss_is_the_focal_one():
    logits, labels = torch.tensor([2.0, -1.0, 0.5]), torch.tensor([True, True, False])
    p = logits.sigmoid()
    terms = (
        -1.3 * (1 - p[0]) ** 2 * p[0].log(),
        -1.3 * (1 - p[1]) ** 2 * p[1].log(),
        -(p[2] ** 2) * (1 - p[2]).log(),
    )
    torch.testing.assert_close(focal_loss(logits, labels), sum(terms) / 3)


def test_figures_are_precision_recall_and_f1():
    predicted, true = torch.tensor([1, 1, 1, 0, 0]).bool(), torch.tensor([1, 0, 0, 1, 0]).bool()
    assert scores(predicted, true) == pytest.approx({"precision": 1 / 3, "recall": 0.5, "f1": 0.4, "boundaries": 0.4})
    assert scores(predicted & False, true)["f1"] == 0


def test_layers_are_spread_over_those_that_see_everything():
    assert training_layers(CONFIG) == [0, 1, 2]
    assert training_layers(replace(CONFIG, layers=30)) == [0, 6, 12, 17, 23, 29]
    windows = tuple(None if layer % 2 else 64 for layer in range(26))
    assert training_layers(replace(CONFIG, layers=26, windows=windows)) == [1, 5, 11, 15, 21, 25]


@pytest.mark.usefixtures("small")
def test_two_short_runs_give_equal_weights_and_leave_the_backbone_alone(tmp_path):
    model = tiny_model()
    before = {name: value.clone() for name, value in model.decoder.state_dict().items()}
    for name in ("a", "b"):
        manifest = train(BoundaryRecipe(model, plan=SHORT), tmp_path / name, Recorder())
    first, second = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(before[name], value) for name, value in model.decoder.state_dict().items())
    assert manifest.model["base_digest"] == model.digest
    assert manifest.data.name == "self-written"


def test_building_needs_no_text(monkeypatch):
    monkeypatch.setattr(dhsa, "training_text", None)
    assert BoundaryRecipe(tiny_model()).build().norm.normalized_shape == (32,)


@pytest.mark.usefixtures("small")
def test_a_users_text_can_be_given_and_the_checkpoint_loads(tmp_path, monkeypatch):
    monkeypatch.setattr(dhsa, "PLAN", SHORT)
    monkeypatch.setattr(dhsa.BoundaryRecipe.__init__, "__defaults__", (None, SHORT))
    monkeypatch.setenv("SUITE_CACHE", str(tmp_path / "cache"))
    model = tiny_model()
    with pytest.raises(InputError, match="suite train dhsa --model tiny"):
        adapters.load("dhsa", model)
    (tmp_path / "mine.txt").write_text("".join(chr(97 + (i * i) % 26) for i in range(800)))
    run_recipe("dhsa", adapters.place("dhsa", model), Recorder(), model, tmp_path / "mine.txt")
    manifest = load_manifest(adapters.place("dhsa", model))
    assert manifest.data.name == "mine.txt"
    loaded = adapters.load("dhsa", model)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def byte_documents(count: int) -> list[dhsa.Document]:
    """Texts of random bytes whose attention depends on what a byte is, and on nothing else."""
    generator = torch.Generator().manual_seed(0)
    table = torch.randn(128, 2, 16, generator=generator)
    query = torch.randn(16, generator=generator).expand(256, 4, 16)
    documents = []
    for _ in range(count):
        keys = table[torch.randint(0, 128, (256,), generator=generator)]
        attention = attention_map(query, keys.transpose(0, 1), CONFIG)
        documents.append(dhsa.Document(keys.flatten(1)[None], (mass_ratio(attention) >= 2)[None]))
    return documents


def test_boundaries_are_learned_from_attention_over_random_bytes():
    """Trap: boundaries from punctuation rules. No byte is one here; F1 must pass that of saying "boundary" always."""
    recipe = BoundaryRecipe(tiny_model(), plan=replace(SHORT, batch=4))
    recipe._documents = byte_documents(40)
    torch.manual_seed(0)
    predictor = recipe.build()
    optimizer = torch.optim.Adam(predictor.parameters(), lr=3e-3)
    for step in range(60):
        loss = recipe.loss(predictor, np.random.default_rng(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        figures = recipe.evaluate(predictor)
    assert figures["f1"] > always(figures) + 0.15


def always(figures: dict[str, float]) -> float:
    """F1 of calling every gap a boundary."""
    return 2 * figures["boundaries"] / (1 + figures["boundaries"])


def test_the_recipe_is_registered_as_an_adapter():
    assert RECIPES["dhsa"].family == "adapter"
    assert RECIPES.load("dhsa") is BoundaryRecipe


def test_the_committed_checkpoint_is_small_plain_whole_and_loads():
    manifest = load_manifest(COMMITTED)
    assert sorted(path.name for path in COMMITTED.iterdir()) == ["manifest.json", "model.safetensors"]
    assert sum(path.stat().st_size for path in COMMITTED.iterdir()) < 2_000_000
    assert (manifest.recipe, manifest.recipe_version) == (BoundaryRecipe.name, BoundaryRecipe.version)
    assert manifest.plan == dhsa.PLAN
    assert manifest.model["base_model"] == "smollm2-135m"
    assert manifest.figures["f1"] > always(manifest.figures)
    predictor = adapters.load("dhsa", stand_in(manifest.model["base_digest"]))
    assert predictor(torch.randn(1, 50, 192)).isfinite().all()


def stand_in(digest: str) -> LanguageModel:
    """What the adapters look at in SmolLM2-135M: name, digest, and the shape of its keys."""
    model = tiny_model(replace(CONFIG, heads=9, kv_heads=3, head_dim=64))
    return replace(model, name="smollm2-135m", digest=digest)


def test_another_model_does_not_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SUITE_CACHE", str(tmp_path))
    assert adapters.missing("dhsa", stand_in("another")) is not None
