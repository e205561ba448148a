"""A tiny random decoder with a character tokenizer, for tests of methods that need no trained model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from suite.methods.attention.base import AttentionMethod, MeteredAttention, SelectedAttention
from suite.models.attention import Step
from suite.models.cache import KVCache
from suite.models.config import ModelConfig
from suite.models.decoder import Decoder
from suite.models.language_model import LanguageModel
from suite.models.recipes import RECIPES

CONFIG = ModelConfig("llama", 3, 64, 128, 4, 2, 16, 128, 512)


def fresh_adapter(recipe: str, model: LanguageModel) -> nn.Module:
    """What `adapters.load` gives, untrained: the same in every test."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module: nn.Module = RECIPES.load(recipe)(model).build()
    return module.requires_grad_(False).eval()


class LargestTensor(TorchDispatchMode):
    """Remembers the most elements any operation produced."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for item in out if isinstance(out, tuple | list) else (out,):
            if isinstance(item, Tensor):
                self.elements = max(self.elements, item.numel())
        return out


class CharTokenizer:
    """One id per ASCII character."""

    def encode(self, text: str) -> list[int]:
        return [ord(c) % 128 for c in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(i) for i in ids)

    def prompt(self, text: str, chat: bool) -> list[int]:
        return self.encode(text)


def tiny_model(config: ModelConfig = CONFIG, dtype: torch.dtype = torch.float32, seed: int = 0) -> LanguageModel:
    torch.manual_seed(seed)
    decoder = Decoder(config).cast_weights(dtype)
    return LanguageModel("tiny", decoder, CharTokenizer(), "fp32" if dtype == torch.float32 else "bf16", "none", "test")


def project(tokens: int, seed: int = 0, model: ModelConfig = CONFIG) -> tuple[Tensor, Tensor, Tensor]:
    """Random raw q [1, T, H, D], k and v [1, T, G, D]."""
    generator = torch.Generator().manual_seed(seed)
    shape = (1, tokens, model.heads + 2 * model.kv_heads, model.head_dim)
    return torch.randn(shape, generator=generator).split([model.heads, model.kv_heads, model.kv_heads], dim=2)


def run_layer(
    method: AttentionMethod, config: object, q: Tensor, k: Tensor, v: Tensor, chunk: int, model: ModelConfig = CONFIG
) -> Tensor:
    """Layer 0 of a method over raw projections [1, T, ...], `chunk` tokens per pass."""
    cache = KVCache(model, 1, q.dtype)
    attention, parts = selected(method, config, model), []
    for start in range(0, q.shape[1], chunk):
        piece = [x[:, start : start + chunk].clone() for x in (q, k, v)]
        width = piece[0].shape[1]
        attention.begin(cache, [width])
        cache.reserve(cache.lengths[0] + width)
        parts.append(attention(0, *piece, Step(cache, [width], width)))
        cache.advance([width])
    return torch.cat(parts, dim=1)


def logits_of(decoder: Decoder, attention: MeteredAttention, tokens: torch.Tensor, chunk: int) -> torch.Tensor:
    """Logits [B, T, vocab] of tokens [B, T] fed `chunk` at a time."""
    cache = decoder.new_cache(tokens.shape[0], 0)
    with torch.inference_mode():
        parts = [
            decoder(tokens[:, i : i + chunk], cache, attention, logits="all") for i in range(0, tokens.shape[1], chunk)
        ]
    return torch.cat(parts, dim=1)


def selected(method: AttentionMethod, config: object, model: ModelConfig = CONFIG, batch: int = 1) -> SelectedAttention:
    method.begin_batch(model, config, batch)
    return SelectedAttention(model, method)
