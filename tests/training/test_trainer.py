"""The generic trainer, on a toy recipe."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from suite.errors import InputError, UnitError
from suite.models.checkpoints.manifest import load_manifest
from suite.models.trainer import train
from tests.training.toy import PLAN, Recorder, ToyRecipe, weights


def test_two_runs_with_one_seed_give_equal_weights_and_curves(tmp_path):
    first = train(ToyRecipe(), tmp_path / "a", Recorder())
    torch.rand(7)  # the caller's random state must not matter
    second = train(ToyRecipe(), tmp_path / "b", Recorder())
    assert torch.equal(weights(tmp_path / "a")["weight"], weights(tmp_path / "b")["weight"])
    assert first.curve == second.curve
    assert first.files == second.files


def test_another_seed_gives_other_weights(tmp_path):
    train(ToyRecipe(), tmp_path / "a", Recorder())
    train(ToyRecipe(replace(PLAN, seed=4)), tmp_path / "b", Recorder())
    assert not torch.equal(weights(tmp_path / "a")["weight"], weights(tmp_path / "b")["weight"])


def test_every_step_sees_fresh_data(tmp_path):
    seen: list[float] = []
    recipe = ToyRecipe(scripted=(0.0, 0.0, 0.0))
    recipe.loss = lambda model, rng: seen.append(float(rng.random())) or model.weight.sum()
    train(recipe, tmp_path / "out", Recorder())
    assert len(set(seen)) == PLAN.steps


def test_the_loss_falls_and_the_model_learns(tmp_path):
    manifest = train(ToyRecipe(), tmp_path / "out", Recorder())
    assert [point.step for point in manifest.curve] == [20, 40, 60]
    assert manifest.curve[-1].loss < 0.05 * manifest.curve[0].loss
    assert weights(tmp_path / "out")["weight"].tolist()[0] == pytest.approx([1.0] * 4, abs=0.1)


def test_the_caller_keeps_its_random_state_and_threads(tmp_path):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    threads = torch.get_num_threads()
    train(ToyRecipe(replace(PLAN, threads=threads + 1)), tmp_path / "out", Recorder())
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("figures", "step"), [((1.0, 3.0, 2.0), 40), ((1.0, 3.0, 3.0), 60)], ids=["best", "latest tie"]
)
def test_the_best_evaluated_weights_are_saved(tmp_path, figures, step):
    manifest = train(ToyRecipe(scripted=figures), tmp_path / "best", Recorder())
    train(ToyRecipe(scripted=figures), tmp_path / "stopped", Recorder(stop_at=step))
    assert manifest.saved_step == step
    assert manifest.figures == {"minus_error": 3.0}
    assert torch.equal(weights(tmp_path / "best")["weight"], weights(tmp_path / "stopped")["weight"])


def test_a_reached_target_ends_training(tmp_path):
    recipe = ToyRecipe(replace(PLAN, target=2.5), scripted=(1.0, 3.0))
    recorder = Recorder()
    manifest = train(recipe, tmp_path / "out", recorder)
    assert (manifest.outcome, manifest.steps) == ("target reached", 40)
    assert recorder.reports[-1].outcome == "target reached"


@pytest.mark.parametrize(("stop_at", "saved"), [(30, 20), (10, 10)], ids=["after an evaluation", "before the first"])
def test_ctrl_c_saves_what_there_is_and_says_so(tmp_path, stop_at, saved):
    recorder = Recorder(stop_at)
    train(ToyRecipe(), tmp_path / "out", recorder)
    manifest = load_manifest(tmp_path / "out")
    assert (manifest.outcome, manifest.steps, manifest.saved_step) == ("interrupted", stop_at, saved)
    assert recorder.reports[-1].outcome == "interrupted"
    assert "weight" in weights(tmp_path / "out")


def test_progress_counts_down_to_the_end(tmp_path):
    recorder = Recorder()
    train(ToyRecipe(), tmp_path / "out", recorder)
    assert [report.step for report in recorder.reports] == [*range(1, 61), 60]
    assert recorder.reports[0].eta_s > 0
    assert recorder.reports[-1].eta_s == 0
    assert recorder.reports[-1].figures


def test_the_learning_rate_warms_up_and_falls_to_zero(tmp_path):
    rates: list[float] = []
    recipe = ToyRecipe()
    original = torch.optim.AdamW.step

    def spy(optimizer, *args, **kwargs):
        rates.append(optimizer.param_groups[0]["lr"])
        return original(optimizer, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", spy)
        train(recipe, tmp_path / "out", Recorder())
    assert rates[:5] == pytest.approx([0.02, 0.04, 0.06, 0.08, 0.1])
    assert rates[32] == pytest.approx(0.5 * PLAN.lr, rel=0.1)
    assert rates[-1] < 0.001 * PLAN.lr
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_a_diverging_loss_is_one_sentence_and_writes_nothing(tmp_path):
    recipe = ToyRecipe()
    recipe.loss = lambda model, rng: model.weight.sum() * float("nan")
    with pytest.raises(UnitError, match=r"toy: the loss is nan at step 0; lower its lr\."):
        train(recipe, tmp_path / "out", Recorder())
    assert list(tmp_path.iterdir()) == []


def test_an_older_checkpoint_is_replaced_whole(tmp_path):
    train(ToyRecipe(), tmp_path / "out", Recorder())
    (tmp_path / "out" / "stale.json").write_text("{}")
    train(ToyRecipe(replace(PLAN, seed=4)), tmp_path / "out", Recorder())
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["manifest.json", "model.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_failed_save_leaves_the_older_checkpoint_alone(tmp_path):
    train(ToyRecipe(), tmp_path / "out", Recorder())
    recipe = ToyRecipe(replace(PLAN, seed=4))
    recipe.save = lambda model, directory: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    with pytest.raises(OSError, match="No space"):
        train(recipe, tmp_path / "out", Recorder())
    assert load_manifest(tmp_path / "out").plan.seed == PLAN.seed
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("occupied", ["folder", "file"])
def test_an_occupied_output_is_refused_before_training(tmp_path, occupied):
    target = tmp_path / "mine"
    if occupied == "folder":
        target.mkdir()
        (target / "thesis.txt").write_text("important")
    else:
        target.write_text("important")
    recorder = Recorder()
    with pytest.raises(InputError, match="exists and is not a checkpoint"):
        train(ToyRecipe(), target, recorder)
    assert recorder.reports == []


def test_an_unwritable_output_is_refused_before_training():
    recorder = Recorder()
    with pytest.raises(InputError, match="cannot write to /proc"):
        train(ToyRecipe(), Path("/proc/nowhere/out"), recorder)
    assert recorder.reports == []
