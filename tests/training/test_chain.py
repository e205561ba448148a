"""The reasoning lab's models: sampling, losses, reward models, and the gates on the committed checkpoints."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from scipy import stats

from suite.experiments import reasoning_lab as table
from suite.models.checkpoints.manifest import TrainingPlan, load_manifest
from suite.models.loaders import hf, lab, load_model
from suite.models.recipes import RECIPES, chain_rewards
from suite.models.recipes.chain import (
    IDS,
    VERDICT_WEIGHT,
    WORDS,
    Band,
    ChainEarly,
    ChainLarge,
    ChainLong,
    dev_problems,
    encode,
    padded,
)
from suite.models.recipes.chain_rewards import (
    NO_TOKEN,
    SLIP,
    Judged,
    OutcomeRecipe,
    ProcessRecipe,
    auc,
    calibration_error,
    judged,
    oracle,
    scores,
    slipped,
    step_loss,
)
from suite.models.rewards import CLIP, LikelihoodPRM, TokenReward, step_ends, step_log_likelihoods
from suite.models.rollout import rollout
from suite.models.trainer import train
from tests.training.toy import Recorder, weights
from workloads.generators.chain import NL, RIGHT, WRONG, Problem, is_hard, lines

SHORT = TrainingPlan(steps=2, batch=4, lr=4e-3, warmup=1, weight_decay=0.1, clip=1.0, seed=5, eval_every=2)
POLICIES = ["chain-early", "chain-mid", "chain-strong", "chain-large", "chain-string", *table.LONG, "chain-hasty"]
TASK = "arithmetic-24"


@pytest.fixture(scope="module")
def traces() -> list[Judged]:
    return judged(table.policy("chain-mid"), table.problems(TASK, 200), 1.0, seed=3)


@pytest.fixture(autouse=True)
def _few_dev_problems(monkeypatch):
    monkeypatch.setattr("suite.models.recipes.chain.DEV_PROBLEMS", 8)


def test_a_greedy_rollout_is_what_teacher_forcing_finds_most_likely():
    decoder, prompts = table.policy("chain-mid"), [encode(problem) for problem in dev_problems(TASK, 6)]
    assert len({len(prompt) for prompt in prompts}) > 1  # ragged
    for prompt, row in zip(prompts, rollout(decoder, prompts, 64, 0.0, seed=0), strict=True):
        with torch.no_grad():
            likely = decoder.train_logits(torch.tensor([[*prompt, *row]]))[0].argmax(dim=-1).tolist()
        assert row == likely[len(prompt) - 1 : -1]
        assert row.index(IDS["<eos>"]) == len(row) - 1


def test_rollouts_draw_from_the_models_law_and_stop_at_their_limit():
    decoder, prompt = table.policy("chain-early"), encode(Problem(("5",), ("*7", "*83", "*2")))
    opening = [IDS[word] for word in Problem(("5",), ("*7", "*83", "*2")).opening()]
    drawn = [row[0] for row in rollout(decoder, [[*prompt, *opening]] * 4000, 1, 1.0, seed=0)]
    with torch.no_grad():
        law = decoder.train_logits(torch.tensor([[*prompt, *opening]]))[0, -1].softmax(dim=-1).double().numpy()
    often = law * 4000 >= 5
    expected = np.append(law[often], law[~often].sum()) * 4000
    counts = np.bincount(drawn, minlength=len(law))
    assert stats.chisquare(np.append(counts[often], counts[~often].sum()), expected, sum_check=False).pvalue > 0.001
    assert rollout(decoder, [prompt], 3, 1.0, seed=1) == rollout(decoder, [prompt], 3, 1.0, seed=1)


def test_the_loss_is_the_traces_and_weighs_verdicts():
    recipe = ChainLong(SHORT)
    recipe.batch = partial(recipe.sequences, family=recipe.family, thought=recipe.thought)
    torch.manual_seed(0)
    decoder = ChainEarly(SHORT).build()
    ids, mask = recipe.batch(np.random.default_rng(0))
    with torch.no_grad():
        losses = -decoder.train_logits(torch.from_numpy(ids)).log_softmax(dim=-1)
        found = float(recipe.loss(decoder, np.random.default_rng(0)))
    total = count = 0.0
    for row, marked in zip(range(len(ids)), mask, strict=True):
        words = [WORDS[i] for i in ids[row]]
        assert [i for i, m in enumerate(marked) if m] == list(range(words.index("|") + 1, words.index("<eos>") + 1))
        for place in np.flatnonzero(marked):
            weight = VERDICT_WEIGHT if words[place] in ("SAME", "DIFF") else 1.0
            total, count = total + weight * float(losses[row, place - 1, ids[row, place]]), count + weight
    assert found == pytest.approx(total / count, rel=1e-4)


def test_long_thought_rehearses_short_problems_before_its_own():
    recipe = ChainLong(replace(SHORT, steps=4, batch=40))
    recipe.build()
    for step in range(4):
        texts = [" ".join(WORDS[i] for i in row) for row in recipe.batch(np.random.default_rng(step))[0]]
        operations = {text.split("|")[0].count("L") for text in texts}
        same = sum(text.count("SAME") for text in texts) / sum(
            text.count("SAME") + text.count("DIFF") for text in texts
        )
        assert operations == ({1, 2} if step < 2 else {3, 4, 5})
        assert (0.3 < same < 0.7) if step < 2 else same < 0.3


def test_a_band_is_fit_inside_and_measures_how_far_outside():
    band = Band(greedy=(0.2, 0.4), sampled=(0.1, 0.2))
    assert band.fit(0.2, 0.2) == band.fit(0.4, 0.1) == 0.0
    assert band.fit(0.5, 0.05) == pytest.approx(-0.15)


def test_two_short_runs_give_equal_weights_that_load(tmp_path):
    for name in ("a", "b"):
        train(ChainEarly(SHORT), tmp_path / name, Recorder())
    first, second = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert hf.load(tmp_path / "a", "fp32", "a", "a test").tokenizer.encode("L0 96 NL") == [
        IDS[word] for word in ("L0", "96", "NL")
    ]


def test_the_large_policy_is_kept_in_bf16_and_trained_in_fp32(tmp_path):
    train(ChainLarge(replace(SHORT, steps=1, eval_every=1)), tmp_path / "large", Recorder())
    kept = weights(tmp_path / "large")
    assert {value.dtype for name, value in kept.items() if "norm" not in name} == {torch.bfloat16}
    assert sum(value.numel() for value in kept.values()) > 25 * sum(
        p.numel() for p in ChainEarly(SHORT).build().parameters()
    )
    assert '"dtype": "bfloat16"' in (tmp_path / "large" / "config.json").read_text()
    assert hf.load(tmp_path / "large", "fp32", "large", "a test").decoder.dtype is torch.float32


def test_training_ends_at_the_first_evaluation_inside_the_band(tmp_path, monkeypatch):
    monkeypatch.setattr(ChainEarly, "band", Band(greedy=(0.0, 1.0), sampled=(0.0, 1.0)))
    manifest = train(ChainEarly(replace(SHORT, steps=9, target=0.0)), tmp_path / "out", Recorder())
    assert (manifest.outcome, manifest.steps) == ("target reached", 2)


def test_step_likelihoods_are_sums_over_the_steps_own_tokens(traces):
    decoder, rows = table.policy("chain-strong"), traces[:12]
    ids, _ = padded([(row.prompt, row.written) for row in rows])
    found = step_log_likelihoods(decoder, torch.from_numpy(ids), [len(row.prompt) for row in rows])
    with torch.no_grad():
        logs = decoder.train_logits(torch.from_numpy(ids)).log_softmax(dim=-1)
    for row, one in enumerate(rows):
        begin = len(one.prompt)
        for end in one.ends:
            expected = sum(float(logs[row, t - 1, ids[row, t]]) for t in range(begin, end + 1))
            assert float(found[row, end]) == pytest.approx(max(CLIP, expected), abs=1e-3)
            begin = end + 1


def test_steps_end_at_nl_and_where_the_text_does():
    nl = IDS[NL]
    assert step_ends([nl, 7, nl, 8, nl], 1) == [2, 4]
    assert step_ends([nl, 7, nl, 8], 1) == [2, 3]
    assert step_ends([nl, 7], 1) == [1]


def test_there_is_one_label_for_every_step(traces):
    assert all(len(row.ends) == len(row.steps) for row in traces)
    assert all(len(lines(" ".join(WORDS[i] for i in row.written))) == len(row.steps) for row in traces)
    assert all(row.solved for row in traces if all(row.steps))


def test_a_reward_model_reads_the_trace_and_nothing_of_the_oracle(traces):
    model = TokenReward(load_model("chain-strong", "fp32").decoder)
    shown: list[torch.Tensor] = []
    model.register_forward_pre_hook(lambda module, inputs: shown.append(inputs[0]))
    lied = [replace(row, labels=[not right for right in row.labels], solved=not row.solved) for row in traces]
    with torch.no_grad():
        assert torch.equal(scores(model, traces), scores(model, lied))
        assert step_loss(model, traces) != step_loss(model, lied)
        outcome = OutcomeRecipe.__new__(OutcomeRecipe)
        assert outcome.quality(model, traces) != outcome.quality(model, lied)
    assert not torch.isin(torch.cat(shown), torch.tensor([IDS[RIGHT], IDS[WRONG]])).any()


def test_a_judged_trace_by_hand():
    text = "5 L0 *7 NL 34 L0 34 L1 +1 NL 35 L1 35 STOP NL CAND 36 NL END ANS 35 <eos>"
    words = text.split()
    row = oracle(Problem(("5",), ("*7", "+1")), words)
    assert [WORDS[i] for i in row.written] == words
    assert "".join("ny"[right] for right in row.labels) == "yyyy" + "nnnnnn" + "yynnn" + "ynn" + "yynn"
    assert row.steps == [True, False, False, False, False]
    assert row.ends == [len(row.prompt) + place for place in (3, 9, 14, 17, 21)]
    rights = ["-" if i == NO_TOKEN else WORDS[i] for i in row.corrected]
    assert " ".join(rights) == "5 L0 *7 NL 35 L0 35 L1 +1 NL 35 L1 STOP NL - CAND 35 NL END ANS 36 -"
    assert not row.solved
    assert oracle(Problem(("5",), ("*7", "+1")), [*words[:-2], "36", "<eos>"]).solved


def test_slips_are_at_hard_steps_and_the_only_errors():
    rng = np.random.default_rng(0)
    problems = dev_problems(TASK, 400)
    rows = slipped(problems, rng)
    wrong = [
        problem.operations[place - 1]
        for problem, row in zip(problems, rows, strict=True)
        for place, right in enumerate(row.steps)
        if not right
    ]
    assert all(map(is_hard, wrong))
    hard = sum(is_hard(operation) for problem in problems for operation in problem.operations)
    assert len(wrong) / hard == pytest.approx(SLIP * 96 / 97, abs=0.05)
    assert {row.solved for row in rows if not all(row.steps)} == {False}


def test_half_of_a_process_rewards_traces_are_its_policies_own(monkeypatch):
    monkeypatch.setattr(chain_rewards, "slipped", lambda problems, rng: [None] * len(problems))
    rows = ProcessRecipe(replace(SHORT, batch=8)).batch(np.random.default_rng(0))
    assert len(rows) == 8
    assert sum(row is None for row in rows) == 4


def test_a_process_reward_is_taught_what_is_right_at_every_token(traces, monkeypatch):
    recipe, model = ProcessRecipe(SHORT), TokenReward(load_model("chain-strong", "fp32").decoder)
    rows = traces[:8]
    flipped = [replace(row, labels=[not right for right in row.labels]) for row in rows]
    early = [replace(row, labels=[not row.labels[0], *row.labels[1:]]) for row in rows]  # no step ends there
    other = [replace(row, corrected=row.corrected[::-1]) for row in rows]
    hidden = [replace(row, solved=not row.solved) for row in rows]
    losses = []
    for shown in (rows, flipped, early, other, hidden):
        monkeypatch.setattr(recipe, "batch", lambda rng, shown=shown: shown)
        losses.append(float(recipe.loss(model, np.random.default_rng(0))))
    assert losses[4] == losses[0]
    assert len(set(losses)) == 4


def test_new_layers_of_a_process_reward_start_by_adding_nothing():
    with torch.no_grad():
        ids = torch.tensor([encode(dev_problems(TASK, 1)[0])])
        begun = ProcessRecipe(SHORT).build().decoder.train_logits(ids)
    assert torch.allclose(begun, table.policy("chain-strong").train_logits(ids), atol=1e-5)


def test_auc_and_calibration_error_by_hand():
    labels = np.array([True, True, False, False])
    assert auc(np.array([3.0, 2.0, 1.0, 0.0]), labels) == 1.0
    assert auc(np.array([3.0, 1.0, 2.0, 1.0]), labels) == pytest.approx((2 + 0.5) / 4)
    logits = np.log(np.array([0.92, 0.92, 0.08, 0.08]) / np.array([0.08, 0.08, 0.92, 0.92]))
    assert calibration_error(logits, labels) == pytest.approx(0.08)
    assert calibration_error(logits, ~labels) == pytest.approx(0.92)


# The committed checkpoints.


@pytest.mark.parametrize("name", [*POLICIES, *table.REWARDS])
def test_a_committed_checkpoint_is_whole_and_of_this_recipe(name):
    manifest = load_manifest(lab.CHECKPOINTS / name)
    recipe = RECIPES.load(name)
    assert (manifest.recipe, manifest.recipe_version) == (recipe.name, recipe.version)
    assert manifest.plan == recipe().plan
    assert manifest.data == recipe().data


def test_the_lab_is_small():
    paths = [path for name in (*POLICIES, *table.REWARDS) for path in (lab.CHECKPOINTS / name).iterdir()]
    assert sum(path.stat().st_size for path in paths) < 40_000_000


@pytest.mark.parametrize("name", POLICIES)
def test_all_policies_share_one_tokenizer(name):
    model = load_model(name, "fp32")
    words = "|  NL WAIT CAND 0 96 SAME *89 L11 f"
    assert model.tokenizer.encode(words) == [IDS[word] for word in words.split()]
    assert model.tokenizer.decode(range(4, len(WORDS))).split() == list(WORDS[4:])


@pytest.mark.parametrize(
    ("name", "task", "greedy", "sampled"),
    [
        ("chain-early", TASK, (0.20, 0.40), (0.12, 0.27)),
        ("chain-mid", TASK, (0.50, 0.80), (0.35, 0.55)),
        ("chain-strong", TASK, (0.95, 1.0), (0.95, 1.0)),
        ("chain-large", TASK, (0.95, 1.0), (0.95, 1.0)),
        ("chain-string", "string", (0.45, 0.80), (0.30, 0.50)),
    ],
)  # fmt: skip
def test_the_policies_are_as_good_as_they_should_be(name, task, greedy, sampled):
    """300 fresh problems: an accuracy of one half is known to 6 points, hence the margin around the bands."""
    asked = table.problems(task, 300)
    for temperature, (low, high) in ((0.0, greedy), (1.0, sampled)):
        assert low <= table.accuracy(table.answers(table.policy(name), task, asked, 1, temperature)) <= high


def test_the_middle_policy_can_solve_nearly_all():
    rows = table.answers(table.policy("chain-mid"), TASK, table.problems(TASK, 100), 16, 1.0)
    assert np.mean([any(row.right) for row in rows]) >= 0.9


@pytest.mark.parametrize(
    ("name", "count", "low", "high"),
    [("chain-long", 40, 0.62, 0.9), ("chain-long-control", 40, 0.43, 0.57), ("chain-hasty", 160, 0.3, 0.48)],
)
def test_length_tells_wrong_thoughts_from_right_ones_but_not_in_the_control(name, count, low, high):
    rows = table.answers(table.policy(name), "long", table.problems("long", count), 12, 1.0)
    assert 0.25 <= table.accuracy(rows) <= 0.7
    assert low <= np.mean(table.length_aucs(rows)) <= high


def test_first_tokens_of_hard_steps_are_uncertain():
    entropies, hard = table.first_token_entropies(table.policy("chain-early"), table.problems(TASK, 100))
    assert auc(entropies, hard) >= 0.9
    assert auc(np.random.default_rng(0).permutation(entropies), hard) == pytest.approx(0.5, abs=0.08)


@pytest.mark.parametrize(("name", "solution_auc"), [("chain-likelihood", 0.9), ("chain-prm", 0.9), ("chain-orm", 0.9)])
def test_rewards_tell_right_solutions_from_wrong_ones(name, solution_auc, traces):
    model = lab.reward(name)
    assert isinstance(model, LikelihoodPRM if name == "chain-likelihood" else TokenReward)
    found = RECIPES.load(name).quality(RECIPES.load(name).__new__(RECIPES.load(name)), model, traces)
    assert found["solution_auc"] >= solution_auc
    assert found.get("step_auc", 1.0) >= 0.85
    assert found["calibration_error"] <= 0.2
