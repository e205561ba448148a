"""A trained `Decoder` as a plain Hugging Face directory: the inverse of the loader, by the loader's own name table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from suite.models.config import ModelConfig
from suite.models.decoder import Decoder
from suite.models.loaders.weights import source_names
from suite.models.tokenizer import HFTokenizer


def save_llama(decoder: Decoder, tokenizer: HFTokenizer, directory: Path) -> None:
    """Writes config.json, model.safetensors (in the decoder's dtype) and the tokenizer's files."""
    if decoder.config.architecture != "llama":
        raise ValueError(f"only the llama architecture is exported, not {decoder.config.architecture}")
    document = json.dumps(_hf_config(decoder.config, decoder.dtype), indent=2)
    (directory / "config.json").write_text(document + "\n", encoding="utf-8")
    save_file(dict(_hf_tensors(decoder)), directory / "model.safetensors", metadata={"format": "pt"})
    tokenizer.save(directory)


def _hf_config(config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
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
        "dtype": str(dtype).removeprefix("torch."),
    }


def _hf_tensors(decoder: Decoder) -> Iterator[tuple[str, Tensor]]:
    """Weights by their Hugging Face names, fused q|k|v and gate|up matrices taken apart; a tied head is left out."""
    config = decoder.config
    for name, parameter in decoder.named_parameters():
        sources = source_names(name, config)
        heads = [config.heads, config.kv_heads, config.kv_heads] if len(sources) == 3 else [1] * len(sources)
        parts = torch.split(parameter.detach(), [len(parameter) // sum(heads) * h for h in heads])
        yield from ((source, part.contiguous()) for source, part in zip(sources, parts, strict=True))
