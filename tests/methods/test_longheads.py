"""LongHeads against a naive transcription of its card, and the card's toy traps."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernels.counting import counting
from suite.harness.counting import CountingPass
from suite.methods.attention.longheads import LongHeads, LongHeadsConfig, fill_slots, represent, slot_template
from suite.methods.attention.selection import Shared, Site
from suite.methods.attention.spans import count_read
from suite.models.attention import DenseAttention, Step
from suite.models.rope import Rope, rotate
from tests.methods.support import CONFIG, LargestTensor, logits_of, project, run_layer, selected, tiny_model
from workloads.schema import Request

W, A = 8, 64
SMALL = LongHeadsConfig(chunk=W, attention_length=A)


def run(q: Tensor, k: Tensor, v: Tensor, config: LongHeadsConfig, chunk: int) -> tuple[Tensor, LongHeads]:
    """Layer 0 of the method over raw projections, `chunk` tokens per pass; also the method with its index."""
    method = LongHeads()
    return run_layer(method, config, q, k, v, chunk), method


def naive_representation(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """The card's three lines for one chunk and head; q, k, v [w, D], q and k rotated inside the chunk."""
    output = torch.softmax(q @ k.T * scale, dim=-1) @ v
    summary = output.mean(dim=0)
    return torch.softmax(summary @ k.T * scale, dim=-1) @ k


def naive_token(
    q: Tensor, k: Tensor, v: Tensor, j: int, head: int, config: LongHeadsConfig
) -> tuple[Tensor, list[int]]:
    """The card's decode pseudocode for the query at position j; also the chosen chunks."""
    group, D, w = CONFIG.group, CONFIG.head_dim, config.chunk
    cos, sin = Rope(CONFIG.rope, D).tables(1024)
    t, K = j + 1, config.attention_length // w
    g, r = t // w, t % w
    scale = D**-0.5
    keys, values = k[0, :t, head // group], v[0, :t, head // group]
    inside = torch.arange(w)
    reps = []
    for i in range(g):
        part = slice(i * w, i * w + w)
        turned_q, turned_k = (rotate(x, cos[inside], sin[inside]) for x in (q[0, part, head], keys[part]))
        reps.append(naive_representation(turned_q, turned_k, values[part], scale))
    scores = torch.stack([q[0, j, head] @ c for c in reps[1 : g - 1]])
    chosen = [0, *sorted((scores.topk(min(K - 3, len(scores))).indices + 1).tolist()), g - 1]
    picked = torch.cat([torch.arange(i * w, i * w + w) for i in chosen] + [torch.arange(g * w, g * w + r)])
    places = torch.arange(len(picked))
    turned_k = rotate(keys[picked], cos[places], sin[places])
    turned_q = rotate(q[0, j, head], cos[len(picked) - 1], sin[len(picked) - 1])
    return torch.softmax(turned_k @ turned_q * scale, dim=0) @ values[picked], chosen


@pytest.mark.parametrize("chunk", [1, 50, 150], ids=["decode", "chunked", "prefill"])
def test_matches_the_cards_pseudocode_token_by_token(chunk):
    q, k, v = project(150)
    out, _ = run(q, k, v, SMALL, chunk)
    for j in (A, A + 5, 71, 100, 127, 149):
        for head in range(CONFIG.heads):
            expected, _ = naive_token(q, k, v, j, head, SMALL)
            torch.testing.assert_close(out[0, j, head], expected, atol=1e-5, rtol=1e-4)


def naive_slots(q: Tensor, k: Tensor, v: Tensor, best: Tensor, seen: Tensor, config: LongHeadsConfig) -> Tensor:
    """fp64 rows q [T, H, D] over raw keys [C, G, D], re-numbered in their lists: `seen` tokens, `best` chunks."""
    (cos, sin), w, out = Rope(CONFIG.rope, CONFIG.head_dim).tables(1024), config.chunk, torch.zeros_like(q)
    for t, tokens in enumerate(seen.tolist()):
        full = tokens // w
        for head in range(CONFIG.heads):
            chunks = [0, *best[t, head].tolist(), full - 1]
            picked = torch.cat([torch.arange(c * w, c * w + w) for c in chunks] + [torch.arange(full * w, tokens)])
            places, own = torch.arange(len(picked)), len(picked) - 1
            turned = rotate(k[picked, head // CONFIG.group], cos[places].double(), sin[places].double())
            query = rotate(q[t, head], cos[own].double(), sin[own].double())
            weights = torch.softmax(turned @ query * CONFIG.head_dim**-0.5, dim=0)
            out[t, head] = weights @ v[picked, head // CONFIG.group]
    return out


def test_prefill_kernel_agrees_with_naive_rows_and_shortcuts_do_not():
    """150 tokens of which the last 80 choose for themselves; every shortcut is far outside the tolerance."""
    q, k, v = (x[0] for x in project(150))
    seen = torch.arange(71, 151, dtype=torch.int32)
    best = torch.stack([torch.stack([torch.randperm(int(n) // W - 2)[:5].sort().values + 1 for _ in range(4)])
                        for n in seen])  # fmt: skip
    expected = naive_slots(q[70:].double(), k.double(), v.double(), best, seen, SMALL)
    cos, sin = Rope(CONFIG.rope, CONFIG.head_dim).tables(1024)
    stored = rotate(k, cos[torch.arange(150) % W][:, None], sin[torch.arange(150) % W][:, None])
    keys, values = stored.transpose(0, 1)[None].contiguous(), v.transpose(0, 1)[None].contiguous()

    def error(spans: Tensor) -> float:
        site = Site(keys, values, 70, cos, sin, CONFIG.head_dim**-0.5)
        return float((Shared(spans).attend(q[70:], site)[0].double() - expected).abs().max())

    spans = fill_slots(slot_template(seen, W, 5, 4, own=True), best, W)
    original = torch.where(spans[..., 1] > spans[..., 0], (seen - 1)[:, None, None] - spans[..., 0], 0)
    assert error(spans) < 1e-5
    assert error(torch.cat((spans[..., :2], original[..., None]), dim=-1)) > 1e-2  # positions of the text
    assert error(spans[:, :1].contiguous()) > 1e-2  # one selection for all heads
    assert error(fill_slots(slot_template(seen, W, 5, 4, own=False), best, W)) > 1e-2  # not attending to itself


def test_representation_is_the_two_stage_value():
    q, k, v = (x[0].transpose(0, 1) for x in project(W))
    scale = CONFIG.head_dim**-0.5
    c = represent(q[None], k[None], v[None], scale)[0]
    for head in range(CONFIG.heads):
        expected = naive_representation(q[head], k[head // 2], v[head // 2], scale)
        torch.testing.assert_close(c[head], expected, atol=1e-5, rtol=0)


def test_representation_depends_on_the_values_and_is_no_mean_key():
    q, k, v = (x[0].transpose(0, 1)[None] for x in project(W))
    before, after = represent(q, k, v, 0.25), represent(q, k, 3 * v, 0.25)
    assert (before - after).abs().max() > 1e-3
    assert (before[0] - k[0].mean(dim=1).repeat_interleave(2, dim=0)).abs().max() > 1e-2


def test_attention_inside_a_chunk_is_bidirectional():
    """With causal attention the first row's output could not depend on the last row's value."""
    q, k, v = (x[0].transpose(0, 1)[None] for x in project(W))
    changed = v.clone()
    changed[:, :, -1] += 1.0
    weight = torch.softmax(q[0, :, 0:1] @ k[0].repeat_interleave(2, 0).transpose(1, 2) * 0.25, dim=-1)
    assert weight[..., -1].min() > 0
    assert (represent(q, k, v, 0.25) - represent(q, k, changed, 0.25)).abs().max() > 1e-4


def test_heads_with_orthogonal_queries_choose_different_chunks():
    q, k, v = project(203)
    _, first = naive_token(q, k, v, 202, 0, SMALL)
    sets = [set(naive_token(q, k, v, 202, head, SMALL)[1]) for head in range(CONFIG.heads)]
    method_sets = chosen_chunks(q, k, v, SMALL)
    assert method_sets == sets
    assert len({frozenset(s) for s in sets}) > 1
    assert 0 in first


def chosen_chunks(q: Tensor, k: Tensor, v: Tensor, config: LongHeadsConfig) -> list[set[int]]:
    """Full chunks the last token's heads choose."""
    _, method = run(q[:, :-1], k[:, :-1], v[:, :-1], config, q.shape[1])
    cache = tiny_model().decoder.new_cache(1, q.shape[1])
    cache.advance([q.shape[1] - 1])
    step = Step(cache, [1], 1)
    spans = method.select(0, q[0, -1], 0, step).spans[0]
    return [{start // W for start, stop, _ in head.tolist() if stop - start == W} for head in spans]


def test_scores_use_the_unrotated_query():
    """A rotated query would choose other chunks: the choice must equal that of the raw scores for every head."""
    q, k, v = project(237, seed=3)
    assert chosen_chunks(q, k, v, SMALL) == [set(naive_token(q, k, v, 236, h, SMALL)[1]) for h in range(CONFIG.heads)]


def test_first_last_and_unfinished_chunks_are_always_read():
    seen = torch.arange(A + 1, 400, dtype=torch.int32)
    best = torch.arange(1, 6).expand(len(seen), 4, 5)
    spans = fill_slots(slot_template(seen, W, 5, 4, own=True), best, W)
    assert torch.equal(spans[:, :, 0, 0], torch.zeros(len(seen), 4, dtype=torch.int32))
    assert torch.equal(spans[:, 0, -2, 1], (seen // W) * W)
    assert torch.equal(spans[:, 0, -1, 1], seen)


def test_no_distance_exceeds_the_attention_length():
    _q, _, _ = project(1)
    for seen in range(A + 1, 300):
        best = torch.arange(1, seen // W - 1)[-5:].expand(1, 4, -1)
        template = slot_template(torch.tensor([seen], dtype=torch.int32), W, 5, 4, own=True)
        start, stop, position = fill_slots(template, best, W).unbind(-1)
        nearest, farthest = position - (stop - start - 1), position
        assert (nearest[stop > start] >= 0).all()
        assert farthest.max() < A


def test_output_is_unchanged_by_chunks_that_no_head_selects():
    """Chunks inserted far back, whose representation scores lowest, change neither the choice nor any position."""
    q, k, v = project(160, seed=1)
    q[:, -1] = q[:, -1].abs()
    base, _ = run(q, k, v, SMALL, 160)
    low = tuple(x.new_zeros(1, 4 * W, x.shape[2], x.shape[3]) for x in (q, k, v))
    low[1].fill_(-50.0)
    longer = tuple(
        torch.cat((x[:, : 8 * W], extra, x[:, 8 * W :]), dim=1) for x, extra in zip((q, k, v), low, strict=True)
    )
    out, _ = run(*longer, SMALL, 192)
    torch.testing.assert_close(out[0, -1], base[0, -1], atol=1e-5, rtol=1e-4)


def test_attention_flops_grow_linearly_and_nothing_has_the_size_of_a_dense_map():
    def measure(tokens: int) -> tuple[float, int]:
        q, k, v = project(tokens)
        with counting() as counter, LargestTensor() as largest:
            run(q, k, v, SMALL, 64)
        return counter.costs["span_prefill"].flops, largest.elements

    short, _ = measure(512)
    long, elements = measure(1024)
    assert 2.0 <= long / short < 2.3  # the first A tokens are dense and not counted here
    assert elements < 1024 * 1024 / 2


def test_prefill_counts_the_representations_it_chooses_by_and_the_pairs_it_reads():
    model, length = tiny_model(), 200
    request = Request(id="r", task="t", prompt="a" * length, metric="none", max_new_tokens=3)
    with CountingPass(0, CONFIG.attention_flops_per_pair) as counted, LongHeads().attach(model, SMALL) as generator:
        list(generator.generate([request], counted.meter))
    (kv,) = counted.meter.kv_samples()
    assert kv.prefill_index_bytes == CONFIG.layers * CONFIG.heads * (length // W) * CONFIG.head_dim * 4
    read = [min(t, (A // W - 1) * W + t % W) for t in range(1, length + 1)]  # dense, then A less the unfinished chunk
    share = sum(read) / (length * (length + 1) / 2)
    prefill, _ = counted.phases(None)
    assert share < 0.7
    assert prefill.attention_density == pytest.approx(share, rel=0.1)  # rotating a query for each span costs a little


def test_per_kv_head_selection_reads_one_list_per_group():
    q, k, v = project(203)
    config = SMALL.model_copy(update={"selection": "per_kv_head"})
    sets = chosen_chunks(q, k, v, config)
    assert len(sets) == CONFIG.kv_heads


def test_strict_release_leaves_the_own_token_out_in_prefill_only():
    q, k, v = project(100)
    strict = SMALL.model_copy(update={"strict_release": True})
    ours, theirs = run(q, k, v, SMALL, 100)[0], run(q, k, v, strict, 100)[0]
    assert (ours - theirs)[0, A:].abs().amax(dim=(1, 2)).min() > 1e-4
    torch.testing.assert_close(ours[0, :A], theirs[0, :A])


def test_union_over_a_group_is_counted_per_kv_head():
    """Vector 2 of `_kv_retention.md`: H=4, G=2, t=100."""
    spans = torch.tensor([[[0, 10]], [[5, 15]], [[0, 10]], [[0, 10]]])
    read = count_read(spans, 4, 2)
    assert read.union * 2 / 200 == pytest.approx(0.125)
    assert read.per_query_head / 100 == pytest.approx(0.10)
    assert read.padded == 15


def test_whole_budget_is_ordinary_attention():
    model, tokens = tiny_model(), torch.randint(0, 128, (1, 200))
    config = LongHeadsConfig(chunk=8, attention_length=256)
    dense = logits_of(model.decoder, DenseAttention(CONFIG), tokens, 200)
    for chunk in (1, 33, 200):
        torch.testing.assert_close(
            logits_of(model.decoder, selected(LongHeads(), config), tokens, chunk), dense, atol=1e-4, rtol=0
        )


@pytest.mark.parametrize(
    "options",
    [
        {"chunk": 0},
        {"chunk": 7, "attention_length": 64},
        {"chunk": 32, "attention_length": 64},
        {"selection": "x"},
        {"k": 1},
    ],
)
def test_options_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match=r"chunk|selection|k"):
        LongHeadsConfig(**options)


def test_refuses_an_attention_length_beyond_the_trained_window():
    assert "trained window" in (LongHeads().refusal(tiny_model(), LongHeadsConfig()) or "")
    assert LongHeads().refusal(tiny_model(), SMALL) is None
