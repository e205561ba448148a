"""DHSA, second version: its four masks against loops over tiles, and the card's toy traps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from suite.methods.attention.block_masks import best, keep
from suite.methods.attention.dhsa_block import VARIANTS as BUILDERS
from suite.methods.attention.dhsa_block import DHSABlock, DHSABlockConfig
from suite.models.attention import DenseAttention
from tests.methods.support import CONFIG, LargestTensor, logits_of, project, run_layer, selected, tiny_model
from tests.methods.test_dhsa import turned

L = 1100
SPARSE = DHSABlockConfig(density=0.2)


def built(q: Tensor, keys: Tensor, config: DHSABlockConfig) -> Tensor:
    """The suite's mask; q [T, H, D], keys [G, L, D], rotated."""
    return keep(q, keys, CONFIG.scale, config.variant, config.blocks(keys.shape[1]))


def naive_scores(q: Tensor, k: Tensor, variant: str, topk: int, row: range) -> dict[int, float]:
    """Scores of the key blocks for the query block at slots `row`; q [T, D] are the last of the keys [L, D]."""
    length, ahead = len(k), len(k) - len(q)
    blocks = [k[j : j + 32].mean(dim=0) for j in range(0, length, 32)]
    if variant in ("topk", "a"):
        block = q[[i - ahead for i in row if i < length]].mean(dim=0)
        return {j: float(block @ mean) for j, mean in enumerate(blocks)}
    if variant == "vs":
        columns, diagonals, unit, budget = [0.0] * length, [0.0] * length, 1, topk * 32
        for i in range(max(ahead, length - 128), length):
            p = torch.softmax(k[: i + 1] @ q[i - ahead] * CONFIG.scale, dim=0)
            for j, mass in enumerate(p.tolist()):
                columns[j] += mass
                diagonals[i - j] += mass
    else:
        rest = q[(len(q) - 1) // 128 * 128 :].mean(dim=0)
        columns = [float(rest @ mean) * CONFIG.scale for mean in blocks]
        diagonals, unit, budget = columns[::-1], 32, topk
    votes = dict.fromkeys(range(len(blocks)), 0.0)
    for c in sorted(range(len(columns)), key=lambda c: -columns[c])[: budget // 2]:
        votes[c * unit // 32] += columns[c]
    for o in sorted(range(len(diagonals)), key=lambda o: -diagonals[o])[: budget - budget // 2]:
        for block in {(i - o * unit) // 32 for i in row} & votes.keys():
            votes[block] += diagonals[o]
    return votes


def naive_row(scores: dict[int, float], variant: str, topk: int, row: range, length: int) -> set[int]:
    """Kept key blocks of one query block."""
    ranked = sorted(scores, key=lambda j: (-scores[j], j))
    if variant == "topk":
        return set(ranked[:topk])
    newest = (min(row.stop, length) - 1) // 32
    causal = set(range(newest + 1))
    dense = variant in ("vs", "vsb") and (row.start < topk * 32 or row.stop >= length)
    if dense or len(causal) <= topk:
        return causal
    kept = {0, newest} | (set(range(row.start // 32, newest + 1)) if variant == "vsb" else set())
    rest = [j for j in ranked if j in causal - kept]
    return kept | set(rest[: max(0, topk - len(kept))])


def naive_mask(q: Tensor, k: Tensor, config: DHSABlockConfig) -> Tensor:
    """bool [H, m, n]; q [T, H, D], k [L, G, D]."""
    length, first, topk = len(k), len(k) - len(q), max(1, math.floor(config.density * len(k) / 32))
    starts = range(first, length, 128)
    mask = torch.zeros(CONFIG.heads, len(starts), -(-length // 32), dtype=torch.bool)
    for head in range(CONFIG.heads):
        for number, start in enumerate(starts):
            row = range(start, start + 128)
            scores = naive_scores(q[:, head], k[:, head // CONFIG.group], config.variant, topk, row)
            mask[head, number, sorted(naive_row(scores, config.variant, topk, row, length))] = True
    return mask


@pytest.mark.parametrize("variant", BUILDERS)
@pytest.mark.parametrize(("length", "new"), [(1100, 1100), (1024, 1024), (1000, 700), (300, 77)])
def test_masks_are_those_of_the_card(variant, length, new):
    config = SPARSE.model_copy(update={"variant": variant})
    q, k, _ = project(length)
    queries, keys = turned(q)[-new:], turned(k)
    mask = built(queries, keys.transpose(0, 1), config)
    assert torch.equal(mask, naive_mask(queries, keys, config))


@pytest.mark.parametrize("variant", BUILDERS)
def test_attention_is_exact_and_causal_inside_the_mask(variant):
    config = SPARSE.model_copy(update={"variant": variant})
    q, k, v = project(L)
    out = run_layer(DHSABlock(), config, q, k, v, L)[0]
    queries, keys, mask = turned(q), turned(k), naive_mask(turned(q), turned(k), config)
    for i in (0, 31, 100, 255, 256, 300, 511, 700, 1023, 1024, L - 1):
        for head in range(CONFIG.heads):
            seen = torch.tensor([j for j in range(i + 1) if mask[head, i // 128, j // 32]], dtype=torch.long)
            group = head // CONFIG.group
            p = torch.softmax(keys[seen, group] @ queries[i, head] * CONFIG.scale, dim=0)
            torch.testing.assert_close(out[i, head], p @ v[0, seen, group], atol=1e-5, rtol=1e-4)


def mask_of(variant: str, density: float = 0.2, length: int = L) -> Tensor:
    q, k, _ = project(length)
    config = DHSABlockConfig(variant=variant, density=density)
    return built(turned(q), turned(k).transpose(0, 1), config)


def future(mask: Tensor) -> Tensor:
    """Tiles that lie behind all queries of their block."""
    _, m, n = mask.shape
    return torch.arange(n) > torch.arange(m)[:, None] * 4 + 3


def test_topk_spends_on_future_blocks_and_a_query_without_keys_gives_zero():
    mask = mask_of("topk")
    assert (mask.sum(dim=2) == 6).all()
    assert (mask & future(mask)).any()
    q, k, v = project(L)
    out = run_layer(DHSABlock(), DHSABlockConfig(variant="topk", density=0.03), q, k, v, L)
    assert (out == 0).all(dim=-1).any()
    assert out.isfinite().all()


def test_the_others_keep_nothing_of_the_future():
    for variant in ("a", "vs", "vsb"):
        mask = mask_of(variant)
        assert not (mask & future(mask)).any()


def test_a_keeps_first_and_newest_within_its_budget():
    mask = mask_of("a")
    newest = (torch.arange(9) * 128 + 127).clamp(max=L - 1) // 32
    assert mask[:, :, 0].all()
    assert mask[:, torch.arange(9), newest].all()
    assert mask.sum(dim=2).tolist() == [[4, *[6] * 8]] * CONFIG.heads


@pytest.mark.parametrize("variant", ["vs", "vsb"])
def test_first_and_last_query_blocks_are_dense(variant):
    """ceil(0.2 x 1100 / 128) = 2 of them at first: 6 key blocks are 192 tokens."""
    counts = mask_of(variant).sum(dim=2)
    assert (counts[:, 0] == 4).all()
    assert (counts[:, 1] == 8).all()
    assert (counts[:, -1] == 35).all()
    assert (counts[:, 2:-1] == 6).all()


def test_vsb_keeps_the_whole_local_band_whatever_the_budget():
    mask = mask_of("vsb", density=0.01)
    for row in range(9):
        assert mask[:, row, row * 4 : row * 4 + 4].all()
    assert (mask[:, 1:-1].sum(dim=2) == 5).all()


def test_query_heads_of_a_group_have_masks_of_their_own():
    for variant in BUILDERS:
        mask = mask_of(variant)
        assert not torch.equal(mask[0], mask[1])


def test_a_column_the_last_queries_look_at_is_kept_for_all():
    keys = torch.zeros(2, 2048, 16)
    keys[:, 200] = 20.0
    mask = built(torch.ones(2048, 4, 16), keys, DHSABlockConfig(density=0.1))
    assert mask[:, 2:, 200 // 32].all()


def test_a_diagonal_the_last_queries_look_along_is_kept_for_all():
    """Every query answers to the key 160 slots back: those of query block b lie in the key blocks 4b - 5 to 4b - 2."""
    marks = 4 * torch.randn(2048, 16, generator=torch.Generator().manual_seed(0))
    q, keys = marks.roll(160, dims=0)[:, None].expand(-1, 4, -1), marks.expand(2, -1, -1)
    mask = built(q, keys, DHSABlockConfig(density=0.1))
    for b in range(2, 15):
        assert mask[:, b, 4 * b - 5 : 4 * b - 1].all()
    assert mask[:, 8].float().mean() < 0.15


def test_best_takes_no_minus_infinity_and_the_lower_of_equals():
    scores = torch.tensor([[[1.0, 1.0, -torch.inf, 1.0, torch.inf]]])
    assert best(scores, 2).tolist() == [[[True, False, False, False, True]]]
    assert best(scores, 9).tolist() == [[[True, True, False, True, True]]]


@pytest.mark.parametrize("variant", BUILDERS)
def test_nothing_has_the_size_of_a_dense_map(variant):
    q, k, v = project(4096)
    with LargestTensor() as largest:
        run_layer(DHSABlock(), DHSABlockConfig(variant=variant), q, k, v, 4096)
    assert largest.elements < 4096 * 4096 / 6


@pytest.mark.parametrize("variant", BUILDERS)
def test_values_of_later_tokens_never_leak(variant):
    """Bit for bit; keys and queries of later tokens do take part in the selection, as documented."""
    config = SPARSE.model_copy(update={"variant": variant})
    q, k, v = project(L)
    before = run_layer(DHSABlock(), config, q, k, v, L)
    v = v.clone()
    v[:, 700] += 1e4
    after = run_layer(DHSABlock(), config, q, k, v, L)
    assert torch.equal(before[:, :700], after[:, :700])
    assert not torch.equal(before[:, 700:], after[:, 700:])


@pytest.mark.parametrize("variant", ["a", "vs", "vsb"])
def test_full_density_is_ordinary_attention(variant):
    model, tokens = tiny_model(), torch.randint(0, 128, (2, 320))
    dense = logits_of(model.decoder, DenseAttention(CONFIG), tokens, 320)
    config = DHSABlockConfig(variant=variant, density=1.0)
    ours = logits_of(model.decoder, selected(DHSABlock(), config, batch=2), tokens, 320)
    torch.testing.assert_close(ours, dense, atol=1e-4, rtol=0)


def test_a_budget_of_tokens_replaces_the_density():
    assert [DHSABlockConfig(budget=256).blocks(n) for n in (100, 1000, 5000)] == [3, 8, 8]
    assert [DHSABlockConfig(density=0.125).blocks(n) for n in (100, 1000, 5000)] == [1, 3, 19]


@pytest.mark.parametrize(
    "options", [{"variant": "b"}, {"density": 0.0}, {"density": 1.5}, {"budget": 0}, {"block": 64}]
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=r"variant|density|budget|block"):
        DHSABlockConfig(**options)
