"""Model shapes: presets against the published sizes, configs against real modules, latent attention and experts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from analysis.roofline.model import decode, prefill
from analysis.roofline.operators import AttentionShape, Operator, Precision, causal_pairs, experts, latent_attention
from analysis.roofline.shape import ModelShape, load_preset, preset_names, read_config
from suite.errors import InputError

BF16 = Precision()

PUBLISHED = {
    "llama-2-7b": 6.738, "llama-2-13b": 13.016, "llama-2-70b": 68.977, "llama-3-8b": 8.030, "llama-3-70b": 70.554,
    "llama-3.1-405b": 405.9, "llama-3.2-1b": 1.236, "llama-3.2-3b": 3.213, "llama-4-scout": 107.8,
    "llama-4-maverick": 400.7, "qwen2.5-0.5b": 0.494, "qwen2.5-1.5b": 1.544, "qwen2.5-7b": 7.616, "qwen2.5-14b": 14.77,
    "qwen2.5-32b": 32.76, "qwen2.5-72b": 72.71, "qwen3-0.6b": 0.596, "qwen3-8b": 8.191, "qwen3-32b": 32.76,
    "qwen3-30b-a3b": 30.53, "qwen3-235b-a22b": 235.1, "gemma-2-2b": 2.614, "gemma-2-9b": 9.242, "gemma-2-27b": 27.23,
    "gemma-3-1b": 1.000, "gemma-3-4b": 3.880, "gemma-3-12b": 11.77, "gemma-3-27b": 27.01, "mistral-7b": 7.242,
    "mixtral-8x7b": 46.70, "mixtral-8x22b": 140.6, "deepseek-v2-lite": 15.71, "deepseek-v2": 235.7,
    "deepseek-v3": 671.0, "opt-125m": 0.1252, "opt-1.3b": 1.316, "opt-6.7b": 6.658, "opt-13b": 12.85, "opt-30b": 29.97,
    "opt-66b": 65.72, "smollm2-135m": 0.1345,
}  # fmt: skip
"""Billions of weights of the text models, as published."""


@pytest.mark.parametrize("name", preset_names())
def test_presets_have_the_published_number_of_weights(name: str) -> None:
    """OPT's learned positions and biases are not counted: 1.4% of the smallest one."""
    relative = 0.014 if name == "opt-125m" else 0.004 if name == "opt-1.3b" else 1.5e-3
    assert load_preset(name).parameters / 1e9 == pytest.approx(PUBLISHED[name], rel=relative)


TINY = {
    "num_hidden_layers": 4, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 320, "tie_word_embeddings": False,
    "max_position_embeddings": 128,
}  # fmt: skip
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 48}
LATENT = {
    "kv_lora_rank": 32, "q_lora_rank": 24, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
    "num_key_value_heads": 4, "n_routed_experts": 8, "n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1,
    "topk_group": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "more", "uncounted"),
    [
        ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}, 0),
        ("qwen2", {"sliding_window": 32, "use_sliding_window": False}, 4 * (4 + 2 + 2) * 16),  # biases of q, k, v
        ("qwen3_moe", {"num_experts": 8, "decoder_sparse_step": 2, **EXPERTS}, 4 * 2 * 16),  # q and k norms
        ("gemma2", {"sliding_window": 32}, 4 * 2 * 64),  # two more norms per layer
        ("deepseek_v3", {**EXPERTS, **LATENT}, 0),
        ("deepseek_v2", {**EXPERTS, **LATENT, "q_lora_rank": None}, 0),
    ],
)
def test_parameters_are_those_of_transformers_modules(kind: str, more: dict, uncounted: int) -> None:
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.for_model(kind, **{**TINY, **more})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    shape = ModelShape.from_hf(config.to_dict())
    assert shape.parameters + uncounted == sum(parameter.numel() for parameter in model.parameters())


def test_opt_is_read_under_its_own_names() -> None:
    from transformers import OPTConfig, OPTForCausalLM

    config = OPTConfig(
        num_hidden_layers=2, hidden_size=64, ffn_dim=128, num_attention_heads=4, vocab_size=320,
        word_embed_proj_dim=64, max_position_embeddings=30,
    )  # fmt: skip
    with torch.device("meta"):
        model = OPTForCausalLM(config)
    matrices = sum(parameter.numel() for parameter in model.parameters() if parameter.dim() == 2)
    norms = 2 * 2 * 64 + 64
    assert ModelShape.from_hf(config.to_dict()).parameters == matrices - 32 * 64 + norms  # positions are not counted


def test_windows_by_kind() -> None:
    assert load_preset("gemma-2-9b").windows[:3] == (4096, None, 4096)
    assert load_preset("gemma-3-27b").layers_by_window() == {1024: 52, None: 10}
    assert load_preset("llama-4-scout").layers_by_window() == {8192: 36, None: 12}
    assert load_preset("mistral-7b").layers_by_window() == {4096: 32}
    assert load_preset("qwen2.5-7b").windows == ()
    qwen = TINY | {"model_type": "qwen2", "sliding_window": 8, "use_sliding_window": True, "max_window_layers": 3}
    assert ModelShape.from_hf(qwen).windows == (None, None, None, 8)


def test_a_multimodal_config_gives_its_text_tower() -> None:
    nested = {"model_type": "gemma3", "text_config": {**TINY, "model_type": "gemma3_text", "sliding_window": 8}}
    assert ModelShape.from_hf(nested).windows == (8,) * 4


def test_a_config_file_is_read_without_weights(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(TINY))
    assert read_config(path) == ModelShape.from_hf(TINY)
    path.write_text("{")
    with pytest.raises(InputError, match="is no model config"):
        read_config(path)
    path.write_text(json.dumps({**TINY, "hidden_size": "wide"}))
    with pytest.raises(InputError, match="wrong kind"):
        read_config(path)


def test_an_unknown_preset_comes_with_a_suggestion() -> None:
    with pytest.raises(InputError, match="did you mean 'llama-3-8b'"):
        load_preset("llama-3-8")


# ---- experts ---------------------------------------------------------------------------------------------------------

MIXTRAL, DEEPSEEK = load_preset("mixtral-8x7b"), load_preset("deepseek-v3")


def named(operators: list[Operator], name: str) -> Operator:
    return next(operator for operator in operators if operator.name == name)


def test_one_token_reads_its_experts_and_a_batch_nearly_all() -> None:
    expert = 3 * 4096 * 14336 * 2 * 32
    reads = [named(decode(MIXTRAL, BF16, batch=batch, context=10), "experts").weight_bytes for batch in (1, 2, 64)]
    assert reads[0] == pytest.approx(2 * expert)
    assert reads[1] == pytest.approx(8 * (1 - 0.75**2) * expert)
    assert reads[2] == pytest.approx(8 * expert, rel=1e-6)


def test_every_token_computes_with_its_experts_only() -> None:
    work = named(prefill(MIXTRAL, BF16, batch=3, tokens=100), "experts")
    assert work.flops == pytest.approx(2 * 300 * 2 * 3 * 4096 * 14336 * 32)


def test_the_experts_hit_are_those_of_a_simulation() -> None:
    draw, tokens = torch.Generator().manual_seed(0), 40
    hits = [len({int(e) for _ in range(tokens) for e in torch.randperm(64, generator=draw)[:6]}) for _ in range(60)]
    work = experts("x", tokens, (1, 1, 1, 64, 6), Precision(weight=1.0))
    assert work.weight_bytes == pytest.approx(sum(hits) / len(hits), rel=0.01)


def test_expert_parallel_devices_share_what_all_their_tokens_hit() -> None:
    alone = experts("x", 64, (1, 1, 3, 256, 8), BF16)
    shared = experts("x", 8, (1, 1, 3, 256, 8), BF16, devices=8)
    assert shared.weight_bytes == pytest.approx(alone.weight_bytes / 8)
    assert shared.flops == pytest.approx(alone.flops / 8)


# ---- latent attention ------------------------------------------------------------------------------------------------


def test_latent_attention_reads_one_latent_per_token() -> None:
    step = decode(DEEPSEEK, BF16, batch=2, context=1000)
    assert named(step, "attention").kv_bytes == 61 * 2 * 1000 * (512 + 64) * 2
    assert DEEPSEEK.kv_bytes_per_token(BF16) == 61 * 576 * 2


def test_decode_absorbs_and_prefill_expands() -> None:
    """The card's terms: 2 B n S (2r + e) + 2 B n r (p + v) absorbed; 2 n (p + e + v) per pair, and K and V made."""
    dims = (512, 64, 128, 128)
    one = latent_attention(AttentionShape(3, 1, 999, 16, 16, 128), dims, BF16)
    assert named(one, "attention").flops == 2 * 3 * 16 * 1000 * (2 * 512 + 64)
    assert named(one, "kv_b_proj").flops == 2 * 3 * 16 * 512 * 256
    whole = latent_attention(AttentionShape(3, 1000, 0, 16, 16, 128), dims, BF16)
    assert named(whole, "attention").flops == 2 * 3 * 16 * causal_pairs(1000, 0) * (128 + 64 + 128)
    assert named(whole, "kv_b_proj").flops == 2 * 3 * 1000 * 16 * 512 * 256


def test_expanded_keys_and_values_move_and_are_made_again_for_every_chunk() -> None:
    """Absorbed, a query is r + e wide, its output r. Expanded, a pass makes K and V of all tokens before it."""
    dims, one = (512, 64, 128, 128), AttentionShape(3, 1, 999, 16, 16, 128)
    assert named(latent_attention(one, dims, BF16), "attention").activation_bytes == 3 * 16 * (512 + 64 + 512) * 2
    chunk = latent_attention(AttentionShape(3, 1000, 4000, 16, 16, 128), dims, BF16)
    assert named(chunk, "kv_b_proj").flops == 2 * 3 * 5000 * 16 * 512 * 256
    moved = 1000 * 16 * (128 + 64 + 128) + 5000 * 16 * (128 + 64 + 128)
    assert named(chunk, "attention").activation_bytes == 3 * moved * 2
    assert named(chunk, "attention").kv_bytes == 3 * 5000 * (512 + 64) * 2


def test_one_token_reads_every_weight_of_a_latent_model_once() -> None:
    lite = load_preset("deepseek-v2-lite")
    read = sum(op.weight_bytes for op in decode(lite, BF16, batch=1, context=1)) / 2
    mixture = lite.experts
    idle = mixture.layers * (mixture.count - mixture.per_token) * 3 * lite.hidden * mixture.intermediate
    unread = (lite.vocab - 1) * lite.hidden + lite.layers * 512 + idle  # embedding rows, latent norms, other experts
    assert read == pytest.approx(lite.parameters - unread, rel=1e-12)
