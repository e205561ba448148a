"""Qwen2.5-1M against dense softmaxes built from its own distance formula, and the card's toy traps."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.counting import counting
from suite.errors import InputError
from suite.methods.attention.dual_chunk import DualChunk, whole
from suite.methods.attention.head_sparsity import HeadSparsity
from suite.methods.attention.qwen2_5_1m import Qwen25Config, Qwen25OneM
from suite.methods.attention.refinement import THRESHOLD, refine_on
from suite.methods.attention.selection import Site
from suite.methods.attention.vertical_slash import Pattern, Sparsity, diagonal_sums, find, region_lists
from suite.models.attention import DenseAttention, Step
from suite.models.cache import KVCache
from suite.models.config import RopeConfig
from suite.models.rope import Rope, rotate
from tests.methods.support import CONFIG, logits_of, project, run_layer, selected, tiny_model

S, LOCAL = 96, 16
C = S - LOCAL
DENSE = Qwen25Config(chunk=S, local=LOCAL, temperature=False)
SPARSE = DENSE.model_copy(update={"sparse_from": 0, "verticals": 12, "slashes": 10, "sinks": 4, "near": 4})
WIDE = Qwen25Config(chunk=448 + 64, local=64, temperature=False, sparse_from=0, verticals=5, slashes=2, sinks=2, near=1)
EVERYTHING = DENSE.model_copy(update={"sparse_from": 0, "verticals": 1000, "slashes": 1})


def distance(i: int, j: int) -> int:
    """The card's three regions: query position minus key position for query i and key j."""
    u, delta = i % C, i // C - j // C
    position = u if delta == 0 else min(u + C, S) if delta == 1 else min(2 * C - 1, S)
    return position - j % C


def naive(q: Tensor, k: Tensor, v: Tensor, rows: list[int], sharpness: float = 1.0) -> Tensor:
    """One softmax per row over all keys, each at its own distance; [rows, H, D]."""
    cos, sin = Rope(CONFIG.rope, CONFIG.head_dim).tables(S + 1)
    out = []
    for i in rows:
        gaps = torch.tensor([distance(i, j) for j in range(i + 1)])
        keys = k[0, : i + 1].repeat_interleave(CONFIG.group, dim=1)
        turned = rotate(q[0, i].expand(i + 1, -1, -1), cos[gaps, None], sin[gaps, None])
        weights = ((turned * keys).sum(-1) * CONFIG.head_dim**-0.5 * sharpness).softmax(dim=0)
        out.append((weights[..., None] * v[0, : i + 1].repeat_interleave(CONFIG.group, dim=1)).sum(dim=0))
    return torch.stack(out)


@pytest.mark.parametrize("chunk", [1, 50, 300], ids=["decode", "chunked", "prefill"])
def test_equals_one_dense_softmax_over_the_distance_matrix(chunk):
    """Averaging the regions' outputs, or positions mod c without clamping, would not."""
    q, k, v = project(300)
    rows = [5, C - 1, C, C + LOCAL, C + LOCAL + 9, 2 * C - 1, 2 * C, 3 * C + 3, 299]
    out = run_layer(Qwen25OneM(), DENSE, q, k, v, chunk)
    torch.testing.assert_close(out[0, rows], naive(q, k, v, rows), atol=1e-5, rtol=1e-4)


def test_no_distance_exceeds_the_chunk_size_and_near_ones_are_true():
    for i in range(400):
        gaps = [distance(i, j) for j in range(i + 1)]
        assert max(gaps) <= S
        assert gaps[max(0, i - LOCAL + 1) :] == list(range(min(i, LOCAL - 1), -1, -1))


def test_regions_are_the_formula():
    chunks = DualChunk(S, LOCAL)
    for i in (0, C - 1, C, C + 30, 2 * C, 5 * C + 7):
        for start, stop, position in chunks.spans(i)[0, 0].tolist():
            assert all(position - j % C == distance(i, j) for j in range(start, stop))
        assert sum(stop - start for start, stop, _ in chunks.spans(i)[0, 0].tolist()) == i + 1


def test_up_to_one_chunk_it_is_the_plain_model_bit_for_bit():
    model, tokens = tiny_model(), torch.randint(0, 128, (1, C))
    plain = logits_of(model.decoder, DenseAttention(CONFIG), tokens, C)
    assert torch.equal(logits_of(model.decoder, selected(Qwen25OneM(), DENSE), tokens, C), plain)


def test_temperature_sharpens_logits_beyond_the_trained_length_only():
    hot = DENSE.model_copy(update={"temperature": True})
    short = replace(CONFIG, window=128)
    q, k, v = project(300)
    out = run_layer(Qwen25OneM(), hot, q, k, v, 300, short)
    plain = run_layer(Qwen25OneM(), DENSE, q, k, v, 300, short)
    torch.testing.assert_close(out[:, :128], plain[:, :128])
    sigma = 0.1 * torch.tensor(300 / 128).log().item() + 1
    torch.testing.assert_close(out[0, [299]], naive(q, k, v, [299], sigma**2), atol=1e-5, rtol=1e-4)


def test_a_pattern_of_all_columns_is_full_attention():
    q, k, v = project(300)
    full = run_layer(Qwen25OneM(), DENSE, q, k, v, 300)
    torch.testing.assert_close(run_layer(Qwen25OneM(), EVERYTHING, q, k, v, 300), full, atol=1e-5, rtol=1e-4)


def test_sparse_rows_are_exact_over_what_their_lists_name():
    """The first segment against a masked softmax over blocks and columns of its own lists."""
    q, k, v, turned, keys, cache = segment()
    method = Qwen25OneM()
    out = run_layer(method, WIDE, q, k, v, 448)
    plan = method.sparse(0, q[0], 0, 0, method.chunks.regions(0, 448), Step(cache, [448], 448))
    for head in (0, 3):
        for i in (0, 40, 63, 70, 300, 447):
            seen = named(plan, head, i)
            weights = (turned[i, head] @ keys[seen, head // 2].T * CONFIG.head_dim**-0.5).softmax(dim=0)
            torch.testing.assert_close(out[0, i, head], weights @ v[0, seen, head // 2], atol=1e-5, rtol=1e-4)


def segment() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, KVCache]:
    """Raw q, k, v [1, 448, ...] of one chunk, rotated q and keys [448, ..., D], and a cache that holds them."""
    q, k, v = project(448, seed=2)
    cache = KVCache(CONFIG, 1, torch.float32, 448)
    cos, sin = Rope(CONFIG.rope, CONFIG.head_dim).tables(448)
    turned, keys = (rotate(x[0], cos[:448, None], sin[:448, None]) for x in (q, k))
    cache.keys[0][0], cache.values[0][0] = keys.transpose(0, 1), v[0].transpose(0, 1)
    return q, k, v, turned, keys, cache


def named(plan: Any, head: int, i: int) -> list[int]:
    """Slots that the only region's lists give to query i."""
    return [t for t in plan.parts[0].lists.tokens(64)[0, head, i // 64].tolist() if 0 <= t <= i]


def test_far_diagonals_are_found_with_critical_positions_only():
    """A head that looks exactly c + 10 tokens back, from queries that the clamp would put at one position."""
    gap, length = C + 10, 2 * C
    cos, sin = Rope(CONFIG.rope, CONFIG.head_dim).tables(512)
    k = torch.randn(CONFIG.head_dim, generator=torch.Generator().manual_seed(0))
    k = (4 * k / k.norm()).expand(1, length, 2, -1)
    method = Qwen25OneM()
    method.begin_batch(CONFIG, SPARSE, 1)
    inside = torch.arange(length) % C
    keys = rotate(k[0], cos[inside, None], sin[inside, None]).transpose(0, 1)
    q = 4 * rotate(k[0, :1, :1], cos[gap], -sin[gap]).expand(length, 4, -1)
    regions = method.chunks.regions(C, C)
    clamped = [replace(region, critical=region.positions) for region in regions]
    best = [method._estimate(q[-24:], keys, places)[1][0].argmax().item() for places in (regions, clamped)]
    assert best[0] == gap
    assert best[1] != gap


def test_every_pass_estimates_with_its_own_last_queries(monkeypatch):
    seen = []
    original = Qwen25OneM._estimate
    monkeypatch.setattr(
        Qwen25OneM, "_estimate", lambda self, q, *rest: (seen.append(q.clone()), original(self, q, *rest))[1]
    )
    q, k, v = project(2 * C)
    run_layer(Qwen25OneM(), SPARSE, q, k, v, C // 2)
    assert len(seen) == 4
    for index, estimating in enumerate(seen):
        stop = (index + 1) * C // 2
        assert torch.equal(estimating, q[0, stop - len(estimating) : stop])


def test_forced_columns_and_diagonals_and_the_largest_sums_are_kept():
    probability = torch.zeros(1, 4, 40)
    probability[0, :, 20] = 0.5
    probability[0, torch.arange(4), 36 + torch.arange(4) - 25] = 0.4
    sums = probability.sum(dim=1), diagonal_sums(probability)
    pattern = find(*sums, Sparsity(torch.tensor([3]), torch.tensor([3]), 2, 2))
    assert pattern.columns[0].nonzero().flatten().tolist() == [0, 1, 20]
    assert pattern.diagonals[0].nonzero().flatten().tolist() == [0, 1, 25]


@pytest.mark.parametrize(
    ("first", "count", "start", "stop"),
    [(300, 200, 300, 500), (300, 200, 100, 300), (300, 200, 0, 100), (450, 50, 0, 450)],
)
def test_lists_name_every_slot_of_the_pattern_once_and_none_outside(first, count, start, stop):
    generator = torch.Generator().manual_seed(first + start)
    pattern = Pattern(*(torch.rand(2, 3, 500, generator=generator) < 0.03))
    tokens = region_lists(pattern, first, count, start, stop).tokens(64)[0]
    for head in range(3):
        offsets = pattern.diagonals[head].nonzero().flatten()
        wanted = {j for j in range(start, stop) if pattern.columns[head, j]}
        for block in range(tokens.shape[1]):
            rows = torch.arange(first + 64 * block, min(first + count, first + 64 * block + 64))
            crossed = {j for j in (rows[:, None] - offsets).flatten().tolist() if start <= j < stop}
            named = [t for t in tokens[head, block].tolist() if t >= 0]
            assert len(named) == len(set(named))
            assert wanted | crossed <= set(named) <= set(range(start, stop))


def test_work_falls_with_the_pattern():
    q, k, v = project(1024)
    wide = Qwen25Config(chunk=512, local=64, temperature=False)

    def flops(**options: int) -> float:
        with counting() as counter:
            run_layer(Qwen25OneM(), wide.model_copy(update=options), q, k, v, 1024, replace(CONFIG, window=1024))
        return sum(counter.costs[n].flops for n in ("flash_prefill", "vertical_slash_prefill") if n in counter.costs)

    few = flops(sparse_from=0, verticals=16, slashes=2, sinks=4, near=1)
    assert few < 0.4 * flops()
    assert few < flops(sparse_from=0, verticals=200, slashes=2, sinks=4, near=1)


def test_heads_are_read_from_a_file_of_this_model(tmp_path):
    model, path = tiny_model(), tmp_path / "heads.json"
    heads = HeadSparsity.uniform(CONFIG, SPARSE)
    heads.verticals[1, 2] = 77
    heads.write(path, model)
    method = Qwen25OneM()
    method.prepare(model, SPARSE.model_copy(update={"heads": path}))
    method.begin_batch(CONFIG, SPARSE, 1)
    assert method.heads.layer(1).verticals.tolist() == [12, 12, 77, 12]
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_digest": "another"}))
    with pytest.raises(InputError, match="was made for tiny"):
        HeadSparsity.read(path, model, SPARSE)
    with pytest.raises(InputError, match="no per-head sparsity file"):
        HeadSparsity.read(tmp_path / "absent.json", model, SPARSE)


def test_refinement_enlarges_heads_until_their_recall_by_lse_is_reached():
    torch.manual_seed(3)
    ids = torch.randint(0, 128, (1, 320))
    config = SPARSE.model_copy(update={"verticals": 4, "slashes": 1, "near": 1, "sinks": 2, "calibration": 320})
    refined = refine_on(tiny_model(), config, ids)
    assert (refined.recall[-1] >= THRESHOLD).all()
    assert len(refined.verticals.unique()) > 1 or (refined.verticals > 4).all()


def test_recall_is_the_share_of_softmax_mass():
    q, _, _, turned, keys, cache = segment()
    method = Qwen25OneM()
    method.begin_batch(CONFIG, WIDE, 1)
    tables = Rope(CONFIG.rope, CONFIG.head_dim).tables(448)
    site = Site(cache.keys[0], cache.values[0], 0, *tables, CONFIG.head_dim**-0.5)
    regions = method.chunks.regions(0, 448)
    plan = method.sparse(0, q[0], 0, 0, regions, Step(cache, [448], 448))
    recall = (plan.attend(q[0], site)[1] - whole(regions, 0, 448).attend(q[0], site)[1]).exp()
    weights = (turned[447, 0] @ keys[:, 0].T * CONFIG.head_dim**-0.5).softmax(dim=0)
    assert recall[447, 0].item() == pytest.approx(weights[named(plan, 0, 447)].sum().item(), abs=1e-5)
    assert recall.min() < 0.9


@pytest.mark.parametrize(
    ("options", "reason"), [({"chunk": 600}, "trained window"), ({"chunk": 64, "local": 40}, "local <= chunk - local")]
)
def test_chunks_that_do_not_fit_are_refused(options, reason):
    assert reason in (Qwen25OneM().refusal(tiny_model(), Qwen25Config(**options)) or "")


def test_a_model_with_scaled_positions_is_refused():
    scaled = replace(CONFIG, rope=RopeConfig("linear", 1e4, {"factor": 2.0}))
    assert "linear" in (Qwen25OneM().refusal(tiny_model(scaled), Qwen25Config()) or "")
    assert Qwen25OneM().refusal(tiny_model(), Qwen25Config()) is None
