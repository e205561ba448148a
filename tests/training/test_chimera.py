"""The recipes of Chimera's drafter, its ablations and Medusa's heads, on a tiny model."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from suite.methods.decoding.chimera import Chimera
from suite.models import adapters
from suite.models.checkpoints import rows8
from suite.models.checkpoints.manifest import load_manifest
from suite.models.loaders import load_model
from suite.models.recipes import RECIPES, activations, answers, chimera, run_recipe
from suite.models.recipes.answers import Text, texts_with_states
from suite.models.recipes.chimera import HEADS, ChimeraRecipe, level_loss, unrolled, windows
from suite.models.trainer import train
from tests.methods.drafting import dense, request, run
from tests.methods.support import tiny_model
from tests.training.toy import Recorder, weights

COMMITTED = adapters.COMMITTED / "chimera-smollm2-135m"
SHORT = replace(chimera.PLAN, steps=3, eval_every=3)
NAMES = ("chimera", "chimera-no-trigram", "chimera-no-context", "medusa")


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SUITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(chimera, "WINDOW", 48)
    monkeypatch.setattr(chimera, "LENGTH", 64)
    monkeypatch.setattr(chimera, "BATCHES", 1)


@pytest.fixture
def page(tmp_path: Path) -> Path:
    path = tmp_path / "page.txt"
    path.write_text("The tide was in when they left. The pilot waved from the mole. " * 40)
    return path


def test_answers_come_with_their_prompts_and_the_states_that_made_them():
    model = tiny_model(dtype=torch.bfloat16)
    texts = texts_with_states(model, None, 1, 20, 0)
    assert len(texts) == answers.WIDE
    for text in texts[::7]:
        asked = model.tokenizer.decode(text.ids[: text.prompt].tolist())
        assert asked.startswith("Write ")
        assert text.prompt < len(text.ids) <= text.prompt + 20
        fresh = answers._read(model, text.ids).states
        torch.testing.assert_close(text.states.float(), fresh.float(), atol=0.06, rtol=0.06)  # bf16, other kernels


def test_a_seed_writes_its_answers_once(monkeypatch):
    first = texts_with_states(tiny_model(), None, 1, 20, 0)
    monkeypatch.setattr(answers, "write", lambda *args: pytest.fail("written again"))
    again = texts_with_states(tiny_model(), None, 1, 20, 0)
    assert all(torch.equal(a.ids, b.ids) and torch.equal(a.states, b.states) for a, b in zip(first, again, strict=True))


def test_half_written_answers_are_not_taken_for_whole_ones(monkeypatch):
    monkeypatch.setattr(answers, "save_file", lambda whole, path: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        texts_with_states(tiny_model(), None, 1, 20, 0)
    monkeypatch.undo()


@pytest.mark.parametrize("name", NAMES)
def test_two_short_runs_give_equal_weights_and_leave_the_target_alone(name, tmp_path, page):
    """Trap of the published script: a misspelt flag, so that its embedding is trained too."""
    model = tiny_model()
    before = {key: value.clone() for key, value in model.decoder.state_dict().items()}
    for place in ("a", "b"):
        train(RECIPES.load(name)(model, page, SHORT), tmp_path / place, Recorder())
    first, second = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert all(torch.equal(before[key], value) for key, value in model.decoder.state_dict().items())
    assert {key.split(".")[0] for key in first} <= {"trigram", "context", "heads", "blocks", "mix", "gate"}


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_made_through_the_command_loads_for_its_model(name, page, monkeypatch):
    monkeypatch.setattr(ChimeraRecipe.__init__, "__defaults__", (None, SHORT))
    model = tiny_model()
    run_recipe(name, adapters.place(name, model), Recorder(), model, page)
    loaded = adapters.load(name, model)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert {f"head{k}_text" for k in range(1, HEADS + 1)} < load_manifest(adapters.place(name, model)).figures.keys()


def test_matrices_in_int8_rows_come_back_within_half_a_step():
    state = {"a": torch.randn(5, 40), "b": torch.randn(7), "c": torch.zeros(3, 4)}
    back = rows8.unpack(rows8.pack(state))
    assert torch.equal(back["b"], state["b"])
    assert torch.equal(back["c"], state["c"])
    step = state["a"].abs().amax(dim=1, keepdim=True) / 127
    assert ((back["a"] - state["a"]).abs() <= step / 2 + 1e-7).all()


def example(prompt: int = 0) -> tuple[ChimeraRecipe, Tensor, Tensor, Tensor]:
    ids = torch.randint(0, 128, (60,), generator=torch.Generator().manual_seed(0))
    model = tiny_model()
    text = answers._read(model, ids)
    return ChimeraRecipe(model), *windows([Text(ids, text.states, prompt)], [0])


def test_the_distilled_feature_is_that_of_the_tokens_own_state():
    """Level k's feature at row j stands for the target's state of the k-th token behind it."""
    recipe, ids, states, learned = example()
    with torch.no_grad():
        level = next(iter(unrolled(recipe.build(), recipe.model, ids, states, 128)))
    rows = level.logits.shape[1]
    perfect = level._replace(feature=states[:, 1 : 1 + rows].float())
    plain = level_loss(level, 1, ids, states, learned, 0.0)
    assert float((level_loss(perfect, 1, ids, states, learned, 1.0) - plain).abs()) < 1e-6
    assert float(level_loss(perfect, 2, ids, states, learned, 1.0)) > float(plain) + 0.1
    assert float(level_loss(level, 1, ids, states, learned, 2.0)) > float(plain)


def test_what_the_user_said_is_not_learned():
    recipe, ids, states, learned = example(prompt=20)
    assert learned[0, 19:21].tolist() == [False, True]
    for k, level in enumerate(unrolled(recipe.build(), recipe.model, ids, states, 128), 1):
        other = ids.clone()
        other[:, :20] = (ids[:, :20] + 1) % 128
        assert torch.equal(
            level_loss(level, k, ids, states, learned, 1.0), level_loss(level, k, other, states, learned, 1.0)
        )


def test_tokens_beyond_the_heads_vocabulary_are_no_labels():
    recipe, ids, states, learned = example()
    for k, level in enumerate(unrolled(recipe.build(), recipe.model, ids, states, 64), 1):
        assert level.logits.shape[-1] == 64
        assert torch.isfinite(level_loss(level, k, ids, states, learned, 0.0))


def test_gradients_reach_every_part_and_stop_at_earlier_levels():
    """The chain a level sees is detached, as in the card: level 2 alone moves neither trigram encoder nor head 1."""
    recipe, ids, states, learned = example()
    for only, silent in ((1, {"heads.mix.1", "heads.mix.2", "heads.mix.3"}), (2, {"trigram", "heads.mix.0"})):
        drafter = recipe.build()
        for k, level in enumerate(unrolled(drafter, recipe.model, ids, states, 128), 1):
            if k == only:
                level_loss(level, k, ids, states, learned, 1.0).backward()  # type: ignore[no-untyped-call]
        for name, parameter in drafter.named_parameters():
            moved = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
            others = any(f"heads.mix.{level}" in name for level in range(HEADS) if level != only - 1)
            assert moved == (not others and not any(part in name for part in silent)), name


def test_answer_batches_are_whole_batches_of_the_writer():
    assert answers.WIDE % activations.BATCH == 0


def test_the_committed_checkpoint_is_small_and_whole():
    manifest = load_manifest(COMMITTED)
    assert sorted(path.name for path in COMMITTED.iterdir()) == ["manifest.json", "model.safetensors"]
    assert sum(path.stat().st_size for path in COMMITTED.iterdir()) < 15_000_000
    assert (manifest.recipe, manifest.recipe_version) == ("chimera", ChimeraRecipe.version)
    assert (manifest.plan, manifest.outcome) == (chimera.PLAN, "finished")
    assert manifest.figures["head1_target"] > 0.2
    matrices = [value for value in weights(COMMITTED).values() if value.dim() == 2 and value.shape[1] > 1]
    assert {value.dtype for value in matrices} == {torch.int8}


@pytest.mark.model
def test_the_committed_drafter_is_accepted():
    """Greedy text is dense's, and drafts are right more often than chance would have them."""
    model = load_model("smollm2-135m", "fp32")
    assert load_manifest(COMMITTED).model["base_digest"] == model.digest
    asked = request("q", new=48).model_copy(update={"prompt": "How is bread made?", "chat": True})
    done = run(Chimera(), model, [asked])[0]
    assert done.token_ids == dense(model, asked)[0].token_ids
    assert done.drafts.accepted > 0.1 * done.drafts.rounds
