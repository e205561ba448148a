"""The cache and the ragged batch: what a row computes depends on that row alone, however its tokens are fed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from suite.models.attention import SMALL_ROWS, DenseAttention, Step
from suite.models.cache import KVCache
from suite.models.decoder import Decoder
from suite.models.loaders import hf
from tests.models.small import equal_chunks, our_logits, random_ids, random_model, save

TOLERANCE = 1e-4
LENGTH = 150


@pytest.fixture(scope="module", params=["llama", "gemma2"])
def decoder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Decoder:
    fields = {"sliding_window": 24} if request.param == "gemma2" else {}
    directory = tmp_path_factory.mktemp(request.param)
    return hf.load_decoder(save(random_model(request.param, **fields), directory), "fp32")


@pytest.mark.parametrize("size", [1, 7, SMALL_ROWS, SMALL_ROWS + 1, 64])
def test_any_chunk_size_gives_the_same_logits(decoder: Decoder, size: int) -> None:
    ids = random_ids(LENGTH)
    whole = our_logits(decoder, ids, [LENGTH])
    torch.testing.assert_close(our_logits(decoder, ids, equal_chunks(LENGTH, size)), whole, atol=TOLERANCE, rtol=0)


def feed(decoder: Decoder, rows: list[Tensor], chunk: int) -> list[Tensor]:
    """Last logits of every row after its last token; rows of different lengths, fed together in chunks."""
    cache, attention = decoder.new_cache(len(rows), 0), DenseAttention(decoder.config)
    last: list[Tensor] = [torch.empty(0)] * len(rows)
    for start in range(0, max(map(len, rows)), chunk):
        counts = [max(0, min(chunk, len(row) - start)) for row in rows]
        tokens = torch.zeros(len(rows), max(counts), dtype=torch.long)
        for index, (row, count) in enumerate(zip(rows, counts, strict=True)):
            tokens[index, :count] = row[start : start + count]
        logits = decoder(tokens, cache, attention, counts)
        last = [logits[i] if count else last[i] for i, count in enumerate(counts)]
    assert cache.lengths == [len(row) for row in rows]
    return last


@pytest.mark.parametrize("chunk", [5, SMALL_ROWS, 40, 200])
def test_ragged_batch_equals_single_rows(decoder: Decoder, chunk: int) -> None:
    rows = [random_ids(length, seed=length) for length in (1, 63, 17, 100, 40)]
    with torch.inference_mode():
        together = feed(decoder, rows, chunk)
        alone = [feed(decoder, [row], 200)[0] for row in rows]
    torch.testing.assert_close(torch.stack(together), torch.stack(alone), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("width", [8, SMALL_ROWS, 64])
def test_padding_stays_inside_a_full_cache(decoder: Decoder, width: int) -> None:
    """A row that fills the cache to its last slot and brings one token, beside a row that brings many."""
    rows = [random_ids(64, seed=3), random_ids(width, seed=4)]
    with torch.inference_mode():
        cache, attention = decoder.new_cache(2, 64), DenseAttention(decoder.config)
        head = torch.stack([rows[0][:63], torch.zeros(63, dtype=torch.long)])
        decoder(head, cache, attention, [63, 0])
        tail = torch.stack([torch.full((width,), int(rows[0][63])), rows[1]])
        step = Step(cache, [1, width], width)
        assert (step.slots.max(dim=1).values < torch.tensor(step.stops)).all()  # a kernel would read beyond unseen
        together = decoder(tail, cache, attention, [1, width])
        alone = [feed(decoder, [row], 200)[0] for row in rows]
    assert cache.capacity == 64
    torch.testing.assert_close(together, torch.stack(alone), atol=TOLERANCE, rtol=0)


def test_truncate_then_go_on(decoder: Decoder) -> None:
    """After a rejected draft is cut off, decoding goes on as if it had never been there."""
    ids = random_ids(50)
    with torch.inference_mode():
        cache, attention = decoder.new_cache(1, 0), DenseAttention(decoder.config)
        decoder(ids[None, :40], cache, attention)
        decoder(random_ids(6, seed=9)[None], cache, attention)
        cache.truncate(0, 40)
        after = decoder(ids[None, 40:], cache, attention)[0]
    torch.testing.assert_close(after, our_logits(decoder, ids, [50])[-1], atol=TOLERANCE, rtol=0)


def small_cache(decoder: Decoder, batch: int = 2) -> KVCache:
    cache = decoder.new_cache(batch, 0)
    shape = (batch, 10, cache.config.kv_heads, cache.config.head_dim)
    for layer in range(cache.config.layers):
        tokens = torch.arange(10.0)[None, :, None, None].expand(shape)
        cache.write(layer, tokens, -tokens, [10] * batch)
    cache.advance([10] * batch)
    return cache


def stored(cache: KVCache, row: int, layer: int = 0) -> list[float]:
    """The first element of each stored key of a row; the values are its negative."""
    keys = cache.keys[layer][row, 0, : cache.lengths[row], 0]
    assert torch.equal(cache.values[layer][row, -1, : cache.lengths[row], -1], -keys)
    return [float(x) for x in keys]


def test_evict_moves_later_tokens_up_in_one_row(decoder: Decoder) -> None:
    cache = small_cache(decoder)
    cache.evict(0, 2, 7)
    for layer in range(cache.config.layers):
        assert stored(cache, 0, layer) == [0, 1, 7, 8, 9]
        assert stored(cache, 1, layer) == list(range(10))
    assert cache.seen == [10, 10]
    element = 4
    assert cache.live_bytes() == 15 * cache.config.kv_bytes_per_token(element)


def test_evicted_tokens_are_not_attended_and_positions_go_on(decoder: Decoder) -> None:
    """Evicting the last tokens differs from truncating them: the next token keeps its position in the text."""
    ids = random_ids(31)
    attention = DenseAttention(decoder.config)
    cut, evicted, whole = (decoder.new_cache(1, 0) for _ in range(3))
    with torch.inference_mode():
        for cache in (cut, evicted, whole):
            decoder(ids[None, :30], cache, attention)
        cut.truncate(0, 20)
        evicted.evict(0, 20, 30)
        for cache in (cut, evicted, whole):
            decoder(ids[None, 30:], cache, attention)
    assert (cut.lengths, evicted.lengths) == ([21], [21])
    key_at_20, key_at_30 = cut.keys[0][0, :, 20], whole.keys[0][0, :, 30]
    assert not torch.allclose(key_at_20, key_at_30, atol=1e-2)
    torch.testing.assert_close(evicted.keys[0][0, :, 20], key_at_30, atol=TOLERANCE, rtol=0)


def test_growth_copies_a_logarithmic_number_of_times(decoder: Decoder) -> None:
    cache = decoder.new_cache(1, 0)
    storages = set()
    for _ in range(2000):
        cache.reserve(cache.lengths[0] + 1)
        cache.advance([1])
        storages.add(cache.keys[0].data_ptr())
    assert len(storages) <= 6  # 64, 128, ..., 2048


def test_growth_keeps_what_is_stored(decoder: Decoder) -> None:
    cache = small_cache(decoder)
    cache.reserve(1000)
    assert stored(cache, 1, cache.config.layers - 1) == list(range(10))
    assert cache.allocated_bytes() == 2 * cache.capacity * cache.config.kv_bytes_per_token(4)


def test_a_reserved_cache_never_moves(decoder: Decoder) -> None:
    cache, attention = decoder.new_cache(1, LENGTH), DenseAttention(decoder.config)
    before = [t.data_ptr() for t in (*cache.keys, *cache.values)]
    with torch.inference_mode():
        for part in random_ids(LENGTH)[None].split(30, dim=1):
            decoder(part, cache, attention)
    assert [t.data_ptr() for t in (*cache.keys, *cache.values)] == before
