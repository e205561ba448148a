"""Sinks and window: positions inside the list, and eviction that is real."""

from __future__ import annotations

import torch

from suite.harness.meter import RequestMeter
from suite.methods.attention.streaming import Streaming, StreamingConfig
from suite.models.rope import Rope, rotate
from tests.methods.support import CONFIG, project, run_layer, selected, tiny_model
from workloads.schema import Request

SMALL = StreamingConfig(sinks=4, window=28)


def naive(q, k, v, j, head):
    """Sinks and the last `window` tokens, re-numbered from 0 in order (StreamingLLM section 3.2)."""
    t, D = j + 1, CONFIG.head_dim
    picked = torch.cat((torch.arange(4), torch.arange(t - 28, t)))
    cos, sin = Rope(CONFIG.rope, D).tables(64)
    keys, values = k[0, picked, head // CONFIG.group], v[0, picked, head // CONFIG.group]
    turned = rotate(keys, cos[:32], sin[:32])
    return torch.softmax(turned @ rotate(q[0, j, head], cos[31], sin[31]) * D**-0.5, dim=0) @ values


def test_positions_are_those_inside_the_list_also_after_eviction():
    q, k, v = project(120)
    for chunk in (1, 50, 120):
        out = run_layer(Streaming(), SMALL, q, k, v, chunk)
        for j in (32, 33, 70, 119):
            for head in range(CONFIG.heads):
                torch.testing.assert_close(out[0, j, head], naive(q, k, v, j, head), atol=1e-5, rtol=1e-4)


def test_evicted_tokens_leave_the_storage():
    model = tiny_model()
    method = Streaming()
    with method.attach(model, SMALL):
        attention = selected(method, SMALL)
        cache = model.decoder.new_cache(1, attention.capacity(5000))
        with torch.inference_mode():
            for _ in range(10):
                model.decoder(torch.randint(0, 128, (1, 500)), cache, attention)
    assert cache.seen == [5000]
    assert cache.lengths[0] < 32 + 2 * 512
    assert cache.capacity < 1200


def test_a_short_window_is_seen_in_the_text():
    """Far tokens outside sinks and window have no influence at all on the next tokens."""
    model = tiny_model()

    def tokens(prompt: str) -> tuple[int, ...]:
        request = Request(id="r", task="t", prompt=prompt, metric="none", max_new_tokens=4)
        with Streaming().attach(model, StreamingConfig(sinks=2, window=8)) as generator:
            return next(iter(generator.generate([request], RequestMeter()))).token_ids

    # three layers of a window of 8 reach back at most 24 tokens
    assert tokens("ab" + "c" * 100 + "tail of text that stays alike") == tokens(
        "ab" + "x" * 100 + "tail of text that stays alike"
    )
