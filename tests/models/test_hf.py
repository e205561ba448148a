"""Hugging Face directories: whole, sharded, in either dtype, damaged in every way a user meets."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from suite.errors import InputError
from suite.models.decoder import RMSNorm
from suite.models.language_model import LanguageModel
from suite.models.loaders import hf, load_model
from tests.models.small import our_logits, random_ids, random_model, reference_logits, save

WEIGHTS = "model.safetensors"


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint of the test's own to damage."""
    return Path(shutil.copytree(checkpoint, tmp_path / "model"))


def test_facts_of_a_loaded_model(tiny: LanguageModel, checkpoint: Path) -> None:
    assert tiny.name == checkpoint.name
    assert str(checkpoint) in tiny.origin
    assert (tiny.window, tiny.config.eos_ids) == (256, (1,))
    assert not any(parameter.requires_grad for parameter in tiny.decoder.parameters())


def test_shards_give_the_same_model(tmp_path: Path) -> None:
    model, ids = random_model("qwen2"), random_ids(20)
    save(model, tmp_path, max_shard_size="100KB")
    assert len(hf.weight_files(tmp_path)) > 2
    found = our_logits(hf.load_decoder(tmp_path, "fp32"), ids, [20])
    torch.testing.assert_close(found, reference_logits(model, ids), atol=1e-4, rtol=0)


def test_weights_are_cast_and_norms_are_not(checkpoint: Path) -> None:
    decoder = hf.load_decoder(checkpoint, "bf16")
    norms = {id(p) for m in decoder.modules() if isinstance(m, RMSNorm) for p in m.parameters()}
    for parameter in decoder.parameters():
        assert parameter.dtype is (torch.float32 if id(parameter) in norms else torch.bfloat16)


def test_the_model_owns_its_memory(checkpoint: Path, tiny: LanguageModel) -> None:
    """Nothing is left mapped from the file, and a tied matrix is stored once."""
    assert tiny.model_bytes == sum(p.nbytes for p in tiny.decoder.parameters())
    tied = random_model("llama", tie_word_embeddings=True)
    decoder = hf.load_decoder(save(tied, checkpoint.parent / "tied"), "fp32")
    assert isinstance(decoder.embedding, nn.Embedding)
    assert decoder.head.weight is decoder.embedding.weight


def test_generation_config_names_the_end_tokens(copy: Path) -> None:
    (copy / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 5]}))
    assert hf.read_config(copy).eos_ids == (1, 5)


def test_digest_is_what_sha256sum_says(copy: Path) -> None:
    command = f"sha256sum config.json {WEIGHTS} | sha256sum"
    printed = subprocess.run(command, shell=True, cwd=copy, capture_output=True, text=True, check=True).stdout
    assert hf.model_digest(copy) == printed.split()[0]


def test_digest_changes_with_weights_and_config(copy: Path) -> None:
    digests = {hf.model_digest(copy)}
    edit_weights(copy, lambda tensors: tensors["model.norm.weight"].add_(1))
    digests.add(hf.model_digest(copy))
    edit_config(copy, rms_norm_eps=1e-3)
    digests.add(hf.model_digest(copy))
    assert len(digests) == 3


def test_extra_tensors_that_old_checkpoints_hold_are_ignored(copy: Path) -> None:
    before = hf.load_decoder(copy, "fp32").state_dict()
    edit_weights(copy, lambda t: t.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16)}))
    after = hf.load_decoder(copy, "fp32").state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def edit_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(directory / WEIGHTS)
    change(tensors)
    save_file(tensors, directory / WEIGHTS)


def edit_config(directory: Path, **fields: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def shard_without_file(directory: Path) -> None:
    index = {"weight_map": {"lm_head.weight": WEIGHTS, "model.norm.weight": "model-00002.safetensors"}}
    (directory / hf.INDEX).write_text(json.dumps(index))


def only_pickles(directory: Path) -> None:
    (directory / WEIGHTS).rename(directory / "pytorch_model.bin")


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "truncated weights": (lambda d: truncate(d / WEIGHTS), rf"{WEIGHTS} is truncated or corrupt"),
    "empty weights": (lambda d: (d / WEIGHTS).write_bytes(b""), rf"{WEIGHTS} is truncated or corrupt"),
    "corrupt header": (lambda d: (d / WEIGHTS).write_bytes(b"\xff" * 4000), rf"{WEIGHTS} is truncated or corrupt"),
    "no weights": (lambda d: (d / WEIGHTS).unlink(), rf"has no weights: expected {WEIGHTS}"),
    "pickled weights": (only_pickles, r"has pickled weights only, which can run code"),
    "missing tensor": (
        lambda d: edit_weights(d, lambda t: t.pop("model.layers.1.mlp.up_proj.weight")),
        r"has no tensor 'model\.layers\.1\.mlp\.up_proj\.weight' \(1 missing in all\)",
    ),
    "unexpected tensor": (
        lambda d: edit_weights(d, lambda t: t.update({"model.layers.0.mlp.gate_proj.bias": torch.ones(100)})),
        r"unexpected tensor 'model\.layers\.0\.mlp\.gate_proj\.bias'",
    ),
    "wrong shape": (
        lambda d: edit_weights(d, lambda t: t.update({"model.layers.2.self_attn.k_proj.weight": torch.ones(2, 64)})),
        r"'model\.layers\.2\.self_attn\.k_proj\.weight' has shape \[2, 64\], its config asks for \[64, 64\]",
    ),
    "shard missing": (shard_without_file, r"names 'model-00002\.safetensors', which is not in"),
    "index without map": (lambda d: (d / hf.INDEX).write_text("{}"), r"has no 'weight_map'"),
    "no config": (lambda d: (d / "config.json").unlink(), r"is no Hugging Face model: it has no config\.json"),
    "config is no JSON": (lambda d: (d / "config.json").write_text("{,"), r"config\.json is not valid JSON"),
    "config is a list": (lambda d: (d / "config.json").write_text("[]"), r"must hold a JSON object, not list"),
    "architecture": (
        lambda d: edit_config(d, architectures=["GPT2LMHeadModel"]),
        r"'GPT2LMHeadModel' is not supported",
    ),
    "tokenizer missing": (lambda d: (d / "tokenizer.json").unlink(), r"has no tokenizer"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_damage_is_one_sentence(name: str, copy: Path) -> None:
    damage, message = DAMAGES[name]
    damage(copy)
    with pytest.raises(InputError, match=message) as caught:
        load_model(str(copy), "fp32")
    assert "\n" not in str(caught.value)
