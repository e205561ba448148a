"""From named Hugging Face tensors to a `Decoder`: every loader ends here, so the name mapping exists once."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from suite.errors import InputError
from suite.models.config import ModelConfig
from suite.models.decoder import Decoder, RMSNorm
from suite.spec import Dtype

TORCH_DTYPES: Mapping[Dtype, torch.dtype] = {"bf16": torch.bfloat16, "fp32": torch.float32}

Tensors = Mapping[str, Callable[[], Tensor]]
"""Hugging Face tensor names and how to read each; nothing is read before it is asked for."""

_TOP = {"embedding": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
_LAYER = {
    "attention_norm": ("input_layernorm",),
    "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "attention.out": ("self_attn.o_proj",),
    "attention.q_norm": ("self_attn.q_norm",),
    "attention.k_norm": ("self_attn.k_norm",),
    "mlp_norm": ("post_attention_layernorm",),
    "mlp.gate_up": ("mlp.gate_proj", "mlp.up_proj"),
    "mlp.down": ("mlp.down_proj",),
}
_GEMMA_LAYER = _LAYER | {
    "post_attention_norm": ("post_attention_layernorm",),
    "mlp_norm": ("pre_feedforward_layernorm",),
    "post_mlp_norm": ("post_feedforward_layernorm",),
}


def source_names(name: str, config: ModelConfig) -> tuple[str, ...]:
    """The Hugging Face tensors whose rows, one after the other, are our parameter `name`."""
    module, _, leaf = name.rpartition(".")
    if not module.startswith("layers."):
        return (f"{_TOP[module]}.{leaf}",)
    _, layer, inner = module.split(".", 2)
    table = _GEMMA_LAYER if config.post_norms else _LAYER
    return tuple(f"model.layers.{layer}.{source}.{leaf}" for source in table[inner])


def hf_names(config: ModelConfig) -> list[str]:
    """All tensors a checkpoint of this shape has, by their Hugging Face names."""
    return [source for name, _ in _empty(config).named_parameters() for source in source_names(name, config)]


def build(config: ModelConfig, tensors: Tensors, dtype: Dtype, where: str) -> Decoder:
    """A decoder with its own copy of the weights in `dtype`, norms in fp32; one source tensor is read at a time.

    Raises `InputError` for a missing, unexpected or wrongly shaped tensor. `where` names the checkpoint in messages.
    """
    decoder = _empty(config)
    needed = {name: source_names(name, config) for name, _ in decoder.named_parameters()}
    _check_names({source for sources in needed.values() for source in sources}, tensors, config, where)
    state = {}
    with _one_thread():
        for name, sources in needed.items():
            parameter = decoder.get_parameter(name)
            norm = isinstance(decoder.get_submodule(name.rpartition(".")[0]), RMSNorm)
            full = torch.empty(parameter.shape, dtype=torch.float32 if norm else TORCH_DTYPES[dtype])
            _fill(full, sources, tensors, config, where)
            if norm and config.post_norms:
                full += 1  # Gemma's checkpoints hold the distance of the norm weights from one
            state[name] = full
    return _assign(decoder, state)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Copying is bound by memory, and hundreds of small parallel copies wait for their threads on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _NoInit(TorchFunctionMode):
    """Skips random initialisation: on the meta device it does nothing, but its first call imports for a second."""

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is nn.init.normal_:
            return (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def _empty(config: ModelConfig) -> Decoder:
    with torch.device("meta"), _NoInit():
        return Decoder(config)


def _assign(decoder: Decoder, state: dict[str, Tensor]) -> Decoder:
    if decoder.config.tied:
        state["head.weight"] = state["embedding.weight"]
    decoder.load_state_dict(state, assign=True)
    if decoder.config.tied:
        decoder.head.weight = cast(nn.Parameter, decoder.embedding.weight)
    return decoder.requires_grad_(False).eval()


def _check_names(needed: set[str], tensors: Tensors, config: ModelConfig, where: str) -> None:
    # Old checkpoints store the rotary frequencies, and some store a tied output matrix a second time.
    ignored = {name for name in tensors if name.endswith("rotary_emb.inv_freq")}
    if config.tied:
        ignored.add("lm_head.weight")
    if missing := sorted(needed - tensors.keys()):
        raise InputError(f"{where} has no tensor {missing[0]!r} ({len(missing)} missing in all): {_cause(config)}.")
    if extra := sorted(tensors.keys() - needed - ignored):
        raise InputError(f"{where} has an unexpected tensor {extra[0]!r} ({len(extra)} in all): {_cause(config)}.")


def _cause(config: ModelConfig) -> str:
    return f"this is no plain {config.architecture} checkpoint of {config.layers} layers"


def rows(sources: Sequence[str], total: int, config: ModelConfig) -> list[int]:
    """How many rows each source contributes: q|k|v by their heads, gate|up half each."""
    if len(sources) == 3:
        return [config.heads * config.head_dim, *[config.kv_heads * config.head_dim] * 2]
    return [total // len(sources)] * len(sources)


def _fill(full: Tensor, sources: Sequence[str], tensors: Tensors, config: ModelConfig, where: str) -> None:
    parts = torch.split(full, rows(sources, len(full), config))
    for part, source in zip(parts, sources, strict=True):
        tensor = tensors[source]()
        if tensor.shape != part.shape:
            raise InputError(
                f"{where}: tensor {source!r} has shape {list(tensor.shape)}, its config asks for {list(part.shape)}."
            )
        part.copy_(tensor)


def digest(files: Sequence[Path]) -> str:
    """sha256 over what `sha256sum` prints for these files (bare names, sorted), so that anyone can redo it."""
    combined = hashlib.sha256()
    for path in sorted(files, key=lambda path: path.name):
        with path.open("rb") as stream:
            combined.update(f"{hashlib.file_digest(stream, 'sha256').hexdigest()}  {path.name}\n".encode())
    return combined.hexdigest()
