"""Passes whose reads are known ahead run in one call, and are the passes that ask at every layer."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from kernels.decode_layer import LayerStack
from suite.harness.meter import CountingMeter, RequestMeter
from suite.methods.attention.chunkllm import ChunkLLM
from suite.methods.attention.qwen2_5_1m import Qwen25Config, Qwen25OneM
from suite.methods.attention.streaming import Streaming, StreamingConfig
from tests.methods.support import CONFIG, selected, tiny_model
from tests.methods.test_chunkllm import SMALL, decode, prepared, text
from workloads.schema import Request

METHODS = {
    "streaming": lambda: (Streaming(), StreamingConfig(sinks=4, window=60)),
    "qwen2_5_1m": lambda: (Qwen25OneM(), Qwen25Config(chunk=96, local=32)),
    "chunkllm": lambda: prepared(**SMALL),
}
PROMPT, TOKENS = 150, 230


class Calls:
    """Counts the calls of a stack."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs: list[range] = []
        self.layers = 0
        run, project = LayerStack.run, LayerStack.project

        def counted(stack: LayerStack, x: Tensor, *rest: Any) -> None:
            self.runs.append(rest[3])
            run(stack, x, *rest)

        def single(stack: LayerStack, layer: int, x: Tensor) -> Tensor:
            self.layers += 1
            return project(stack, layer, x)

        monkeypatch.setattr(LayerStack, "run", counted)
        monkeypatch.setattr(LayerStack, "project", single)


@pytest.fixture
def calls(monkeypatch):
    return Calls(monkeypatch)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("batch", [1, 3])
def test_one_call_is_as_good_as_asking_every_layer(name, batch, monkeypatch, calls):
    tokens = text(batch)
    method, config = METHODS[name]()
    together = decode(selected(method, config, batch=batch), tokens)
    last = CONFIG.layers - 1
    parts = [range(1), range(1, last + 1)] if name == "chunkllm" else [range(last + 1)]
    steps = TOKENS - PROMPT - (name == "chunkllm")  # the first single token of chunkllm chooses for the prompt
    assert calls.runs == parts * steps
    assert calls.layers == CONFIG.layers * (name == "chunkllm")

    other, config = METHODS[name]()
    monkeypatch.setattr(type(method), "ahead", lambda self, step: None)
    apart = decode(selected(other, config, batch=batch), tokens)
    assert calls.layers == CONFIG.layers * (TOKENS - PROMPT + (name == "chunkllm"))
    torch.testing.assert_close(together, apart, atol=2e-5, rtol=1e-4)
    if isinstance(method, ChunkLLM) and isinstance(other, ChunkLLM):
        assert (method.selections, method.predicted, method.forced) == (
            other.selections, other.predicted, other.forced,
        )  # fmt: skip
        assert method.selections > batch
        for ours, theirs in zip(method._rows, other._rows, strict=True):
            assert ours.ends == theirs.ends
            torch.testing.assert_close(torch.stack(ours.newest), torch.stack(theirs.newest), atol=1e-5, rtol=1e-4)


def test_rows_shorter_than_the_window_are_dense_passes(calls):
    method, config = METHODS["streaming"]()
    decode(selected(method, config), text(1, 25), prompt=5)
    assert (calls.runs, calls.layers) == ([range(CONFIG.layers)] * 20, CONFIG.layers)  # layers: the prompt's pass


def test_what_is_counted_is_asked_for_layer_by_layer(calls):
    asked = Request(id="r", task="t", prompt="a" * 90, metric="none", max_new_tokens=8)
    method, config = METHODS["streaming"]()
    for meter, together in ((CountingMeter(CONFIG.kv_bytes_per_token(4)), 0), (RequestMeter(), 7)):
        calls.runs.clear()
        with method.attach(tiny_model(), config) as generator:
            done = next(iter(generator.generate([asked], meter)))
        assert (len(done.token_ids), len(calls.runs)) == (8, together)


def test_models_with_sliding_layers_are_asked_layer_by_layer(calls):
    sliding = replace(CONFIG, windows=(None, 8, None))
    method, config = METHODS["streaming"]()
    decoder = tiny_model(sliding).decoder
    cache, attention, tokens = decoder.new_cache(1, 0), selected(method, config, sliding), text(1, 120)
    with torch.inference_mode():
        for part in tokens.split([100, 1, 1, 18], dim=1)[:3]:
            decoder(part, cache, attention)
    assert (calls.runs, calls.layers) == ([], 2 * CONFIG.layers)


def test_sharpened_queries_are_asked_layer_by_layer(calls):
    """The temperature of a text beyond the trained window (512) is one on the queries before their products."""
    method, config = METHODS["qwen2_5_1m"]()
    decode(selected(method, config), text(1, CONFIG.window + 6), prompt=CONFIG.window - 4)
    assert (len(calls.runs), calls.layers) == (4, 6 * CONFIG.layers)
