"""Draft models and tree heads: what they lose, training on a tiny model, and the committed checkpoints."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch.nn import functional

from suite.errors import InputError
from suite.models import adapters
from suite.models.checkpoints.manifest import load_manifest
from suite.models.language_model import LanguageModel
from suite.models.loaders import load_model
from suite.models.recipes import RECIPES, drafts, run_recipe
from suite.models.recipes.distilled import DistilledRecipe, DistilledW4Recipe, DraftLayers
from suite.models.recipes.drafts import soft_cross_entropy
from suite.models.recipes.eagle import HEAD_PLAN, EagleRecipe, EagleW4Recipe, TreeHead, fingerprint
from suite.models.trainer import train
from tests.methods.support import tiny_model
from tests.training.toy import Recorder, weights

NAMES = ("distilled", "distilled-w4", "eagle", "eagle-w4")
SHORT = replace(drafts.PLAN, steps=30, eval_every=15, warmup=3)
PROSE = "the tide was late and the pilot waved from the mole, so she walked past the net lofts to the old yard. "


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(drafts, "LENGTH", 64)
    monkeypatch.setattr(drafts, "VOCAB", 120)
    monkeypatch.setenv("SUITE_CACHE", str(tmp_path))
    path = tmp_path / "prose.txt"
    path.write_text(PROSE * 24)
    return path


def trained(name: str, model: LanguageModel, text: Path, plan: Any = SHORT) -> Any:
    """Trains into the cache and loads from there."""
    train(RECIPES.load(name)(model, text, plan), adapters.place(name, model), Recorder())
    return adapters.load(name, model)


def loss_on_all(recipe: Any, draft: Any) -> float:
    """Over the least that can be: of a draft model, the entropy of the target's laws."""
    ids, states = recipe.corpus.windows, recipe.states.float()
    with torch.no_grad():
        loss = float(recipe.distance(draft, ids, states))
        if isinstance(draft, DraftLayers):
            teacher = draft.decoder(recipe.model.decoder).to_logits(states)
            loss -= float(soft_cross_entropy(teacher, teacher))
    return loss


def test_the_soft_cross_entropy_is_least_where_both_agree():
    teacher = torch.randn(5, 7)
    law = teacher.softmax(dim=-1)
    entropy = -(law * law.log()).sum(dim=-1).mean()
    torch.testing.assert_close(soft_cross_entropy(teacher, teacher), entropy)
    assert soft_cross_entropy(torch.randn(5, 7), teacher) > entropy
    one_hot = torch.full((1, 7), -math.inf)
    one_hot[0, 3] = 0.0
    torch.testing.assert_close(
        soft_cross_entropy(teacher[:1], one_hot), functional.cross_entropy(teacher[:1], torch.tensor([3]))
    )


@pytest.mark.parametrize("name", NAMES)
def test_training_brings_a_draft_model_nearer_and_leaves_the_target_alone(name, text):
    model = tiny_model()
    before = {key: value.clone() for key, value in model.decoder.state_dict().items()}
    if name == "eagle-w4":
        trained("distilled-w4", model, text)
    recipe = RECIPES.load(name)(model, text, SHORT)
    torch.manual_seed(SHORT.seed)
    fresh = loss_on_all(recipe, recipe.build())
    assert loss_on_all(recipe, trained(name, model, text)) < 0.9 * fresh
    assert all(torch.equal(before[key], value) for key, value in model.decoder.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.decoder.parameters())


def test_two_short_runs_give_equal_weights(tmp_path, text):
    for place in ("a", "b"):
        train(DistilledRecipe(tiny_model(), text, replace(SHORT, steps=3)), tmp_path / place, Recorder())
    first, second = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_neither_embedding_nor_head_is_saved(tmp_path, text):
    model = tiny_model()
    for name in NAMES:
        trained(name, model, text, replace(SHORT, steps=1))
        saved = weights(adapters.place(name, model))
        assert not any("embedding" in key or "head" in key for key in saved)


def test_int4_layers_come_back_as_what_their_codes_stand_for(text):
    """And are rounded to the very same codes again: so a draft model may be packed from what was loaded."""
    model = tiny_model()
    layers = trained("distilled-w4", model, text, replace(SHORT, steps=2))
    saved = weights(adapters.place("distilled-w4", model))
    assert {saved[key].dtype for key in saved if key.endswith(".packed")} == {torch.int16}
    assert not any(key.endswith(("qkv.weight", "down.weight")) for key in saved)
    again = layers.packed()
    assert saved.keys() == again.keys()
    assert all(torch.equal(saved[key], again[key]) for key in saved)


def test_the_int4_model_is_judged_as_it_is_saved(text):
    recipe = DistilledW4Recipe(tiny_model(), text, SHORT)
    draft = recipe.build()
    assert recipe.evaluate(draft) == DistilledRecipe.evaluate(recipe, draft.rounded())
    draft.layers[0].mlp.down.weight.data.mul_(1e-3)
    exact, rounded = draft.state_dict(), draft.rounded().state_dict()
    assert not torch.equal(exact["layers.0.mlp.down.weight"], rounded["layers.0.mlp.down.weight"])
    assert torch.equal(exact["norm.weight"], rounded["norm.weight"])


def test_a_head_learns_the_next_feature_from_the_token_before_it(text):
    """Trap: a shift by one. At place i: embedding of token i + 1, feature of token i, and feature i + 1 to be found."""
    recipe = EagleRecipe(tiny_model(), text, SHORT)
    head, ids, states = recipe.build(), recipe.corpus.windows[:2], recipe.states[:2].float()
    with torch.no_grad():
        decoder, predicted = recipe._predicted(head, ids, states)
        fused = torch.cat((recipe.owner.embedding(ids[:, 1:]), states[:, :-1]), dim=-1)
        torch.testing.assert_close(decoder.embedding(ids[:, 1:]), fused @ head.matrix.weight.T + head.matrix.bias)
        tokens = soft_cross_entropy(decoder.to_logits(predicted), decoder.to_logits(states[:, 1:]))
        expected = functional.smooth_l1_loss(predicted, states[:, 1:]) + 0.1 * tokens
        torch.testing.assert_close(recipe.distance(head, ids, states), expected)


def test_a_head_knows_whose_features_it_was_trained_on(text):
    model = tiny_model()
    middle = trained("distilled-w4", model, text, replace(SHORT, steps=2))
    heads = {name: trained(name, model, text, replace(SHORT, steps=1)) for name in ("eagle", "eagle-w4")}
    assert torch.equal(heads["eagle"].owner, fingerprint(model.digest))
    assert torch.equal(heads["eagle-w4"].owner, fingerprint(middle.digest))
    assert load_manifest(adapters.place("eagle-w4", model)).model["owner_digest"] == middle.digest


def test_a_head_for_the_middle_model_wants_the_middle_model(text):
    with pytest.raises(InputError, match="suite train distilled-w4"):
        EagleW4Recipe(tiny_model(), text, SHORT).build()


def test_making_a_recipe_reads_no_text():
    for name in ("distilled", "distilled-w4", "eagle"):
        recipe = RECIPES.load(name)(tiny_model())
        recipe.build()
        assert "corpus" not in recipe.__dict__


def test_a_draft_model_made_through_the_command_loads_for_its_model(text, monkeypatch):
    monkeypatch.setattr(drafts.DraftRecipe.__init__, "__defaults__", (None, replace(SHORT, steps=2)))
    model = tiny_model()
    run_recipe("distilled", adapters.place("distilled", model), Recorder(), model, text)
    assert adapters.missing("distilled", model) is None
    assert isinstance(adapters.load("distilled", model), DraftLayers)


AGREEMENT = {"distilled": 0.27, "distilled-w4": 0.32, "eagle": 0.27, "eagle-w4": 0.4}


@pytest.mark.parametrize("name", NAMES)
def test_a_committed_checkpoint_is_small_and_whole(name):
    place = adapters.COMMITTED / f"{name}-smollm2-135m"
    manifest = load_manifest(place)
    assert sorted(path.name for path in place.iterdir()) == ["manifest.json", "model.safetensors"]
    assert sum(path.stat().st_size for path in place.iterdir()) < 10_000_000
    plan = HEAD_PLAN if name.startswith("eagle") else drafts.PLAN
    assert (manifest.recipe, manifest.plan, manifest.outcome) == (name, plan, "finished")
    assert manifest.figures["agreement"] > AGREEMENT[name]


@pytest.mark.model
def test_the_committed_draft_models_say_what_the_target_says_more_often_than_its_own_first_layers():
    """On a text none of them was trained on. The control: the layers they began as."""
    model = load_model("smollm2-135m", "fp32")
    ids = torch.tensor([model.tokenizer.encode("Write a letter about the harbour.\n\n" + PROSE)])
    with torch.no_grad():
        target = model.decoder.train_logits(ids).argmax(dim=-1)
        for name in ("distilled", "distilled-w4"):
            draft = cast(DraftLayers, adapters.load(name, model))
            own, before = (
                (layers.decoder(model.decoder).train_logits(ids).argmax(dim=-1) == target).float().mean()
                for layers in (draft, RECIPES.load(name)(model).build())
            )
            assert own > before + 0.1
        middle = cast(DraftLayers, adapters.load("distilled-w4", model))
        head = cast(TreeHead, adapters.load("eagle-w4", model))
        assert torch.equal(head.owner, fingerprint(middle.digest))
