"""GGUF files written as llama.cpp writes them load into the model they came from, at the precision they store."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind
from transformers import PreTrainedModel

from suite.errors import InputError
from suite.models.loaders import load_model
from suite.models.loaders.gguf import GGUFFile
from tests.models.small import TEMPLATE, our_logits, random_ids, random_model, reference_logits, tiny_tokenizer

HEADS, KV_HEADS = 4, 2
SHAPE = {"vocab_size": 300, "intermediate_size": 96, "head_dim": 16, "num_hidden_layers": 2}
KINDS = [Kind.F32, Kind.F16, Kind.BF16, Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0]
SCALED = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


def permuted(weights: np.ndarray, heads: int) -> np.ndarray:
    """llama.cpp `convert_hf_to_gguf.py`, LlamaModel.permute."""
    shape = (heads, 2, weights.shape[0] // heads // 2, *weights.shape[1:])
    return weights.reshape(shape).swapaxes(1, 2).reshape(weights.shape)


def add_metadata(writer: gguf.GGUFWriter, model: PreTrainedModel) -> None:
    config = model.config
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])


def add_tokenizer(writer: gguf.GGUFWriter) -> None:
    backend = tiny_tokenizer().backend
    vocabulary = sorted(backend.get_vocab(), key=backend.get_vocab().get)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(vocabulary)
    writer.add_token_types([control if token.startswith("<|") else normal for token in vocabulary])
    writer.add_token_merges([" ".join(merge) for merge in json.loads(backend.to_str())["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_add_bos_token(True)
    writer.add_chat_template(TEMPLATE)


def store(writer: gguf.GGUFWriter, name: str, weights: np.ndarray, kind: Kind) -> np.ndarray:
    """Writes one tensor (vectors stay fp32, as in llama.cpp) and returns what a reader should get."""
    kind = Kind.F32 if weights.ndim == 1 else kind
    data = gguf.quants.quantize(weights, kind)
    writer.add_tensor(name, data, raw_dtype=kind)
    return gguf.quants.dequantize(data, kind).reshape(weights.shape)


def write(path: Path, model: PreTrainedModel, kind: Kind, *, tokenizer: bool = True, skip: str = "") -> Path:
    """Writes `model` as GGUF and rounds its own weights to what the file holds."""
    architecture = model.config.model_type
    writer = gguf.GGUFWriter(path, architecture)
    add_metadata(writer, model)
    if tokenizer:
        add_tokenizer(writer)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH[architecture.upper()], model.config.num_hidden_layers)
    for hf_name, parameter in model.named_parameters():
        name = names.get_name(hf_name, try_suffixes=(".weight", ".bias"))
        heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(name.split(".")[-2], 0) if architecture == "llama" else 0
        weights = parameter.detach().numpy()
        rounded = store(writer, name, permuted(weights, heads) if heads else weights, kind) if name != skip else weights
        back = rounded.reshape(heads, -1, 2, *weights.shape[1:]).swapaxes(1, 2) if heads else rounded
        parameter.data = torch.tensor(back.reshape(weights.shape))
    if model.config.rope_parameters["rope_type"] == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_factors())
    finish(writer)
    return path


def finish(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def llama3_factors(theta: float = 10000.0, dim: int = 16) -> np.ndarray:
    """The factors llama.cpp's converter stores for Llama 3.1 (`generate_extra_tensors`)."""
    factors = []
    for frequency in 1.0 / theta ** (np.arange(0, dim, 2) / dim):
        wavelength = 2 * np.pi / frequency
        if wavelength < 8192 / 4.0:
            factors.append(1.0)
        elif wavelength > 8192 / 1.0:
            factors.append(8.0)
        else:
            smooth = (8192 / wavelength - 1.0) / (4.0 - 1.0)
            factors.append(1 / ((1 - smooth) / 8.0 + smooth))
    return np.array(factors, dtype=np.float32)


def gguf_model(kind: str, **fields: Any) -> PreTrainedModel:
    return random_model(kind, **SHAPE | fields)


def assert_same_logits(path: Path, model: PreTrainedModel) -> None:
    ids = random_ids(40, vocab=300)
    found = our_logits(load_model(str(path), "fp32").decoder, ids, [40])
    torch.testing.assert_close(found, reference_logits(model, ids), atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
@pytest.mark.parametrize("architecture", ["llama", "qwen2"])
def test_logits_are_those_of_the_dequantised_weights(architecture: str, kind: Kind, tmp_path: Path) -> None:
    model = gguf_model(architecture, tie_word_embeddings=kind is Kind.Q8_0)
    assert_same_logits(write(tmp_path / "m.gguf", model, kind), model)


def test_biases_are_permuted_with_their_rows(tmp_path: Path) -> None:
    model = gguf_model("llama", attention_bias=True)
    assert_same_logits(write(tmp_path / "m.gguf", model, Kind.F32), model)


def test_llama3_frequencies(tmp_path: Path) -> None:
    rope = {**SCALED, "rope_theta": 10000.0, "original_max_position_embeddings": 8192}
    model = gguf_model("llama", rope_parameters=rope, max_position_embeddings=16384)
    path = write(tmp_path / "m.gguf", model, Kind.F32)
    assert GGUFFile(path).document()["rope_scaling"]["factor"] == 8.0
    assert_same_logits(path, model)


def test_unknown_frequencies_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rope = {**SCALED, "rope_theta": 10000.0, "original_max_position_embeddings": 8192}
    model = gguf_model("llama", rope_parameters=rope, max_position_embeddings=16384)
    monkeypatch.setattr("tests.models.test_gguf.llama3_factors", lambda: np.linspace(1, 8, 8, dtype=np.float32))
    path = write(tmp_path / "m.gguf", model, Kind.F32)
    with pytest.raises(InputError, match="scales its rotary frequencies in a way the decoder does not have"):
        load_model(str(path), "fp32")


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_scaling_in_the_metadata(kind: str, tmp_path: Path) -> None:
    rope = {"rope_type": kind, "factor": 4.0, "rope_theta": 10000.0, "original_max_position_embeddings": 64}
    model = gguf_model("llama", rope_parameters=rope)
    path = tmp_path / "m.gguf"
    original = gguf.GGUFWriter.add_rope_freq_base

    def with_scaling(writer: gguf.GGUFWriter, base: float) -> None:
        original(writer, base)
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(64)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gguf.GGUFWriter, "add_rope_freq_base", with_scaling)
        write(path, model, Kind.F32)
    assert_same_logits(path, model)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("gguf") / "whole.gguf", gguf_model("llama"), Kind.Q8_0)


def test_tokenizer_and_end_token_come_from_the_file(whole: Path) -> None:
    model, expected = load_model(str(whole), "bf16"), tiny_tokenizer()
    assert (model.name, model.config.eos_ids, model.decoder.dtype) == ("whole", (1,), torch.bfloat16)
    for text in ("the quick brown fox", "other words 123\n"):
        assert model.tokenizer.encode(text) == expected.encode(text)
        assert model.tokenizer.prompt(text, chat=False) == expected.prompt(text, chat=False)
        assert model.tokenizer.prompt(text, chat=True) == expected.prompt(text, chat=True)


@pytest.mark.parametrize("kept", [0.0, 0.001, 0.02, 0.5, 0.99])
def test_truncated_file_is_one_sentence(kept: float, whole: Path, tmp_path: Path) -> None:
    data = whole.read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(data[: int(kept * len(data))])
    with pytest.raises(InputError, match=r"cut\.gguf is not a whole GGUF file \(truncated or corrupt\)") as caught:
        load_model(str(path), "fp32")
    assert "\n" not in str(caught.value)


def test_foreign_file_is_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "text.gguf"
    path.write_text("this is no model\n" * 100)
    with pytest.raises(InputError, match="GGUF magic invalid"):
        load_model(str(path), "fp32")


def test_corrupt_counts_are_one_sentence(whole: Path, tmp_path: Path) -> None:
    data = bytearray(whole.read_bytes())
    path = tmp_path / "counts.gguf"
    for offset in range(8, 400, 13):
        path.write_bytes(data[:offset] + b"\xff\xff\xff" + data[offset + 3 :])
        with pytest.raises(InputError):
            load_model(str(path), "fp32")


def test_other_architecture_is_refused(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "mamba")
    finish(writer)
    with pytest.raises(InputError, match="holds a 'mamba' model; GGUF files of llama and qwen2 can be read"):
        load_model(str(tmp_path / "m.gguf"), "fp32")


def test_missing_field_and_tensor_are_named(tmp_path: Path) -> None:
    finish(gguf.GGUFWriter(tmp_path / "empty.gguf", "llama"))
    with pytest.raises(InputError, match=r"has no metadata field 'llama\.embedding_length'"):
        load_model(str(tmp_path / "empty.gguf"), "fp32")
    path = write(tmp_path / "m.gguf", gguf_model("llama"), Kind.F32, skip="blk.1.ffn_up.weight")
    with pytest.raises(InputError, match=r"has no tensor 'model\.layers\.1\.mlp\.up_proj\.weight'"):
        load_model(str(path), "fp32")


def test_file_without_tokenizer_is_one_sentence(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", gguf_model("llama"), Kind.F32, tokenizer=False)
    with pytest.raises(InputError, match="has no tokenizer that transformers can read"):
        load_model(str(path), "fp32")


def test_unreadable_quantisation_is_named(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(data: object, kind: Kind) -> None:
        raise NotImplementedError

    monkeypatch.setattr("suite.models.loaders.gguf.dequantize", refuse)
    with pytest.raises(InputError, match=r"tensor 'token_embd\.weight' is stored as Q8_0, which cannot be read"):
        load_model(str(whole), "fp32")
