"""Small random checkpoints in Hugging Face layout, made and judged by `transformers`."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import PreTrainedModel

from suite.models.attention import DenseAttention
from suite.models.decoder import Decoder
from suite.models.tokenizer import HFTokenizer

CONFIGS = {
    "llama": transformers.LlamaConfig,
    "mistral": transformers.MistralConfig,
    "qwen2": transformers.Qwen2Config,
    "qwen3": transformers.Qwen3Config,
    "gemma2": transformers.Gemma2Config,
    "gemma3": transformers.Gemma3TextConfig,
}
# Odd widths on purpose: nothing may depend on multiples of a vector.
SHAPE = {
    "vocab_size": 131,
    "hidden_size": 64,
    "intermediate_size": 100,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": 130,
}


def random_model(kind: str, seed: int = 0, **fields: Any) -> PreTrainedModel:
    """A random `transformers` model in fp32, with logits of a few units, so that an absolute error means something."""
    config = CONFIGS[kind](**SHAPE | fields, attn_implementation="eager")
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.uniform_(-0.3, 0.3).add_(0.0 if kind.startswith("gemma") else 1.0)
            else:
                parameter.normal_(std=0.2)
    return model


def save(model: PreTrainedModel, directory: Path, **options: Any) -> Path:
    """Writes config.json and safetensors as a user's checkpoint would have them."""
    model.save_pretrained(directory, **options)
    return directory


def random_ids(length: int, vocab: int = 131, seed: int = 1) -> Tensor:
    """Token ids [length]."""
    return torch.randint(0, vocab, (length,), generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def reference_logits(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """fp32 logits [T, vocab] of `transformers`, from one pass without a cache."""
    return model(ids[None], use_cache=False).logits[0]


@torch.inference_mode()
def our_logits(decoder: Decoder, ids: Tensor, chunks: Iterable[int]) -> Tensor:
    """Logits [T, vocab] of one row fed in chunks of these sizes, with a cache that starts too small."""
    cache, attention = decoder.new_cache(1, 0), DenseAttention(decoder.config)
    parts = ids[None].split(list(chunks), dim=1)
    return torch.cat([decoder(part, cache, attention, logits="all")[0] for part in parts])


def equal_chunks(length: int, size: int) -> list[int]:
    """`length` cut into pieces of `size`, the last one shorter."""
    return [min(size, length - start) for start in range(0, length, size)]


TEXT = "the quick brown fox jumps over the lazy dog and then\nthe other dog sleeps under the old brown tree\n"
TEMPLATE = (
    "{% for message in messages %}<|begin|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|begin|>assistant\n{% endif %}"
)


def tiny_tokenizer() -> HFTokenizer:
    """Byte-level BPE of 300 tokens, 0 = begin, 1 = end; prompts begin with 0."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator([TEXT], trainer)
    backend.post_processor = processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", 0)])
    return HFTokenizer(backend, TEMPLATE, {"bos_token": "<|begin|>", "eos_token": "<|end|>"})


class RecordingMeter:
    """A meter that keeps time stamps and the order of events."""

    counting = False

    def __init__(self) -> None:
        self.started: dict[str, int] = {}
        self.stamps: dict[str, list[int]] = {}
        self.phases: list[str] = []
        self.steps: list[tuple[int, int]] = []

    def start(self, request_id: str, prompt_tokens: int) -> None:
        self.started[request_id], self.stamps[request_id] = time.perf_counter_ns(), []

    def token(self, request_id: str, token_id: int) -> None:
        self.stamps[request_id].append(time.perf_counter_ns())

    def times(self, request_id: str) -> tuple[int, tuple[int, ...]]:
        return self.started[request_id], tuple(self.stamps[request_id])

    def phase(self, name: str) -> None:
        self.phases.append(name)

    def step(self, tokens: int, context_tokens: int) -> None:
        self.steps.append((tokens, context_tokens))

    def attention(self, read: object) -> None:
        raise AssertionError("called in a timed run")

    def planned(self, index_bytes: int) -> None:
        pass

    def resident(self, kv_bytes: int, index_bytes: int, host_bytes: int = 0) -> None:
        raise AssertionError("called in a timed run")
