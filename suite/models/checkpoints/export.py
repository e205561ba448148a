"""A trained `Decoder` as a plain Hugging Face directory: the inverse of the loader, for the plain Llama architecture."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from suite.models.config import ModelConfig
from suite.models.decoder import Decoder, Layer


def save_llama(decoder: Decoder, tokenizer: Tokenizer, tokenizer_config: dict[str, Any], directory: Path) -> None:
    """Writes config.json, model.safetensors (in the decoder's dtype), tokenizer.json and tokenizer_config.json."""
    if decoder.config.architecture != "llama":
        raise ValueError(f"only the llama architecture is exported, not {decoder.config.architecture}")
    _write_json(directory / "config.json", _hf_config(decoder.config))
    _write_json(directory / "tokenizer_config.json", tokenizer_config)
    save_file(dict(_hf_tensors(decoder)), directory / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(str(directory / "tokenizer.json"))


def _write_json(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _hf_config(config: ModelConfig) -> dict[str, Any]:
    """The fields `transformers.LlamaConfig` and our own `from_hf` read."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": config.hidden,
        "intermediate_size": config.intermediate,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "vocab_size": config.vocab,
        "max_position_embeddings": config.window,
        "rms_norm_eps": config.rms_eps,
        "rope_parameters": {"rope_type": config.rope.kind, "rope_theta": config.rope.theta},
        "tie_word_embeddings": config.tied,
        "attention_bias": False,
        "mlp_bias": False,
        "eos_token_id": list(config.eos_ids),
        "dtype": "float32",
    }


def _hf_tensors(decoder: Decoder) -> Iterator[tuple[str, Tensor]]:
    """Weights by their Hugging Face names, the fused q|k|v and gate|up matrices taken apart."""
    state = decoder.state_dict()
    yield "model.embed_tokens.weight", state["embedding.weight"]
    yield "model.norm.weight", state["norm.weight"]
    if not decoder.config.tied:
        yield "lm_head.weight", state["head.weight"]
    for index, layer in enumerate(decoder.layers):
        assert isinstance(layer, Layer)
        yield from ((f"model.layers.{index}.{name}.weight", weight) for name, weight in _layer_tensors(layer))


def _layer_tensors(layer: Layer) -> Iterator[tuple[str, Tensor]]:
    q, k, v = layer.attention.qkv.weight.detach().split(layer.attention.sizes)
    gate, up = layer.mlp.gate_up.weight.detach().chunk(2)
    yield "input_layernorm", layer.attention_norm.weight.detach()
    yield "self_attn.q_proj", q.contiguous()
    yield "self_attn.k_proj", k.contiguous()
    yield "self_attn.v_proj", v.contiguous()
    yield "self_attn.o_proj", layer.attention.out.weight.detach()
    yield "post_attention_layernorm", layer.mlp_norm.weight.detach()
    yield "mlp.gate_proj", gate.contiguous()
    yield "mlp.up_proj", up.contiguous()
    yield "mlp.down_proj", layer.mlp.down.weight.detach()
