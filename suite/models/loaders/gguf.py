"""GGUF files (llama.cpp's format) of the Llama and Qwen2 architectures, dequantised by the `gguf` package."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import (
    MODEL_ARCH,
    GGUFReader,
    ReaderTensor,
    dequantize,
    get_tensor_name_map,
)
from torch import Tensor

from suite.errors import InputError
from suite.models.config import from_hf
from suite.models.language_model import LanguageModel
from suite.models.loaders.weights import Tensors, build, digest, hf_names
from suite.models.rope import frequencies
from suite.models.tokenizer import HFTokenizer
from suite.spec import Dtype

ARCHITECTURES = {"llama": ("LlamaForCausalLM", MODEL_ARCH.LLAMA), "qwen2": ("Qwen2ForCausalLM", MODEL_ARCH.QWEN2)}

# What `gguf` raises on damaged files: it reads through numpy views and checks little itself.
_DAMAGE = (ValueError, IndexError, KeyError, TypeError, OverflowError, OSError)


def load(path: Path, dtype: Dtype, name: str, origin: str) -> LanguageModel:
    """The model and tokenizer in one GGUF file."""
    file = GGUFFile(path)
    config = from_hf(file.document())
    decoder = build(config, file.tensors(), dtype, str(path))
    tokenizer = HFTokenizer.from_gguf(path, file.text("tokenizer.ggml.pre"))
    return LanguageModel(name, decoder, tokenizer, dtype, digest([path]), origin)


class GGUFFile:
    """One GGUF file, seen as a Hugging Face checkpoint: `document()` is its config.json, `tensors()` its weights."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._reader = GGUFReader(path)
            self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
            self._architecture = str(self._required("general.architecture"))
        except _DAMAGE as error:
            raise InputError(f"{path} is not a whole GGUF file (truncated or corrupt): {error}.") from error
        if self._architecture not in ARCHITECTURES:
            raise InputError(
                f"{path} holds a {self._architecture!r} model; GGUF files of {' and '.join(ARCHITECTURES)} can be read."
            )

    def text(self, key: str) -> str:
        """A metadata string; empty when the file has none of that name."""
        return str(self._field(key) or "")

    def _field(self, key: str) -> Any:
        field = self._reader.get_field(key)
        return None if field is None else field.contents()

    def _required(self, key: str) -> Any:
        value = self._field(key)
        if value is None:
            raise InputError(f"{self.path} has no metadata field {key!r}.")
        return value

    def _number(self, key: str) -> Any:
        """A field of the architecture, such as `llama.block_count`."""
        value = self._required(f"{self._architecture}.{key}")
        if isinstance(value, list):
            raise InputError(f"{self.path} has one {key} for every layer, which the decoder does not support.")
        return value

    def document(self) -> dict[str, Any]:
        """The metadata as the dictionary of a Hugging Face config.json."""
        key = self._architecture
        hidden, heads = self._number("embedding_length"), self._number("attention.head_count")
        document = {
            "architectures": [ARCHITECTURES[key][0]],
            "model_type": key,
            "hidden_size": hidden,
            "intermediate_size": self._number("feed_forward_length"),
            "num_hidden_layers": self._number("block_count"),
            "num_attention_heads": heads,
            "num_key_value_heads": self._field(f"{key}.attention.head_count_kv") or heads,
            "head_dim": self._head_dim(hidden, heads),
            "max_position_embeddings": self._number("context_length"),
            "rms_norm_eps": self._number("attention.layer_norm_rms_epsilon"),
            "rope_theta": self._field(f"{key}.rope.freq_base") or 10000.0,
            "vocab_size": len(self._tensor("token_embd.weight").data),
            "tie_word_embeddings": "output.weight" not in self._tensors,
            "attention_bias": "blk.0.attn_q.bias" in self._tensors,
            "eos_token_id": self._end_tokens(),
        }
        return document | {"rope_scaling": self._rope_scaling(document)}

    def _head_dim(self, hidden: int, heads: int) -> int:
        fields = ("attention.key_length", "rope.dimension_count")
        stated = (self._field(f"{self._architecture}.{field}") for field in fields)
        return int(next((value for value in stated if value), hidden // heads))

    def _end_tokens(self) -> list[int]:
        ids = (self._field(f"tokenizer.ggml.{kind}_token_id") for kind in ("eos", "eot"))
        return sorted({int(value) for value in ids if value is not None})

    def _rope_scaling(self, document: dict[str, Any]) -> dict[str, Any] | None:
        """Linear and YaRN scaling are metadata; Llama 3 files hold the factor of every frequency instead."""
        if "rope_freqs.weight" in self._tensors:
            return self._llama3_scaling(document)
        prefix = f"{self._architecture}.rope.scaling"
        kind = self._field(f"{prefix}.type")
        if kind in (None, "none"):
            return None
        scaling = {
            "rope_type": kind,
            "factor": self._required(f"{prefix}.factor"),
            "original_max_position_embeddings": self._field(f"{prefix}.original_context_length"),
            "attention_factor": self._field(f"{prefix}.attn_factor"),
        }
        return {name: value for name, value in scaling.items() if value is not None}

    def _llama3_scaling(self, document: dict[str, Any]) -> dict[str, Any]:
        """The parameters of all Llama 3.x releases, checked against the factors the file holds."""
        stored = _dequantised(self._tensor("rope_freqs.weight"))
        scaling = {
            "rope_type": "llama3",
            "factor": float(stored.max()),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
        plain, scaled = (from_hf(document | {"rope_scaling": rope}) for rope in (None, scaling))
        base, slowed = (frequencies(c.rope, c.head_dim, c.window)[0] for c in (plain, scaled))
        if stored.shape != base.shape or not torch.allclose(base / slowed, stored, rtol=1e-3):
            raise InputError(f"{self.path} scales its rotary frequencies in a way the decoder does not have.")
        return scaling

    def tensors(self) -> Tensors:
        """Hugging Face names to readers. A tensor the architecture does not have keeps its GGUF name."""
        config = from_hf(self.document())
        names = get_tensor_name_map(ARCHITECTURES[self._architecture][1], config.layers)
        rest = {name: self._reading(name) for name in self._tensors if name != "rope_freqs.weight"}
        found: dict[str, Callable[[], Tensor]] = {}
        for hf_name in hf_names(config):
            stored = names.get_name(hf_name, try_suffixes=(".weight", ".bias"))
            if stored in rest:
                read = rest.pop(stored)
                heads = {"attn_q": config.heads, "attn_k": config.kv_heads}.get(stored.split(".")[-2], 0)
                found[hf_name] = self._unpermuted(read, heads) if heads else read
        return found | rest

    def _unpermuted(self, read: Callable[[], Tensor], heads: int) -> Callable[[], Tensor]:
        """llama.cpp stores the rows of Llama's q and k in interleaved-rotation order; Qwen2's it leaves alone."""
        if self._architecture != "llama":
            return read

        def undone() -> Tensor:
            rows = read()
            return rows.view(heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)

        return undone

    def _tensor(self, name: str) -> ReaderTensor:
        if name not in self._tensors:
            raise InputError(f"{self.path} has no tensor {name!r}.")
        return self._tensors[name]

    def _reading(self, name: str) -> Callable[[], Tensor]:
        def read() -> Tensor:
            try:
                return _dequantised(self._tensors[name])
            except NotImplementedError as error:
                kind = self._tensors[name].tensor_type.name
                raise InputError(f"{self.path}: tensor {name!r} is stored as {kind}, which cannot be read.") from error

        return read


def _dequantised(tensor: ReaderTensor) -> Tensor:
    """fp32 [rows, columns]; the copy makes memory mapped from the file our own and writable."""
    return torch.from_numpy(np.array(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))
