"""`from_hf` reads the config.json of both generations of `transformers`, and refuses what the decoder does not have."""

from __future__ import annotations

import math
from typing import Any

import pytest

from analysis.roofline.model import forward
from analysis.roofline.operators import Precision
from suite.errors import InputError
from suite.models.config import from_hf
from suite.shapes import shape_of

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "vocab_size": 100,
    "max_position_embeddings": 128,
}


def document(architecture: str = "LlamaForCausalLM", **fields: Any) -> dict[str, Any]:
    return LLAMA | {"architectures": [architecture]} | fields


def test_defaults_of_a_minimal_llama() -> None:
    config = from_hf(LLAMA)
    assert (config.kv_heads, config.head_dim, config.rope.theta, config.tied) == (4, 16, 10000.0, False)
    assert config.scale == 1 / math.sqrt(16)
    assert config.windows == ()


@pytest.mark.parametrize("key", ["rope_scaling", "rope_parameters"])
def test_both_spellings_of_rope(key: str) -> None:
    old_or_new = {"type": "yarn", "factor": 4.0, "rope_theta": 5000.0}
    config = from_hf(document(**{key: old_or_new}))
    assert (config.rope.kind, config.rope.theta) == ("yarn", 5000.0)
    assert config.rope.parameters["original_max_position_embeddings"] == 128


def test_qwen_layers_slide_from_max_window_layers_on() -> None:
    fields = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 3}
    assert from_hf(document("Qwen2ForCausalLM", **fields)).windows == (None, None, None, 8)
    assert from_hf(document("Qwen2ForCausalLM", **fields | {"use_sliding_window": False})).windows == ()


def test_mistral_layers_all_slide() -> None:
    assert from_hf(document("MistralForCausalLM", sliding_window=8)).windows == (8,) * 4
    assert from_hf(document("MistralForCausalLM", sliding_window=None)).windows == ()


def test_gemma2_alternates_and_gemma3_has_a_period() -> None:
    gemma = {"sliding_window": 8, "query_pre_attn_scalar": 25, "hidden_activation": "gelu_pytorch_tanh"}
    two = from_hf(document("Gemma2ForCausalLM", **gemma, attn_logit_softcapping=50.0, final_logit_softcapping=30.0))
    assert two.windows == (8, None, 8, None)
    assert (two.scale, two.attention_softcap, two.logit_softcap, two.tied) == (0.2, 50.0, 30.0, True)
    three = from_hf(document("Gemma3ForCausalLM", **gemma, sliding_window_pattern=3))
    assert three.windows == (8, 8, None, 8)
    assert (three.rope_of(0).theta, three.rope_of(2).theta) == (1e4, 1e6)
    assert three.embedding_scale == 8.0


def test_gemma3_ropes_of_each_kind() -> None:
    nested = {
        "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 2e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 3e4},
    }
    for fields in (
        {"rope_parameters": nested},
        {"rope_theta": 2e6, "rope_local_base_freq": 3e4, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    ):
        config = from_hf(document("Gemma3ForCausalLM", sliding_window=8, **fields))
        assert config.local_rope is not None
        assert (config.rope.kind, config.rope.theta) == ("linear", 2e6)
        assert (config.local_rope.kind, config.local_rope.theta) == ("default", 3e4)


def test_end_tokens_are_one_or_many() -> None:
    assert from_hf(document(eos_token_id=7)).eos_ids == (7,)
    assert from_hf(document(eos_token_id=[7, 9])).eos_ids == (7, 9)
    assert from_hf(document(eos_token_id=None)).eos_ids == ()


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "unknown architecture": (document("MambaForCausalLM"), "'MambaForCausalLM' is not supported; known: Llama"),
    "no architecture": ({**LLAMA, "architectures": None}, "'none' is not supported"),
    "missing field": ({k: v for k, v in LLAMA.items() if k != "hidden_size"}, "no field 'hidden_size'"),
    "wrong kind": (document(num_hidden_layers="four"), "field of the wrong kind"),
    "no heads": (document(num_attention_heads=0), "field of the wrong kind"),
    "heads do not divide": (document(num_key_value_heads=3), "4 query heads, 3 KV heads"),
    "odd head dimension": (document(head_dim=15), "the third even"),
    "unknown rope": (document(rope_scaling={"rope_type": "longrope"}), "rope type 'longrope' is not supported"),
    "rope without factor": (document(rope_scaling={"rope_type": "linear"}), "no field 'factor'"),
    "activation": (document(hidden_act="relu"), "activation 'relu' is not supported"),
    "gemma activation": (document("Gemma2ForCausalLM", hidden_activation="gelu"), "known: gelu_pytorch_tanh"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_config_is_one_sentence(name: str) -> None:
    fields, message = BAD[name]
    with pytest.raises(InputError) as caught:
        from_hf(fields)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_flops_are_those_of_the_analytic_roofline() -> None:
    """Of the matrices, and of a query and each key before it or its own."""
    config = from_hf(document(num_key_value_heads=2))
    operators = forward(shape_of(config), Precision.of_bits(32, 32, 32), batch=1, new=5, prefix=7, logit_rows=5)
    matrices = [one for one in operators if one.name.endswith("_proj") or one.name == "lm_head"]
    expected = sum(float(one.flops) for one in matrices) + config.attention_flops_per_pair * sum(range(8, 13))
    assert config.flops(5, 7) == expected
    assert config.flops(5, 0) + config.flops(7, 5) == config.flops(12, 0)
