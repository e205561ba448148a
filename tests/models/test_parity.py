"""Logits equal those of `transformers`, for every architecture, rotary variant and way of feeding the tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from suite.models.attention import DenseAttention
from suite.models.loaders import hf
from tests.models.small import equal_chunks, our_logits, random_ids, random_model, reference_logits, save

LENGTH = 80
TOLERANCE = 1e-4
MIXED = ["sliding_attention", "full_attention", "sliding_attention"]

ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama-one-kv-head": ("llama", {"num_key_value_heads": 1}),
    "llama-all-kv-heads": ("llama", {"num_key_value_heads": 4, "head_dim": 16}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "llama-bias": ("llama", {"attention_bias": True}),
    "mistral-sliding": ("mistral", {"sliding_window": 16}),
    "qwen2": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2-sliding": ("qwen2", {"use_sliding_window": True, "sliding_window": 16, "max_window_layers": 1}),
    "qwen3": ("qwen3", {}),
    "qwen3-bias": ("qwen3", {"attention_bias": True}),
    "gemma2": ("gemma2", {"sliding_window": 16, "query_pre_attn_scalar": 24}),
    "gemma3": ("gemma3", {"sliding_window": 16, "query_pre_attn_scalar": 24, "layer_types": MIXED}),
}
ROPES: dict[str, dict[str, Any]] = {
    "base": {"rope_type": "default", "rope_theta": 500000.0},
    "linear": {"rope_type": "linear", "factor": 4.0},
    "yarn": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32},
    "yarn-attention-factor": {"rope_type": "yarn", "factor": 4.0, "attention_factor": 1.3},
    "yarn-mscale": {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 32,
        "mscale": 0.7,
        "mscale_all_dim": 1.3,
        "truncate": False,
        "beta_fast": 20,
        "beta_slow": 2,
    },
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}
# One pass; one token at a time; the decode kernel with several rows; two passes of the prefill path.
FEEDINGS = {"whole": [80], "single tokens": [1] * 80, "sevens": equal_chunks(LENGTH, 7), "50 and 30": [50, 30]}


def differences(model: PreTrainedModel, directory: Path) -> dict[str, float]:
    """max |Δlogit| for every way of feeding the same tokens."""
    ids = random_ids(LENGTH)
    expected = reference_logits(model, ids)
    decoder = hf.load_decoder(save(model, directory), "fp32")
    assert expected.abs().max() > 3, "logits near zero would prove nothing"
    return {name: float((our_logits(decoder, ids, c) - expected).abs().max()) for name, c in FEEDINGS.items()}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architecture_matches_transformers(name: str, tmp_path: Path) -> None:
    kind, fields = ARCHITECTURES[name]
    found = differences(random_model(kind, **fields), tmp_path)
    assert max(found.values()) < TOLERANCE, found


@pytest.mark.parametrize("name", ROPES)
def test_rope_variant_matches_transformers(name: str, tmp_path: Path) -> None:
    parameters = {"rope_theta": 10000.0, **ROPES[name]}
    found = differences(random_model("llama", rope_parameters=parameters), tmp_path)
    assert max(found.values()) < TOLERANCE, found


def dynamic_model() -> PreTrainedModel:
    parameters = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    return random_model("llama", rope_parameters=parameters, max_position_embeddings=48)


@torch.inference_mode()
def cached_reference(model: PreTrainedModel, ids: Tensor, chunks: list[int]) -> Tensor:
    """Logits of `transformers` fed in chunks: dynamic scaling leaves cached keys as they were rotated."""
    cache = DynamicCache(config=model.config)
    parts = ids[None].split(chunks, dim=1)
    return torch.cat([model(part, past_key_values=cache, use_cache=True).logits[0] for part in parts])


@pytest.mark.parametrize("chunks", [[80], [40] + [1] * 40, [60, 20], [30, 30, 1, 1, 18]], ids=str)
def test_dynamic_rope_beyond_its_window_matches_transformers(chunks: list[int], tmp_path: Path) -> None:
    model, ids = dynamic_model(), random_ids(LENGTH)
    decoder = hf.load_decoder(save(model, tmp_path), "fp32")
    difference = (our_logits(decoder, ids, chunks) - cached_reference(model, ids, chunks)).abs().max()
    assert difference < TOLERANCE


def test_dynamic_rope_forgets_a_long_request(tmp_path: Path) -> None:
    model = dynamic_model()
    decoder = hf.load_decoder(save(model, tmp_path), "fp32")
    attention = DenseAttention(decoder.config)
    with torch.inference_mode():
        decoder(random_ids(LENGTH)[None], decoder.new_cache(1, LENGTH), attention)
        ids = random_ids(20, seed=2)
        short = decoder(ids[None], decoder.new_cache(1, 20), attention, logits="all")[0]
    torch.testing.assert_close(short, reference_logits(model, ids), atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma2", "gemma3"])
def test_bf16_stays_near_fp32(name: str, tmp_path: Path) -> None:
    kind, fields = ARCHITECTURES[name]
    model, ids = random_model(kind, **fields), random_ids(LENGTH)
    save(model, tmp_path)
    decoder = hf.load_decoder(tmp_path, "bf16")
    assert decoder.dtype is torch.bfloat16
    expected = reference_logits(model.bfloat16(), ids).float()
    exact = reference_logits(model.float(), ids)
    allowed = 2 * (expected - exact).abs().mean()
    for chunks in ([LENGTH], [1] * LENGTH):
        assert (our_logits(decoder, ids, chunks) - exact).abs().mean() < allowed
