"""ActQKV against a naive transcription of its card, and the card's toy traps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from suite.harness.meter import CountingMeter
from suite.methods.attention.actqkv import ActQKV, ActQKVConfig
from suite.methods.attention.block_store import BlockStore
from suite.methods.attention.cutoff import HISTORY, CutOff
from suite.methods.attention.probe import RunningStatistics, density, represent
from suite.models.rope import Rope, rotate
from tests.methods.support import CONFIG, project, run_layer, tiny_model
from workloads.schema import Request

B, INIT, LOCAL, WINDOW, TOPK = 4, 8, 16, 8, 3
SMALL = ActQKVConfig(
    block=B, n_init=INIT, n_local=LOCAL, window=WINDOW, topk=TOPK, min_blocks=1, cached_blocks=6, repr_topk=2,
    cutoff=False,
)  # fmt: skip
DENSE_UNTIL = INIT + LOCAL


def naive(q: Tensor, k: Tensor, v: Tensor, width: int) -> tuple[Tensor, list[list[int]]]:
    """The card's pseudocode, window by window; the output [T, H, D] of sparse rows, and the blocks of each window."""
    T, H, D, g = q.shape[1], CONFIG.heads, CONFIG.head_dim, CONFIG.group
    q, k, v = q[0], k[0].repeat_interleave(g, dim=1), v[0].repeat_interleave(g, dim=1)
    cos, sin = Rope(CONFIG.rope, D).tables(T + 1)
    turned_q, turned_k = (rotate(x, cos[:T, None], sin[:T, None]) for x in (q, k))
    one_angle = rotate(q, cos[LOCAL], sin[LOCAL])
    mass, flushed, reps, out, chosen = torch.zeros(T, H), INIT, [], torch.zeros(T, H, D), []
    for first in range(0, T, width):
        while first - flushed > LOCAL + B:
            tokens = torch.arange(flushed, flushed + B)
            best = mass[tokens].topk(2, dim=0).indices
            rep = torch.stack([k[tokens[best[:, h]], h].mean(dim=0) for h in range(H)]).flatten()
            reps.append(rep / rep.norm())
            flushed += B
        rows = range(first, min(first + width, T))
        sparse = [i for i in rows if i >= DENSE_UNTIL]
        blocks = pick(one_angle[sparse].flatten(1), reps) if sparse else []
        if sparse:
            chosen.append(blocks)
        for i in sparse:
            near = list(range(i - LOCAL + 1, i + 1))
            far = [*range(INIT), *(t for b in blocks for t in range(INIT + b * B, INIT + b * B + B))]
            far += range(flushed, i - LOCAL + 1)
            logits = torch.cat(((turned_q[i] * turned_k[near]).sum(-1), (one_angle[i] * k[far]).sum(-1))) * D**-0.5
            out[i] = (logits.softmax(dim=0)[..., None] * v[near + far]).sum(dim=0)
        for i in rows:
            near = list(range(max(0, i - LOCAL + 1), i + 1))
            mass[near] += ((turned_q[i] * turned_k[near]).sum(-1) * D**-0.5).softmax(dim=0)
    return out, chosen


def pick(h: Tensor, reps: list[Tensor]) -> list[int]:
    """The probe by the card's formula, and the topk blocks by cosine."""
    if not reps:
        return []
    variance = h.var(dim=0, correction=0)
    bias = ((h - h.mean(dim=0)) ** 2 / (variance + variance.mean() / 100)).mean(dim=1)
    weights = bias / bias.sum() if len(h) > 1 and bias.sum() > 0 else torch.full((len(h),), 1 / len(h))
    probe = weights @ h
    scores = torch.stack([probe @ rep / probe.norm() for rep in reps])
    return sorted(scores.topk(min(TOPK, len(reps))).indices.tolist())


@pytest.mark.parametrize("chunk", [1, WINDOW], ids=["decode", "prefill"])
def test_matches_the_cards_pseudocode(chunk):
    """One softmax over local and retrieved parts, each with its own distances."""
    q, k, v = project(150)
    out = run_layer(ActQKV(), SMALL, q, k, v, chunk)
    expected, chosen = naive(q, k, v, chunk)
    assert any(blocks != list(range(len(blocks))) for blocks in chosen)
    torch.testing.assert_close(out[0, DENSE_UNTIL:], expected[DENSE_UNTIL:], atol=1e-5, rtol=1e-4)


def test_the_probe_leans_to_an_outlier():
    method = ActQKV()
    method.begin_batch(CONFIG, SMALL, 1)
    h = torch.ones(64, 64)
    h[10] = -3.0
    probe = method._probe(method._layers[0][0], h)
    weight = (1 - probe) / 4  # of the outlier
    torch.testing.assert_close(weight, torch.full_like(weight, 63 / 64), atol=0.02, rtol=0)
    method._config = SMALL.model_copy(update={"probe": "mean"})
    torch.testing.assert_close(method._probe(method._layers[0][0], h), h.mean(dim=0))


def test_running_statistics_pool_evenly_until_their_horizon():
    running = RunningStatistics(3)
    windows = [torch.randn(8, 16, generator=torch.Generator().manual_seed(i)) for i in range(5)]
    given = [running.update(h) for h in windows]
    assert given[:3] == [None, None, None]
    assert given[4] is not None
    first_three = torch.stack([h.mean(dim=0) for h in windows[:3]]).mean(dim=0)
    torch.testing.assert_close(given[3][0], first_three.lerp(windows[3].mean(dim=0), 1 / 3), atol=1e-6, rtol=0)


def test_one_list_of_blocks_for_all_heads_and_queries_of_a_window(monkeypatch):
    lists = []
    original = ActQKV._choose
    monkeypatch.setattr(ActQKV, "_choose", lambda self, *a: (lists.append(original(self, *a)), lists[-1])[1])
    q, k, v = project(80)
    run_layer(ActQKV(), SMALL, q, k, v, WINDOW)
    assert len(lists) == (80 - DENSE_UNTIL) // WINDOW  # one call for each window
    assert all(len(pages) == len(set(pages)) for pages, _ in lists)


def test_absolute_positions_of_retrieved_blocks_do_not_matter():
    """Blocks inserted far back that nobody selects shift all others; the output stays."""
    q, k, v = project(120, seed=4)
    base = run_layer(ActQKV(), SMALL, q, k, v, 1)
    _, chosen = naive(q, k, v, 1)
    dull = tuple(x.new_zeros(1, 2 * B, *x.shape[2:]) for x in (q, k, v))
    cos, sin = Rope(CONFIG.rope, CONFIG.head_dim).tables(LOCAL + 1)
    probe = rotate(q[0, -1], cos[LOCAL], sin[LOCAL]).unflatten(0, (CONFIG.kv_heads, -1)).sum(dim=1)
    dull[1][:] = -probe  # their representatives point away from the last probe
    longer = tuple(torch.cat((x[:, :INIT], d, x[:, INIT:]), dim=1) for x, d in zip((q, k, v), dull, strict=True))
    _, shifted = naive(*longer, 1)
    assert shifted[-1] == [b + 2 for b in chosen[-1]]
    out = run_layer(ActQKV(), SMALL, *longer, 1)
    torch.testing.assert_close(out[0, -1], base[0, -1], atol=1e-5, rtol=1e-4)


def test_layers_share_the_pool_by_their_mean_entropy():
    cut = CutOff(layers=2, topk=30, least=1)
    for _ in range(HISTORY):
        cut.entropies[0].append(0.2)
        cut.entropies[1].append(1.0)
    assert (cut.deal(0, 0.2, 1000), cut.deal(1, 1.0, 1000)) == (10, 50)
    assert cut.remaining == 0


def test_the_cut_off_is_uniform_before_all_histories_are_full_and_clamped():
    cut = CutOff(layers=3, topk=8, least=4)
    assert [cut.deal(layer, 0.5 + layer, 100) for layer in range(3)] == [8, 8, 8]
    assert [cut.deal(layer, 0.5, 3) for layer in range(3)] == [3, 3, 3]  # fewer blocks than the least: all of them
    for entropies, value in zip(cut.entropies, (1.0, 1e-9, 1e-9), strict=True):
        entropies.extend([value] * HISTORY)
    assert cut.deal(0, 1.0, 100) == 16  # twice the average at most
    assert cut.deal(1, 1e-9, 100) == 4


def test_a_single_block_is_taken():
    assert math.isnan(density(torch.tensor([0.3])))
    assert CutOff(layers=1, topk=8, least=4).deal(0, math.nan, 1) == 1


def test_density_is_the_entropy_of_block_scores():
    assert density(torch.zeros(44)) == pytest.approx(1.0)
    assert density(torch.tensor([50.0, 0.0, 0.0])) == pytest.approx(0.0, abs=1e-6)
    cosines = torch.rand(44, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert density(cosines) > 0.95  # why the released rule is close to uniform
    assert density(cosines / 0.05) < 0.8


def test_a_representative_is_the_mean_of_the_most_attended_unrotated_keys():
    keys = torch.randn(2, 4, 16, generator=torch.Generator().manual_seed(1))
    mass = torch.tensor([[9.0, 0, 0, 8], [0, 9, 8, 0], [1, 2, 3, 4], [4, 3, 2, 1]])
    pairs = [(0, 3), (1, 2), (2, 3), (0, 1)]
    expected = torch.cat([keys[h // 2, list(pair)].mean(dim=0) for h, pair in enumerate(pairs)])
    torch.testing.assert_close(represent(keys, mass, 2), expected / expected.norm())


def filled_store(pages: int = 10) -> tuple[BlockStore, Tensor]:
    store = BlockStore(kv_heads=2, head_dim=16, block=B, sinks=1, pinned=4, cached=3)
    k = torch.randn(pages * B, 2, 16, generator=torch.Generator().manual_seed(2))
    for start in range(0, pages * B, 2):
        while store.tokens - store.flushed * B > 2 * B:
            store.flush()
        store.append(k[start : start + 2], -k[start : start + 2])
    return store, k


def test_what_was_evicted_comes_back_from_the_host_unchanged():
    store, k = filled_store()
    assert store.fetch([1, 2]) == 2  # long out of the pool
    assert store.fetch([1, 2]) == 0
    spans = store.spans([1, 2], store.tokens, 5)[0, 0]
    for page, (start, stop, position) in zip([0, 1, 2], spans.tolist(), strict=False):
        assert position == 5
        torch.testing.assert_close(store.keys[0, :, start:stop], k[page * B : page * B + B].transpose(0, 1))
        torch.testing.assert_close(store.values[0, :, start:stop], -k[page * B : page * B + B].transpose(0, 1))


def test_the_least_recently_used_page_leaves_the_device():
    store, _ = filled_store()
    store.fetch([1, 2, 3])
    store.fetch([1])
    store.fetch([4])  # 2 is the oldest now
    assert store.fetch([1, 3, 4]) == 0
    assert store.fetch([2]) == 1


def test_the_pool_stays_small_while_the_host_grows():
    short, long = filled_store(10)[0], filled_store(60)[0]
    assert long.device_bytes <= 7 * long.page_bytes
    assert long.host_bytes > 4 * short.host_bytes


def test_decode_counts_fetched_bytes_and_device_memory_is_bounded():
    meter = CountingMeter(CONFIG.kv_bytes_per_token(4))
    text = "".join(chr(97 + (i * i) % 26) for i in range(300))
    request = Request(id="r", task="t", prompt=text, metric="none", max_new_tokens=20)
    method = ActQKV()
    with method.attach(tiny_model(), SMALL) as generator:
        list(generator.generate([request], meter))
    kv = meter.kv_samples()[0]
    page = 2 * CONFIG.kv_heads * B * CONFIG.head_dim * 4
    assert 0 < kv.fetch_bytes_per_step <= CONFIG.layers * TOPK * page
    assert kv.host_bytes == method.host_bytes() > 0
    assert kv.host_bytes < kv.resident_bytes
    assert kv.prefill_index_bytes > 0
    assert kv.stored_retention == 1.0
    assert kv.selected_retention == pytest.approx((INIT + LOCAL + TOPK * B + (B + 1) / 2) / 310, rel=0.05)


@pytest.mark.parametrize(
    "options", [{"n_init": 30, "block": 32}, {"cached_blocks": 10}, {"repr_topk": 8, "block": 4}, {"probe": "max"}]
)
def test_options_that_do_not_fit_are_refused(options):
    with pytest.raises(ValueError, match=r"n_init|cached_blocks|repr_topk|probe"):
        ActQKVConfig(**options)


def test_the_cut_off_hears_the_entropy_of_block_cosines(monkeypatch):
    """Trap: the entropy of attention weights. With one window, the density must be that of the card's cosines."""
    heard = []
    monkeypatch.setattr(CutOff, "deal", lambda self, layer, entropy, available: (heard.append(entropy), 1)[1])
    q, k, v = project(64, seed=7)
    config = SMALL.model_copy(update={"cutoff": True, "score_temperature": 0.1})
    method = ActQKV()
    run_layer(method, config, q, k, v, WINDOW)
    cos, sin = Rope(CONFIG.rope, CONFIG.head_dim).tables(LOCAL + 1)
    h = rotate(q[0, -WINDOW:], cos[LOCAL], sin[LOCAL]).flatten(1)
    state = method._layers[0][0]
    reps = state.reps[: state.blocks]
    variance = h.var(dim=0, correction=0)
    bias = ((h - h.mean(dim=0)) ** 2 / (variance + variance.mean() / 100)).mean(dim=1)
    p = (reps @ functional.normalize((bias / bias.sum()) @ h, dim=0) / 0.1).softmax(dim=0)
    assert heard[-1] == pytest.approx(float(-(p * p.log()).sum()) / math.log(len(p)), abs=1e-4)
