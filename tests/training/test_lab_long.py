"""The lab model for long retrieval: its recipe, its committed checkpoint, and what its window means."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from suite.harness.contender import Contender
from suite.harness.meter import RequestMeter
from suite.methods.attention.dense import Dense
from suite.methods.attention.longheads import LongHeads, LongHeadsConfig
from suite.methods.attention.qwen2_5_1m import Qwen25Config, Qwen25OneM
from suite.models.checkpoints.manifest import TrainingPlan, load_manifest
from suite.models.loaders import hf, lab
from suite.models.recipes.lab import word_tokenizer
from suite.models.recipes.lab_long import CONTEXT, EASY, LabLong
from suite.models.trainer import train
from tests.training.toy import Recorder, weights
from workloads.lab import compose_batch
from workloads.lab_longbench import SCRIPTS, LabLongBench, vocabulary

COMMITTED = lab.CHECKPOINTS / "lab-long"
SHORT = TrainingPlan(steps=30, batch=1, lr=2e-3, warmup=5, weight_decay=0.01, clip=1.0, seed=5, eval_every=15)


@pytest.fixture(scope="module")
def model():
    return lab.lab_long("fp32")


def accuracy(model, task, items, method=None, config=None):
    """Mean score, 0-1, of items that the model answers itself."""
    workload = LabLongBench()
    contender = Contender(method or Dense(), config or Dense.Config(), model)
    requests = list(workload.requests(task, items, 5))
    scores = [workload.score(contender.complete([request], RequestMeter())[0], request) for request in requests]
    return sum(scores) / len(scores) / 100


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The directories of two short runs with one plan."""
    directories = [tmp_path_factory.mktemp(name) / "run" for name in ("a", "b")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("suite.models.recipes.lab_long.DEV_ITEMS", 4)
        for directory in directories:
            train(LabLong(SHORT), directory, Recorder())
    return directories


def test_two_short_runs_give_equal_weights(runs):
    first, second = map(load_manifest, runs)
    assert (first.files, first.curve) == (second.files, second.curve)


@torch.no_grad()
def first_loss(recipe, decoder):
    """Mean loss on four batches of the first step's kind."""
    recipe.build()
    return sum(float(recipe.loss(decoder, np.random.default_rng(seed))) for seed in range(4)) / 4


def test_the_recipe_begins_to_learn_within_seconds(runs):
    recipe = LabLong(SHORT)
    start, trained = recipe.build(), hf.load(runs[0], "fp32", "run", "a test").decoder
    assert first_loss(recipe, trained) < first_loss(recipe, start) - 0.5


def test_it_starts_as_lab_recall_with_one_more_question_mark():
    start, recall = LabLong().build(), lab.lab_recall("fp32").decoder
    ids = torch.from_numpy(compose_batch(np.random.default_rng(0), SCRIPTS["qa"], 2, 64, 1, 4)[0])
    with torch.no_grad():
        assert torch.equal(start.train_logits(ids)[..., : recall.config.vocab], recall.train_logits(ids))
        marked = torch.where(ids == SCRIPTS["qa"].ask, SCRIPTS["passage_retrieval"].ask, ids)
        assert torch.equal(start.train_logits(marked), start.train_logits(ids))


def test_sequences_grow_and_a_step_stays_the_same_size():
    recipe = LabLong(SHORT)
    recipe.build()
    shapes = [recipe.batch(np.random.default_rng(step))[0].shape for step in range(SHORT.steps)]
    assert max(length for _, length in shapes[:2]) <= EASY < max(length for _, length in shapes) <= CONTEXT
    assert all(SHORT.batch * CONTEXT - length < rows * length <= SHORT.batch * CONTEXT for rows, length in shapes)


def test_no_answer_stands_in_an_earlier_question():
    recipe = LabLong()
    recipe.build()
    for seed in range(20):
        ids, mask = recipe.batch(np.random.default_rng(seed))
        for row, answers in zip(ids, mask, strict=True):
            tail = row[np.flatnonzero(answers)[0] - 2 :].reshape(-1, 4)
            assert len(set(tail[:, 1])) == len(tail)


def test_the_committed_checkpoint_is_small_plain_and_whole():
    manifest = load_manifest(COMMITTED)
    files = sorted(path.name for path in COMMITTED.iterdir())
    assert files == ["config.json", "manifest.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    assert sum(path.stat().st_size for path in COMMITTED.iterdir()) < 8_000_000
    assert (manifest.recipe, manifest.recipe_version) == (LabLong.name, LabLong.version)
    assert manifest.plan == LabLong().plan
    assert manifest.data == LabLong().data
    assert manifest.figures[manifest.dev_figure] >= 0.94
    assert {value.dtype for value in weights(COMMITTED).values()} == {torch.float32}


def test_the_loader_gives_the_recipes_model(model):
    assert (model.name, model.window) == ("lab-long", CONTEXT)
    assert replace(model.config, rope=LabLong.config.rope) == LabLong.config
    assert model.tokenizer.backend.to_str() == word_tokenizer(vocabulary()).backend.to_str()


@pytest.mark.parametrize("dataset", SCRIPTS)
def test_the_committed_model_solves_both_tasks_within_its_window(dataset):
    assert accuracy(lab.lab_long("bf16"), f"{dataset}-{CONTEXT}", 60) >= 0.85


def test_beyond_the_window_plain_rope_fails_and_the_methods_do_not(model):
    """Means over eight items, 0-1, measured: plain 0.38, dual chunk attention 0.88, LongHeads 0.63."""
    task = f"qa-{4 * CONTEXT}"
    plain = accuracy(model, task, 8)
    assert accuracy(model, task, 8, Qwen25OneM(), Qwen25Config()) > plain + 0.3
    assert accuracy(model, task, 8, LongHeads(), LongHeadsConfig(chunk=32, attention_length=512)) > plain + 0.1
