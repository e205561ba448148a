"""The lab model: its recipe, its committed checkpoint, its tokenizer and its loader."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from suite.errors import InputError
from suite.models.attention import DenseAttention
from suite.models.checkpoints.manifest import TrainingPlan, load_manifest
from suite.models.loaders import hf, lab
from suite.models.recipes import RECIPES, run_recipe
from suite.models.recipes.lab import NEXT_TOKEN_WEIGHT, word_tokenizer
from suite.models.recipes.lab_recall import CONTEXT, LabRecall
from suite.models.trainer import train
from tests.training.toy import Recorder, weights
from workloads.lab import ANSWER_TOKENS
from workloads.recall import Recall, training_batch, vocabulary

SHORT = TrainingPlan(steps=3, batch=4, lr=2e-3, warmup=2, weight_decay=0.01, clip=1.0, seed=5, eval_every=3)
COMMITTED = lab.CHECKPOINTS / "lab-recall"


@torch.inference_mode()
def greedy_accuracy(model, length, items, seed):
    """Share of right digits when the model writes them itself, through the cache: one prefill, then one by one."""
    ids = torch.from_numpy(training_batch(np.random.default_rng(seed), items, length, queries=1)[0])
    prompt, answer = ids[:, :-ANSWER_TOKENS], ids[:, -ANSWER_TOKENS:]
    attention, cache = DenseAttention(model.config), model.decoder.new_cache(items, length)
    digits = [model.decoder(prompt, cache, attention).argmax(dim=-1)]
    while len(digits) < ANSWER_TOKENS:
        digits.append(model.decoder(digits[-1][:, None], cache, attention).argmax(dim=-1))
    return float((torch.stack(digits, dim=1) == answer).float().mean())


@pytest.fixture(scope="module")
def model():
    return lab.lab_recall("fp32")


def test_two_short_runs_give_equal_weights(tmp_path):
    for name in ("a", "b"):
        train(LabRecall(SHORT), tmp_path / name, Recorder())
    first, second = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_what_is_saved_loads_as_the_model_that_was_trained(tmp_path):
    torch.manual_seed(0)
    recipe, ids = LabRecall(), torch.from_numpy(training_batch(np.random.default_rng(1), 2, 64, 1)[0])
    trained = recipe.build()
    recipe.save(trained, tmp_path)
    loaded = hf.load(tmp_path, "fp32", "saved", "a test")
    assert loaded.config == replace(LabRecall.config, rope=loaded.config.rope)
    assert loaded.config.rope.theta == LabRecall.config.rope.theta
    with torch.no_grad():
        assert torch.equal(loaded.decoder.train_logits(ids), trained.train_logits(ids))


def test_the_loss_counts_answers_and_every_next_token():
    recipe = LabRecall(SHORT)
    torch.manual_seed(0)
    decoder = recipe.build()
    with torch.no_grad():
        decoder.embedding.weight.zero_()  # uniform predictions
        loss = recipe.loss(decoder, np.random.default_rng(0))
    assert float(loss) == pytest.approx((1 + NEXT_TOKEN_WEIGHT) * np.log(len(vocabulary())), rel=1e-5)


def test_the_recipe_is_registered_and_unknown_names_get_a_suggestion(tmp_path):
    assert RECIPES.load("lab-recall") is LabRecall
    with pytest.raises(InputError, match="unknown recipe 'lab-recal'; did you mean 'lab-recall'"):
        run_recipe("lab-recal", tmp_path / "out", Recorder())


def test_run_recipe_writes_a_checkpoint_that_loads(tmp_path, monkeypatch):
    monkeypatch.setattr("suite.models.recipes.lab_recall.PLAN", SHORT)
    recorder = Recorder(stop_at=1)
    directory = run_recipe("lab-recall", tmp_path / "out", recorder)
    assert load_manifest(directory).outcome == "interrupted"
    assert hf.load(directory, "fp32", "lab", "a test").window == CONTEXT


def test_the_committed_checkpoint_is_small_plain_and_whole():
    manifest = load_manifest(COMMITTED)
    files = sorted(path.name for path in COMMITTED.iterdir())
    assert files == ["config.json", "manifest.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert sum(path.stat().st_size for path in COMMITTED.iterdir()) < 5_000_000
    assert (manifest.recipe, manifest.recipe_version) == (LabRecall.name, LabRecall.version)
    assert manifest.plan == LabRecall().plan
    assert manifest.data == LabRecall().data
    assert manifest.figures[manifest.dev_figure] >= 0.99
    assert {value.dtype for value in weights(COMMITTED).values()} == {torch.float32}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_committed_model_recalls_within_its_window(dtype):
    assert greedy_accuracy(lab.lab_recall(dtype), CONTEXT, items=300, seed=77) >= 0.97


def test_plain_rope_degrades_beyond_the_window(model):
    """The effect the long-context methods are measured by (card: 0.98, 0.74, 0.48 at 2, 4 and 8 times the window)."""
    within, beyond = greedy_accuracy(model, CONTEXT, 100, seed=78), greedy_accuracy(model, 8 * CONTEXT, 32, seed=78)
    assert beyond < within - 0.3


def test_the_loader_says_what_it_loaded(model):
    assert (model.name, model.dtype, model.window) == ("lab-recall", "fp32", CONTEXT)
    assert "recipe lab-recall 1" in model.origin
    assert vocabulary()[model.config.eos_ids[0]] == "<eos>"


def test_a_damaged_committed_checkpoint_is_refused(tmp_path, monkeypatch):
    damaged = tmp_path / "lab-recall"
    damaged.mkdir()
    for path in COMMITTED.iterdir():
        (damaged / path.name).write_bytes(path.read_bytes())
    (damaged / "model.safetensors").open("ab").write(b"\0")
    monkeypatch.setattr(lab, "CHECKPOINTS", tmp_path)
    with pytest.raises(InputError, match=r"model\.safetensors has sha256 .*suite train lab-recall"):
        lab.lab_recall("fp32")


def test_the_tokenizer_gives_the_workloads_own_ids_back(model):
    ids, _ = training_batch(np.random.default_rng(3), 1, 128, 4)
    words = [vocabulary()[token] for token in ids[0]]
    text = " ".join(words[1:])
    assert model.tokenizer.prompt(text, chat=False) == ids[0].tolist()
    assert model.tokenizer.encode(text) == ids[0, 1:].tolist()
    assert model.tokenizer.decode(ids[0].tolist()) == text
    assert model.tokenizer.encode(" ".join(vocabulary())) == list(range(len(vocabulary())))
    assert model.tokenizer.encode("never seen") == [vocabulary().index("<unk>")] * 2


def test_the_committed_tokenizer_is_the_one_the_recipe_makes(model):
    assert model.tokenizer.backend.to_str() == word_tokenizer(vocabulary()).backend.to_str()
    assert model.tokenizer.special == word_tokenizer(vocabulary()).special


def test_a_request_of_the_workload_fits_the_window(model):
    request = next(iter(Recall().requests("128", 1, 0)))
    prompt = model.encode(request)
    assert prompt.notes == ()
    assert len(prompt.ids) + request.max_new_tokens == CONTEXT
