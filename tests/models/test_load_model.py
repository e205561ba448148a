"""`load_model` tells names, paths and hub ids apart, and answers a wrong one with a suggestion."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from suite.errors import InputError
from suite.models.loaders import load_model


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("smollm2-135", r"unknown model 'smollm2-135'; did you mean 'smollm2-135m'\?"),
        ("zzz", r"unknown model 'zzz'; known: "),
        ("./nowhere", r"there is no model at \./nowhere"),
        ("/nowhere/model.gguf", r"there is no model at /nowhere/model\.gguf"),
        ("models/nothing.gguf", r"there is no model at models/nothing\.gguf"),
    ],
)
def test_unknown_name(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_model(name, "fp32")


def test_a_file_that_is_no_model(tmp_path: Path) -> None:
    path = tmp_path / "model.bin"
    path.write_bytes(b"x")
    with pytest.raises(InputError, match=r"model\.bin is no model: expected a Hugging Face directory or a \.gguf file"):
        load_model(str(path), "fp32")


def test_hub_without_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"'org/model' could not be fetched from the hub .*check the name and"):
        load_model("org/model", "fp32")


def test_hub_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"'org/model' is a hub id; install the extra first"):
        load_model("org/model", "fp32")


def test_hub_files_are_loaded_from_the_fetched_copy(monkeypatch: pytest.MonkeyPatch, checkpoint: Path) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda repository, allow_patterns: str(checkpoint))
    model = load_model("org/model", "fp32")
    assert (model.name, model.origin) == ("org/model", "hub repository org/model")
