"""The controls read as much as they say, and choose what they say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from suite.methods.attention.controls import Control, ControlConfig, Oracle, Random, Uniform
from suite.models.attention import Step
from suite.models.cache import KVCache
from suite.models.rope import Rope, rotate
from tests.methods.support import CONFIG, project, run_layer

CONFIGURED = ControlConfig(budget=64, block=4)
T = 150


def last_reads(method: Control) -> tuple[list[set[int]], Tensor, Tensor]:
    """Tokens read per KV head by the last of T tokens, and the rotated query [H, D] and keys [T, G, D] of all."""
    q, k, v = project(T)
    cos, sin = Rope(CONFIG.rope, CONFIG.head_dim).tables(T)
    turned_q, turned_k = (rotate(x[0], cos[:T, None], sin[:T, None]) for x in (q, k))
    run_layer(method, CONFIGURED, q[:, :-1], k[:, :-1], v[:, :-1], T)
    cache = KVCache(CONFIG, 1, torch.float32, T)
    cache.keys[0][0, :, :T] = turned_k.transpose(0, 1)
    cache.advance([T - 1])
    step = Step(cache, [1], 1)
    method.learn(0, turned_q[-1:], 0, step)
    spans = method.select(0, q[0, -1], 0, step).spans[0]
    reads = [{t for start, stop, _ in head.tolist() for t in range(start, stop)} for head in spans]
    return reads, turned_q[-1], turned_k


@pytest.mark.parametrize("kind", [Oracle, Random, Uniform])
def test_sinks_and_recent_tokens_are_always_read_within_the_budget(kind):
    reads, _, _ = last_reads(kind())
    for read in reads:
        assert {0, 1, 2, 3} | set(range(T - 16, T)) <= read
        assert 60 <= len(read) <= 64


def test_the_oracle_reads_the_tokens_with_the_most_attention():
    reads, q, keys = last_reads(Oracle())
    for head, read in enumerate(reads):
        heads = q[head * CONFIG.group : (head + 1) * CONFIG.group]
        mass = (heads @ keys[:, head].T * CONFIG.head_dim**-0.5).softmax(dim=-1).sum(dim=0)
        chosen = read - {0, 1, 2, 3} - set(range(T - 16, T))
        left_out = set(range(4, T - 16)) - chosen
        assert min(mass[list(chosen)]) >= max(mass[list(left_out)])


def test_uniform_reads_the_blocks_whose_mean_key_scores_best():
    reads, q, keys = last_reads(Uniform())
    for head, read in enumerate(reads):
        means = keys[4 : 4 + 33 * 4, head].reshape(33, 4, -1).mean(dim=1)  # the last one reaches into the recent tokens
        scores = (q[head * CONFIG.group : (head + 1) * CONFIG.group] @ means.T).sum(dim=0)
        best = {4 + 4 * b + i for b in scores.topk(11).indices.tolist() for i in range(4)}
        assert read == {0, 1, 2, 3} | best | set(range(T - 16, T))


def test_random_blocks_differ_between_heads_and_places():
    reads, _, _ = last_reads(Random())
    assert reads[0] != reads[1]
