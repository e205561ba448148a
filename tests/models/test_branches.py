"""Branches share pages and nothing else: whatever is forked, each text's logits are those of a cache of its own."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from suite.models.attention import DenseAttention
from suite.models.branches import LONG, PAGE, PASS_TOKENS, Forest, slots_of
from tests.methods.support import CONFIG, tiny_model

PROMPT = list(range(1, 41))


def expected(pieces):
    """Logits after each piece of one text, from a contiguous cache."""
    decoder = tiny_model().decoder
    cache = decoder.new_cache(1, 8)
    with torch.inference_mode():
        return [decoder(torch.tensor([piece]), cache, DenseAttention(CONFIG))[0] for piece in pieces]


def assert_close(got, want):
    torch.testing.assert_close(got, want, atol=2e-5, rtol=0)


@pytest.mark.parametrize("length", [1, PAGE - 1, PAGE, PAGE + 1, LONG + 3, PASS_TOKENS + 9])
def test_one_branch_is_a_plain_cache(length):
    forest, ids = Forest(tiny_model().decoder), [i % 128 for i in range(length)]
    branch = forest.root()
    assert_close(forest.feed([branch], [ids])[0], expected([ids])[0])
    assert_close(forest.feed([branch], [[5]])[0], expected([ids, [5]])[1])
    assert branch.length == length + 1


def test_forks_go_their_own_ways():
    """Five children of one text, unequal pieces, then one more token each; the parent too goes on."""
    forest = Forest(tiny_model().decoder)
    parent = forest.root()
    forest.feed([parent], [PROMPT])
    children = [parent.fork() for _ in range(5)]
    pieces = [[3, 4, 5], [6], list(range(20)), [7, 8], [6]]
    first = forest.feed([*children, parent], [*pieces, [9]])
    second = forest.feed(children, [[i] for i in range(5)])
    for row, piece in enumerate(pieces):
        want = expected([PROMPT, piece, [row]])
        assert_close(first[row], want[1])
        assert_close(second[row], want[2])
    assert_close(first[5], expected([PROMPT, [9]])[1])


def test_logits_of_every_token():
    forest = Forest(tiny_model().decoder)
    branches = [forest.root(), forest.root()]
    forest.feed(branches, [PROMPT, [1]])
    found = forest.feed_all(branches, [[3, 4], [5]])
    assert [len(part) for part in found] == [2, 1]
    assert_close(found[0][0], expected([PROMPT, [3]])[1])
    assert_close(found[0][1], expected([PROMPT, [3], [4]])[2])
    assert_close(found[1][0], expected([[1], [5]])[1])


def test_a_fork_copies_nothing_and_dead_branches_give_their_pages_back():
    """Sixteen chains behind one prompt hold it once; when they go, only the prompt is left."""
    forest = Forest(tiny_model().decoder)
    parent = forest.root()
    forest.feed([parent], [list(range(100))])
    page_bytes = PAGE * CONFIG.kv_bytes_per_token(4)
    alone = forest.pool.used_bytes
    assert alone == 7 * page_bytes
    chains = [parent.fork() for _ in range(16)]
    assert forest.pool.used_bytes == alone
    forest.feed(chains, [[1]] * 16)
    assert forest.pool.used_bytes == alone + 15 * page_bytes  # the first goes on in the prompt's last page
    del chains
    assert forest.pool.used_bytes == alone
    before = forest.pool.capacity
    forest.feed([parent.fork() for _ in range(16)], [[2]] * 16)
    assert forest.pool.capacity == before


def test_what_branches_share_is_counted_once():
    forest = Forest(tiny_model().decoder)
    parent = forest.root()
    forest.feed([parent], [list(range(100))])
    chains = [parent.fork() for _ in range(16)]
    forest.feed(chains, [[1, 2]] * 16)
    assert slots_of([parent]) == 100
    assert slots_of(chains[3:5]) == 104
    assert slots_of([*chains, parent]) == 132
    assert slots_of([parent.up_to(30), chains[0]]) == 102


def test_a_page_given_back_holds_nothing_of_its_old_text():
    forest = Forest(tiny_model().decoder)
    old = forest.root()
    forest.feed([old], [list(range(50))])
    del old
    new = forest.root()
    assert_close(forest.feed([new], [PROMPT])[0], expected([PROMPT])[0])


def test_sliding_windows_are_not_served():
    assert Forest.fits(CONFIG)
    assert not Forest.fits(replace(CONFIG, windows=(8, None, 8)))
