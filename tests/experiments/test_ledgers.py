"""The pieces that the ledgers of the long-context methods share, at sizes that run in seconds."""

from __future__ import annotations

import json
from functools import partial
from statistics import fmean
from types import SimpleNamespace

import pytest
import torch

from analysis.claims import reproduce_document
from suite.experiments import actqkv, chunkllm, dhsa, dhsa_block, frontier, prefill, qwen2_5_1m, step_loop, synthetic
from suite.experiments.base import Workbench
from suite.experiments.memory import peak_bytes
from suite.experiments.qwen2_5_1m import Qwen25Experiment, Race
from suite.experiments.texts import passkeys, prose
from suite.methods.attention.dhsa import DHSA
from suite.methods.attention.dhsa_block import DHSABlock, DHSABlockConfig
from suite.methods.attention.qwen2_5_1m import Qwen25OneM
from suite.models.attention import DenseAttention
from suite.models.loaders import load_model
from suite.models.recipes import activations
from tests.methods.support import tiny_model

BENCH = Workbench(1, lambda text: None)


def test_peak_bytes_sees_what_was_freed_again():
    def work(megabytes: int) -> None:
        block = torch.ones(megabytes << 20, dtype=torch.int8)
        block.add_(1)

    assert 55 << 20 < peak_bytes(partial(work, 64)) < 80 << 20
    assert peak_bytes(partial(work, 16)) < 32 << 20


def test_prose_has_the_asked_length_and_depends_on_the_seed():
    model = tiny_model()
    first, other = prose(model, 300), prose(model, 300, seed=1)
    assert first.shape == (1, 300)
    assert not torch.equal(first, other)


def race() -> Race:
    """Full attention costs L^2, the sparse one 100 L, in passes of 2048 tokens of one layer."""
    rows = []
    for end in range(2048, 32769, 2048):
        start = end - 2048
        rows.append((5, end, (end**2 - start**2) * 1e-9, (end - start) * 1e-7))
    return Race(rows)


def test_the_curve_is_the_ratio_of_whole_prefills_and_its_fit_goes_on():
    curve = race().curve()
    assert curve[4096] == pytest.approx(40.96)
    assert curve[32768] == pytest.approx(327.68)
    assert race().extrapolated(1_000_000) == pytest.approx(10_000, rel=0.01)


def test_the_race_is_judged_by_its_last_pass():
    assert race().seconds("full") == {("layer", 5): pytest.approx((32768**2 - 30720**2) * 1e-9)}


def test_the_length_ledger_has_both_claims(monkeypatch):
    monkeypatch.setattr(qwen2_5_1m, "LENGTHS", (128, 512))
    monkeypatch.setattr(qwen2_5_1m, "SEQUENCES", 6)
    far, plain, *_ = Qwen25OneM.card.claims
    rows = list(Qwen25Experiment()._lengths(BENCH, far, plain))
    assert [row.claim.split(":")[0] for row in rows] == ["length-extrapolation", "beats-plain"]
    accuracy = rows[0].details["accuracy"]
    assert accuracy["dual chunk and temperature"][512] > accuracy["plain"][512]


def test_the_needle_token_is_where_the_key_ends():
    model = load_model("smollm2-135m", "fp32")
    request = passkeys(300, 1)[1][0]
    token = actqkv.needle_token(model, request)
    ids, key = model.encode(request).ids, request.references[0]
    assert key in model.tokenizer.decode(ids[: token + 1])
    assert key not in model.tokenizer.decode(ids[:token])


def test_the_frontier_measures_every_method_at_every_budget_on_the_same_items(monkeypatch):
    monkeypatch.setattr(frontier, "SHARES", (0.125, 0.5))
    monkeypatch.setattr(frontier, "KEYS", 1)
    monkeypatch.setattr(frontier, "TEXTS", 1)
    monkeypatch.setattr(frontier, "TOKENS", 256)
    monkeypatch.setattr(frontier, "SCORED", 16)
    monkeypatch.setattr(activations, "ANSWER_TOKENS", 32)  # the model writes the texts itself, sixteen at a time
    points = frontier.frontier(BENCH, load_model("smollm2-135m", "bf16"), ("uniform", "oracle"))
    assert [(p.method, p.share) for p in points] == [
        ("dense", 1.0), *(("uniform", s) for s in frontier.SHARES), *(("oracle", s) for s in frontier.SHARES)
    ]  # fmt: skip
    assert all(len(p.keys) == len(p.nats) == 1 for p in points)
    half = frontier.at(points, 0.5)
    assert half["uniform"].retention == pytest.approx(0.5, abs=0.06)
    assert half["uniform"].read_bytes < 0.7 * half["dense"].read_bytes
    assert fmean(half["oracle"].nats) < fmean(half["dense"].nats) + 0.2


def test_steps_in_turn_leave_the_cache_as_it_was_or_one_token_longer_a_round():
    model = tiny_model()
    cache = synthetic.filled_cache(model, 50, 10, lambda step, layer, generator: None)
    dense = {"dense": DenseAttention(model.config)}
    assert len(synthetic.race_steps(model, cache, dense, 3)["dense"]) == 3
    assert cache.lengths == [50]
    synthetic.race_steps(model, cache, dense, 3, grow=True)
    assert cache.lengths == [54]


def point(method: str, share: float, nats: float) -> frontier.Point:
    return frontier.Point(method, share, [1.0], [nats, nats], 1.0, share)


def test_a_control_that_is_better_is_named_in_the_ledger():
    points = [point("dense", 1.0, 2.0)]
    for share in frontier.SHARES:
        points += [point(name, share, 2.3) for name in chunkllm.CONTROLS]
        points.append(point("chunkllm", share, 2.5 if share == 0.125 else 2.1))
    assert chunkllm.losses(points).count("%") == 1
    assert "at 12.5% it keeps 0.61, uniform 0.74" in chunkllm.losses(points)
    assert chunkllm.losses([p for p in points if p.share != 0.125] + [
        point(name, 0.125, 2.0) for name in ("chunkllm", *chunkllm.CONTROLS)
    ]) == ""  # fmt: skip


def test_a_selection_at_every_token_would_be_seen_in_the_ledger(monkeypatch):
    """Boundaries per selection are 1; the shortcut's are fewer."""
    monkeypatch.setattr(chunkllm, "GENERATED", 60)
    model, claim = load_model("smollm2-135m", "bf16"), chunkllm.ChunkLLM.card.claims[-1]
    row = chunkllm.ChunkLLMExperiment()._selections(BENCH, model, claim)
    assert (row.measured, row.verdict) == (1.0, "reproduced")
    select = chunkllm.Counted.learn

    def eager(self, layer, q, row, step):
        select(self, layer, q, row, step)
        if step.width == 1 and layer == 0:
            self._choose(self._rows[row], step.stops[row])

    monkeypatch.setattr(chunkllm.Counted, "learn", eager)
    assert chunkllm.ChunkLLMExperiment()._selections(BENCH, model, claim).verdict != "reproduced"


def test_decode_steps_over_a_synthetic_cache_read_less_with_less_retention(monkeypatch):
    monkeypatch.setattr(chunkllm, "ROUNDS", 2)
    times = chunkllm.steps(BENCH, load_model("smollm2-135m", "bf16"), 600)
    assert set(times) == {"dense", "0.125", "0.5"}
    assert all(len(values) == 2 and min(values) > 0 for values in times.values())


def test_dhsas_recall_is_compared_with_fixed_chunks_and_recency(monkeypatch):
    monkeypatch.setattr(dhsa, "RECALL_TOKENS", 600)
    monkeypatch.setattr(dhsa, "RECALL_LAYERS", (3, 9))
    found = dhsa.attention_recall(BENCH, load_model("smollm2-135m", "bf16"))
    assert set(found) == {"sqrt", "mean", "sum", "fixed chunks", "most recent"}
    assert all(len(values) == 4 and 0 < min(values) <= max(values) <= 1 for values in found.values())


@pytest.fixture(scope="module")
def block_rows():
    """The ledger of DHSA's second version on a random model, which finds no key."""
    sizes = {"PROMPTS": 1, "PROMPT_TOKENS": 100, "RECALL_TOKENS": 1024, "RECALL_LAYERS": (1,)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dhsa_block, "load_model", lambda name, dtype: tiny_model())
        for module in (prefill, dhsa_block):
            patch.setattr(module, "LENGTHS", {256: 3, 1024: 1})
        for name, value in sizes.items():
            patch.setattr(dhsa_block, name, value)
        return list(dhsa_block.DHSABlockExperiment().findings(BENCH))


def test_the_ledger_of_block_masks_has_a_row_per_claim(block_rows):
    assert [row.claim.split(":")[0] for row in block_rows] == [claim.id for claim in DHSABlock.card.claims]
    attention, first_token, _ = block_rows
    per_layer, rounds = attention.details["seconds"], first_token.details["seconds"]
    assert {n: len(row["sparse"]) for n, row in per_layer.items()} == {256: 2, 1024: 2}  # the first layer warms up
    assert {n: len(row["sparse"]) for n, row in rounds.items()} == {256: 3, 1024: 1}
    assert attention.measured == pytest.approx(geometric(per_layer[1024]))  # the longest length
    assert first_token.measured == pytest.approx(geometric(rounds[256]))  # the longest with an interval
    assert first_token.low is not None
    assert "128K is not measured" in attention.conditions
    assert "1K has too few rounds" in first_token.conditions


def geometric(row: dict[str, list[float]]) -> float:
    logs = (
        torch.tensor(row["dense"], dtype=torch.float64).log() - torch.tensor(row["sparse"], dtype=torch.float64).log()
    )
    return float(logs.mean().exp())


def test_masks_that_may_keep_more_find_more_and_plain_top_blocks_waste_some(block_rows):
    recall, density = block_rows[2].details["recall"], block_rows[2].details["density"]
    for variant in dhsa_block.VARIANTS:
        assert 0 < fmean(recall[f"{variant} 12.5%"]) < fmean(recall[f"{variant} 25.0%"]) < 1
    for share in ("12.5%", "25.0%"):
        assert max(density[f"topk {share}"]) < min(density[f"a {share}"])  # of the same budget, a part on the future


def test_where_plain_blocks_find_nothing_the_ledger_says_so_and_shows_no_figure(block_rows):
    row = block_rows[2]
    assert (row.measured, row.verdict) == (None, "not measurable here")
    assert "topk finds no key at all" in row.reason
    json.dumps(reproduce_document(block_rows), allow_nan=False)


def test_attention_is_raced_with_its_mask_building_and_goes_on_in_full(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(prefill, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    learn = DHSABlock.learn

    def slow(*args):
        clock.now += 100
        learn(*args)

    monkeypatch.setattr(DHSABlock, "learn", slow)
    model, ids = tiny_model(), prose(tiny_model(), 700)
    racing, config = dhsa_block.Racing(), DHSABlockConfig(density=0.05)
    logits = prefill.prefill(model, racing, config, ids)
    assert racing.times == {
        "dense": {("layer", 1): 0, ("layer", 2): 0}, "sparse": {("layer", 1): 100, ("layer", 2): 100}
    }  # fmt: skip
    full = prefill.prefill(model, DHSABlock(), DHSABlockConfig(density=1.0), ids)
    torch.testing.assert_close(logits, full, atol=1e-4, rtol=0)
    assert (logits - prefill.prefill(model, DHSABlock(), config, ids)).abs().max() > 1e-2


@pytest.mark.parametrize("fixed", [[0.0] * 12, [1.0] + [0.0] * 11])
def test_dhsas_ledger_shows_no_infinite_figure_where_fixed_blocks_find_little(monkeypatch, fixed):
    found = {"dense": [1.0] * 12, "dhsa": [1.0] * 12, "fixed blocks (dhsa_block vs)": fixed, "sinks and recent": fixed}
    monkeypatch.setattr(dhsa, "passkey_scores", lambda *args: found)
    _, _, _, accuracy, blocks, _ = DHSA.card.claims
    rows = list(dhsa.DHSAExperiment()._scores(BENCH, tiny_model(), accuracy, blocks))
    json.dumps(reproduce_document(rows), allow_nan=False)
    assert rows[1].high is None
    assert ("no key at all" in rows[1].reason) if not any(fixed) else ("no upper bound" in rows[1].reason)


def test_dhsas_ledger_survives_a_model_that_finds_no_key(monkeypatch):
    nothing = dict.fromkeys(("dense", "dhsa", "fixed blocks (dhsa_block vs)", "sinks and recent"), [0.0] * 3)
    monkeypatch.setattr(dhsa, "passkey_scores", lambda *args: nothing)
    _, _, _, accuracy, blocks, _ = DHSA.card.claims
    rows = list(dhsa.DHSAExperiment()._scores(BENCH, tiny_model(), accuracy, blocks))
    assert [(row.measured, "no key at all" in row.reason) for row in rows] == [(None, True)] * 2


@pytest.mark.slow
def test_the_ledger_of_the_step_loops_says_whose_loops_they_are(monkeypatch):
    monkeypatch.setattr(step_loop, "REQUESTS", 3)
    monkeypatch.setattr(step_loop, "ROWS", 2)
    monkeypatch.setattr(step_loop, "ROUNDS", 2)
    monkeypatch.setattr(step_loop, "PROMPT_TOKENS", (4, 8))
    monkeypatch.setattr(step_loop, "NEW_TOKENS", (3, 5))
    row = Qwen25Experiment()._steps(BENCH, load_model("smollm2-135m", "bf16"), Qwen25OneM.card.claims[-1])
    assert row.claim.startswith("asynchronous-steps: ")
    assert row.conditions.startswith("the suite's own two step loops on this CPU")
    assert row.conditions.endswith("outputs identical")
    assert [len(runs) for runs in row.details.values()] == [2, 2]
    assert row.low < row.measured < row.high
