"""`ModelConfig`: shape and architectural switches of a Llama-family decoder, read from a Hugging Face config."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from suite.errors import InputError

RopeKind = Literal["default", "linear", "dynamic", "yarn", "llama3"]
Activation = Literal["silu", "gelu_tanh"]

ROPE_FIELDS: Mapping[str, tuple[str, ...]] = {
    "default": (),
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
}

ARCHITECTURES = {
    "LlamaForCausalLM": "llama",
    "MistralForCausalLM": "mistral",
    "Qwen2ForCausalLM": "qwen2",
    "Qwen3ForCausalLM": "qwen3",
    "Gemma2ForCausalLM": "gemma2",
    "Gemma3ForCausalLM": "gemma3",
}


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding of one kind of layer; `parameters` are the fields of the HF `rope_parameters` of that kind."""

    kind: RopeKind = "default"
    theta: float = 10000.0
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelConfig:
    """Everything the decoder needs to know. `windows[l]` is layer l's sliding window in tokens, `None` if full.

    `window` is the trained context length in tokens. Gemma's norms multiply by 1 + w: loaders add the 1 once.
    """

    architecture: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    window: int
    rms_eps: float = 1e-5
    tied: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    activation: Activation = "silu"
    embedding_scale: float = 1.0
    attention_scale: float = 0.0
    attention_softcap: float = 0.0
    logit_softcap: float = 0.0
    windows: tuple[int | None, ...] = ()
    rope: RopeConfig = field(default_factory=RopeConfig)
    local_rope: RopeConfig | None = None
    eos_ids: tuple[int, ...] = ()

    @property
    def scale(self) -> float:
        """Factor on the attention logits, 1/sqrt(head_dim) unless the architecture says otherwise."""
        return self.attention_scale or 1.0 / math.sqrt(self.head_dim)

    @property
    def group(self) -> int:
        """Query heads per KV head (g = H / G)."""
        return self.heads // self.kv_heads

    def sliding(self, layer: int) -> int | None:
        """Sliding window of one layer in tokens (the query's own position included), or `None`."""
        return self.windows[layer] if self.windows else None

    def rope_of(self, layer: int) -> RopeConfig:
        """The rotary embedding of one layer: Gemma 3 gives its sliding layers a base of their own."""
        return self.local_rope if self.local_rope is not None and self.sliding(layer) is not None else self.rope

    @property
    def attention_flops_per_pair(self) -> int:
        """FLOPs of one query and one key in all heads of all layers."""
        return 4 * self.layers * self.heads * self.head_dim

    @property
    def matrix_weights(self) -> int:
        """Weights that every token is multiplied with: the matrices of all layers, and the head."""
        attention = 2 * self.hidden * self.head_dim * (self.heads + self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.intermediate) + self.hidden * self.vocab

    def flops(self, tokens: float, behind: float) -> float:
        """FLOPs of feeding `tokens` tokens behind `behind` others, all with logits (`_verifiers.md`, section 4)."""
        pairs = tokens * behind + tokens * (tokens + 1) / 2
        return 2 * self.matrix_weights * tokens + self.attention_flops_per_pair * pairs

    def kv_bytes_per_token(self, element_bytes: int) -> int:
        """Bytes of keys and values that one token adds to a full cache, over all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * element_bytes


def _rope(parameters: Mapping[str, Any], theta: float, window: int) -> RopeConfig:
    kind = str(parameters.get("rope_type", parameters.get("type", "default")))
    if kind not in ROPE_FIELDS:
        raise InputError(f"rope type {kind!r} is not supported; known: {', '.join(ROPE_FIELDS)}.")
    for name in ROPE_FIELDS[kind]:
        float(parameters[name])  # a missing or unusable field is refused here, not in the middle of a run
    stated = {name: value for name, value in parameters.items() if value is not None}
    rest = {"original_max_position_embeddings": window, **stated}
    return RopeConfig(kind, float(parameters.get("rope_theta") or theta), rest)  # type: ignore[arg-type]


def _ropes(document: Mapping[str, Any], architecture: str) -> tuple[RopeConfig, RopeConfig | None]:
    """Global and (Gemma 3) local rotary settings; reads transformers 4's `rope_scaling` and 5's `rope_parameters`."""
    window = int(document["max_position_embeddings"])
    gemma3 = architecture == "gemma3"
    theta = float(document.get("rope_theta") or (1e6 if gemma3 else 1e4))
    parameters = document.get("rope_parameters") or document.get("rope_scaling") or {}
    if "full_attention" in parameters:
        per_kind = {kind: _rope(value, theta, window) for kind, value in parameters.items()}
        return per_kind["full_attention"], per_kind.get("sliding_attention")
    local = RopeConfig(theta=float(document.get("rope_local_base_freq") or 1e4)) if gemma3 else None
    return _rope(parameters, theta, window), local


def _windows(document: Mapping[str, Any], architecture: str, layers: int) -> tuple[int | None, ...]:
    window = document.get("sliding_window")
    qwen = architecture.startswith("qwen")
    if not window or architecture == "llama" or (qwen and not document.get("use_sliding_window")):
        return ()
    if kinds := document.get("layer_types"):
        return tuple(int(window) if kind == "sliding_attention" else None for kind in kinds)
    if architecture == "gemma2":
        return tuple(int(window) if layer % 2 == 0 else None for layer in range(layers))
    if architecture == "gemma3":
        period = int(document.get("sliding_window_pattern") or 6)
        return tuple(int(window) if (layer + 1) % period else None for layer in range(layers))
    first = int(document["max_window_layers"]) if qwen else 0
    return tuple(int(window) if layer >= first else None for layer in range(layers))


def _eos(value: object) -> tuple[int, ...]:
    if value is None:
        return ()
    return tuple(value) if isinstance(value, list | tuple) else (int(value),)  # type: ignore[call-overload]


def _activation(document: Mapping[str, Any], gemma: bool) -> Activation:
    expected = "gelu_pytorch_tanh" if gemma else "silu"
    named = document.get("hidden_activation") or document.get("hidden_act") or expected
    if named != expected:
        raise InputError(f"activation {named!r} is not supported for this architecture; known: {expected}.")
    return "gelu_tanh" if gemma else "silu"


def _switches(document: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    """The fields in which the architectures differ."""
    gemma = architecture.startswith("gemma")
    hidden = int(document["hidden_size"])
    scalar = document.get("query_pre_attn_scalar") if gemma else None
    return {
        "qkv_bias": architecture == "qwen2" or bool(document.get("attention_bias")),
        "output_bias": architecture != "qwen2" and bool(document.get("attention_bias")),
        "qk_norm": architecture in ("qwen3", "gemma3"),
        "post_norms": gemma,
        "activation": _activation(document, gemma),
        "embedding_scale": math.sqrt(hidden) if gemma else 1.0,
        "attention_scale": 1.0 / math.sqrt(float(scalar)) if scalar else 0.0,
        "attention_softcap": float(document.get("attn_logit_softcapping") or 0.0),
        "logit_softcap": float(document.get("final_logit_softcapping") or 0.0),
        "tied": bool(document.get("tie_word_embeddings", gemma)),
    }


def from_hf(document: Mapping[str, Any]) -> ModelConfig:
    """A `ModelConfig` from the dictionary of a Hugging Face `config.json`.

    Raises `InputError` for an architecture or rope type the decoder does not have, or a missing field.
    """
    names = document.get("architectures") or ["none"]
    if names[0] not in ARCHITECTURES:
        raise InputError(f"architecture {names[0]!r} is not supported; known: {', '.join(ARCHITECTURES)}.")
    architecture = ARCHITECTURES[names[0]]
    try:
        heads, layers = int(document["num_attention_heads"]), int(document["num_hidden_layers"])
        rope, local_rope = _ropes(document, architecture)
        config = ModelConfig(
            architecture=architecture,
            layers=layers,
            hidden=int(document["hidden_size"]),
            intermediate=int(document["intermediate_size"]),
            heads=heads,
            kv_heads=int(document.get("num_key_value_heads") or heads),
            head_dim=int(document.get("head_dim") or int(document["hidden_size"]) // heads),
            vocab=int(document["vocab_size"]),
            window=int(document["max_position_embeddings"]),
            rms_eps=float(document.get("rms_norm_eps") or 1e-6),
            windows=_windows(document, architecture, layers),
            rope=rope,
            local_rope=local_rope,
            eos_ids=_eos(document.get("eos_token_id")),
            **_switches(document, architecture),
        )
    except KeyError as missing:
        raise InputError(f"the model's config.json has no field {missing}.") from missing
    except (TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise InputError(f"the model's config.json has a field of the wrong kind: {error}.") from error
    if config.kv_heads < 1 or config.heads % config.kv_heads or config.head_dim % 2:
        raise InputError(
            f"the model's config.json has {config.heads} query heads, {config.kv_heads} KV heads and a head dimension "
            f"of {config.head_dim}: the first must be a multiple of the second, the third even."
        )
    return config
