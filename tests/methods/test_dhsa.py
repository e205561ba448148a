"""DHSA, first version: against a naive transcription of its card, and the card's toy traps."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kernels.segment_reduce import segment_sum
from suite.harness.meter import RequestMeter
from suite.methods.attention.chunk_selection import best_tokens, boundaries, choose, split_rows
from suite.methods.attention.dhsa import DHSA, DHSAConfig
from suite.models.attention import DenseAttention
from suite.models.recipes.dhsa import UNKNOWN, BoundaryPredictor
from suite.models.rope import Rope, rotate
from tests.methods.support import CONFIG, LargestTensor, logits_of, project, run_layer, selected, tiny_model
from workloads.schema import Request

SMALL = DHSAConfig(budget=64, block=16, recent=16, sinks=8, instruction=12)
L = 203


class Drawn(nn.Module):
    """In place of a predictor: logits of its own for every token, three in ten beyond the threshold."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, keys: Tensor) -> Tensor:
        self.calls += 1
        drawn = torch.randn(keys.shape[:2], generator=torch.Generator().manual_seed(5)) + 0.5
        drawn[:, :3] = drawn[:, -4:] = UNKNOWN
        return drawn


def method_with(predictor: nn.Module) -> DHSA:
    method = DHSA()
    method._predictor = predictor  # type: ignore[assignment]
    return method


def contrast(features: int = 8) -> BoundaryPredictor:
    """A predictor set by hand: tokens attend to their likes, and the logit grows with |l - r|."""
    predictor = BoundaryPredictor(features)
    eye = torch.eye(features)
    with torch.no_grad():
        for parameter in predictor.parameters():
            parameter.zero_()
        predictor.qkv.weight.copy_(torch.cat((4 * eye, 4 * eye, eye)))
        predictor.out.weight.copy_(eye)
        predictor.norm.weight.fill_(1.0)
        predictor.fuse[0].weight[0, 2 * features : 3 * features] = 1.0
        predictor.fuse[2].weight[0, 0], predictor.fuse[2].bias[0] = 1.0, -4.0
    return predictor


def naive_boundaries(logits: list[float], config: DHSAConfig) -> list[int]:
    """Step 2 of the card."""
    length = len(logits)
    forced = length - config.instruction
    accepted = [forced]
    for j in sorted(range(length), key=lambda j: (-logits[j], j)):
        if logits[j] <= config.threshold or len(accepted) >= length // config.block * 8:
            break
        if j <= forced and all(abs(j - other) > 8 for other in accepted):
            accepted.append(j)
    return sorted({0, *(j + 1 for j in accepted if j + 1 < length), length})


def naive_lists(q: Tensor, k: Tensor, edges: list[int], config: DHSAConfig) -> dict[int, list[int]]:
    """Steps 3 to 5, token by token: the slots that each sparse block reads, by its first query; q, k [L, heads, D]."""
    length, N_b = len(q), config.tokens(len(q))
    mean_q, mean_k = q.float().mean(dim=1), k.float().repeat_interleave(CONFIG.group, dim=1).mean(dim=1)
    divide = {"sqrt": math.sqrt, "mean": float, "sum": lambda n: 1.0}[config.chunk_vector]
    chunk_of = {j: c for c, (a, b) in enumerate(pairwise(edges)) for j in range(a, b)}
    chunks = torch.stack([mean_k[a:b].sum(dim=0) / divide(b - a) for a, b in pairwise(edges)])
    lists, last = {}, length - config.instruction
    for start in range(0, last, config.block):
        end = min(start + config.block, last)
        if end <= N_b:
            continue
        block = mean_q[start:end].mean(dim=0) * math.sqrt(end - start)
        score = (chunks @ block).tolist()
        recent = range(end - max(config.recent, config.block), end)
        ranked = sorted(range(recent[0]), key=lambda j: (-score[chunk_of[j]], j))
        listed = sorted([*ranked[: N_b - len(recent)], *recent])
        listed[: config.sinks] = range(config.sinks)
        lists[start] = listed
    return lists


def naive_output(q: Tensor, k: Tensor, v: Tensor, lists: dict[int, list[int]], config: DHSAConfig) -> Tensor:
    """Step 6 for one row: q [L, H, D] and k rotated; rows that are in no sparse block see everything."""
    out = torch.empty_like(q)
    for i in range(len(q)):
        block = i // config.block * config.block if i < len(q) - config.instruction else -1
        seen = torch.tensor([j for j in lists.get(block, range(len(q))) if j <= i])
        for head in range(CONFIG.heads):
            keys, values = k[seen, head // CONFIG.group], v[seen, head // CONFIG.group]
            out[i, head] = torch.softmax(keys @ q[i, head] * CONFIG.scale, dim=0) @ values
    return out


def turned(x: Tensor) -> Tensor:
    """[1, T, heads, D] -> [T, heads, D], rotated by position."""
    cos, sin = Rope(CONFIG.rope, CONFIG.head_dim).tables(x.shape[1])
    return rotate(x[0], cos[: x.shape[1], None], sin[: x.shape[1], None])


VARIANTS: dict[str, dict[str, Any]] = {
    "as in the paper": {},
    "mean": {"chunk_vector": "mean"},
    "sum": {"chunk_vector": "sum"},
    "more recent than a block": {"recent": 40},
    "no sinks": {"sinks": 0},
    "no instruction": {"instruction": 0},
    "blocks not aligned with the budget": {"budget": 71},
    "share of the length": {"density": 0.4},
    "few boundaries": {"threshold": 2.9},
}


@pytest.mark.parametrize("options", VARIANTS.values(), ids=VARIANTS.keys())
def test_matches_a_transcription_of_the_card(options):
    config = DHSAConfig(**{**SMALL.model_dump(), **options})
    q, k, v = project(L)
    edges = naive_boundaries(Drawn()(torch.empty(1, L, 1))[0].tolist(), config)
    lists = naive_lists(turned(q), turned(k), edges, config)
    out = run_layer(method_with(Drawn()), config, q, k, v, L)
    torch.testing.assert_close(out[0], naive_output(turned(q), turned(k), v[0], lists, config), atol=1e-5, rtol=1e-4)
    rows = split_rows(config, 0, L)
    assert rows is not None
    chosen = choose(turned(q), turned(k).transpose(0, 1), torch.tensor(edges, dtype=torch.int32), rows, config)
    assert chosen[0, 0].tolist() == list(lists.values())


@pytest.mark.parametrize("threshold", [-3.0, 0.0, 1.1, 4.0])
@pytest.mark.parametrize("instruction", [0, 12])
def test_boundaries_are_those_of_the_greedy_suppression(threshold, instruction):
    config = DHSAConfig(**{**SMALL.model_dump(), "instruction": instruction}).model_copy(
        update={"threshold": threshold}
    )
    logits = Drawn()(torch.empty(1, 700, 1))[0]
    assert boundaries(logits, config).tolist() == naive_boundaries(logits.tolist(), config)


def test_no_more_boundaries_than_eight_for_each_block():
    config = SMALL.model_copy(update={"block": 256, "threshold": -50.0})
    edges = boundaries(torch.randn(1024), config).tolist()
    assert len(edges) == 1024 // 256 * 8 + 2


def test_chunks_have_many_lengths():
    """Trap: fixed-size chunks called DHSA."""
    lengths = boundaries(Drawn()(torch.empty(1, 2000, 1))[0], SMALL).diff().float()
    assert lengths.std() > 0.3 * lengths.mean()


@pytest.mark.parametrize("at", [40, 57, 90])
def test_a_break_that_moves_takes_its_boundary_along(at):
    """Keys of one topic, then of another: the predictor's own code, with weights set by hand."""
    topics = torch.nn.functional.normalize(torch.randn(2, 8, generator=torch.Generator().manual_seed(1)), dim=1)
    keys = topics[(torch.arange(140) >= at).long()][None]
    config = SMALL.model_copy(update={"instruction": 0})
    assert boundaries(contrast()(keys)[0], config).tolist() == [0, at, 140]


def test_chunk_vectors_of_noise_score_alike_whatever_their_length():
    """Trap: mean in place of sum / sqrt n. Lengths 4 and 64: variances within 20 %; means differ sixteenfold."""
    noise = torch.randn(6000 * 68, 16, generator=torch.Generator().manual_seed(0))
    lengths = torch.tensor([4, 64]).repeat(6000)
    edges = torch.cat((torch.zeros(1), lengths.cumsum(0))).int()
    query = torch.randn(16, generator=torch.Generator().manual_seed(1))

    def ratio(kind: str) -> float:
        score = segment_sum(noise, edges, kind=kind) @ query
        return float(score[1::2].var() / score[0::2].var())

    assert 0.8 < ratio(DHSAConfig().chunk_vector) < 1.2
    assert ratio("mean") < 0.1


def shares(kind: str) -> tuple[float, float]:
    """Share of the tokens of short (4) and of long (28) chunks that blocks of noise select; the budget is a quarter."""
    generator = torch.Generator().manual_seed(3)
    lengths = torch.tensor([4, 28]).repeat(125)
    edges = torch.cat((torch.zeros(1), lengths.cumsum(0))).int()
    config = DHSAConfig(budget=1000, block=16, recent=0, sinks=0, instruction=0, chunk_vector=kind)
    taken = torch.zeros(4000)
    for _ in range(40):
        q, keys = (torch.randn(4000, n, 16, generator=generator) for n in (4, 2))
        rows = split_rows(config, 3984, 16)
        assert rows is not None
        taken[choose(q[-16:], keys.transpose(0, 1), edges, rows, config)[0, 0, 0].long()] += 1
    short = (torch.arange(4000) % 32) < 4
    return float(taken[short].mean()), float(taken[~short].mean())


def test_the_selected_share_depends_on_the_length_of_a_chunk_with_means_only():
    (short, long), (mean_short, mean_long) = shares("sqrt"), shares("mean")
    assert 0.75 < short / long < 1.33
    assert mean_short > 1.5 * mean_long


def test_nothing_has_the_size_of_a_dense_map():
    """Trap: the L x L score matrix and a mask. One layer at L = 4096 makes no tensor of a tenth of one."""
    q, k, v = project(4096)
    config = DHSAConfig(budget=512)
    with LargestTensor() as largest, torch.no_grad():
        run_layer(method_with(BoundaryPredictor(32)), config, q, k, v, 4096)
    assert largest.elements < 4096 * 4096 / 10


def test_every_block_reads_exactly_its_budget_and_cuts_a_chunk_for_it():
    """Trap: whole chunks in place of tokens."""
    q, k, _ = project(L)
    edges = boundaries(Drawn()(torch.empty(1, L, 1))[0], SMALL)
    rows = split_rows(SMALL, 0, L)
    assert rows is not None
    lists = choose(turned(q), turned(k).transpose(0, 1), edges, rows, SMALL)[0, 0]
    assert lists.shape == (-(-(L - 12 - 64) // 16), 64)
    cut = 0
    for listed in lists.tolist():
        assert len(set(listed)) == 64
        assert listed == sorted(listed)
        for a, b in pairwise(edges.tolist()):
            inside = len(set(range(max(a, 8), min(b, listed[-1] - 15))) & set(listed))
            cut += 0 < inside < b - max(a, 8) and b < listed[-1] - 15
    assert cut > 0


def test_equal_scores_go_to_the_lower_slots():
    slots = best_tokens(torch.zeros(1, 3), torch.tensor([0, 10, 50, 100]), torch.tensor([90]), 20, 35)
    assert slots[0].tolist() == [*range(15), *range(70, 90)]


def test_a_query_always_sees_its_own_block():
    """The suite's deviation: the release forces `recent` tokens only, fewer than a block of 256."""
    config = SMALL.model_copy(update={"recent": 0})
    rows = split_rows(config, 0, L)
    assert rows is not None
    q, k, _ = project(L)
    lists = choose(turned(q), turned(k).transpose(0, 1), torch.tensor([0, L], dtype=torch.int32), rows, config)[0, 0]
    for number, listed in enumerate(lists.tolist()):
        begin = 64 + number * 16
        assert set(range(begin, min(begin + 16, L - 12))) <= set(listed)


@pytest.mark.parametrize("j", [70, 101, 127, 150])
def test_values_of_later_tokens_never_leak(j):
    """Bit for bit; keys and queries of the own block do take part in the selection, as documented."""
    q, k, v = project(L)
    before = run_layer(method_with(Drawn()), SMALL, q, k, v, L)
    v = v.clone()
    v[:, j] += 1e4
    after = run_layer(method_with(Drawn()), SMALL, q, k, v, L)
    assert torch.equal(before[:, :j], after[:, :j])
    assert not torch.equal(before[:, j:], after[:, j:])


def test_the_selection_of_finished_blocks_ignores_later_queries():
    q, k, v = project(L)
    before = run_layer(method_with(Drawn()), SMALL, q, k, v, L)
    q = q.clone()
    q[:, 130:] *= -3
    after = run_layer(method_with(Drawn()), SMALL, q, k, v, L)
    assert torch.equal(before[:, :128], after[:, :128])


def test_instruction_and_first_tokens_read_everything():
    q, k, v = project(L)
    dense = naive_output(turned(q), turned(k), v[0], {}, SMALL)
    out = run_layer(method_with(Drawn()), SMALL, q, k, v, L)[0]
    for rows in (slice(0, 64), slice(L - 12, L)):
        torch.testing.assert_close(out[rows], dense[rows], atol=1e-5, rtol=1e-4)
    assert (out - dense)[64 : L - 12].abs().amax(dim=(1, 2)).min() > 1e-4


@pytest.mark.parametrize(("options", "calls"), [({}, 1), ({"share_boundaries": False}, 3), ({"share_masks": True}, 1)])
def test_the_predictor_runs_inside_the_prompts_pass_once_or_for_every_layer(options, calls):
    """Trap: latency without the predictor. It runs while a request is served, not before."""
    config = DHSAConfig(**{**SMALL.model_dump(), **options})
    predictor = Drawn()
    method = method_with(predictor)
    with method.attach(tiny_model(), config) as generator:
        assert predictor.calls == 0
        request = Request(id="r", task="t", prompt="a" * 150, metric="none", max_new_tokens=5)
        list(generator.generate([request], RequestMeter()))
    assert predictor.calls == calls


def test_shared_masks_are_those_of_the_first_layer():
    model, tokens = tiny_model(), torch.randint(0, 128, (2, L), generator=torch.Generator().manual_seed(0))
    own = logits_of(model.decoder, selected(method_with(Drawn()), SMALL, batch=2), tokens, L)
    config = SMALL.model_copy(update={"share_masks": True})
    shared = logits_of(model.decoder, selected(method_with(Drawn()), config, batch=2), tokens, L)
    assert (own - shared).abs().max() > 1e-4
    dense = logits_of(model.decoder, DenseAttention(CONFIG), tokens, L)
    assert (dense - shared).abs().max() > 1e-4


def test_a_prompt_within_the_budget_is_dense():
    assert split_rows(SMALL, 0, 64 + 12) is None
    assert split_rows(SMALL, 0, 64 + 13) is not None
    assert split_rows(SMALL.model_copy(update={"density": 1.0}), 0, 5000) is None
    assert split_rows(SMALL, 500, 1) is None  # a single token of a wide pass


@pytest.mark.parametrize(
    "options",
    [{"budget": 100}, {"budget": 0}, {"density": 0.0}, {"chunk_vector": "max"}, {"block": 0}, {"theta": 1.0}],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=r"budget|density|chunk_vector|block|theta"):
        DHSAConfig(**options)


def test_a_model_without_a_predictor_is_refused_in_one_sentence():
    refusal = DHSA().refusal(tiny_model(), SMALL)
    assert refusal == "dhsa has no adapters for tiny yet; train them with `suite train dhsa --model tiny`"
