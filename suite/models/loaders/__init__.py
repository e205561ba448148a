"""`load_model`: a registered name, a Hugging Face directory, a GGUF file or a hub id becomes a `LanguageModel`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import cast

from suite.errors import InputError
from suite.models.language_model import LanguageModel, ServedModel
from suite.models.loaders import gguf, hf, hub, lab, pinned
from suite.registry import MODELS
from suite.spec import Dtype, ModelSpec

_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")


def load_model(name: str, dtype: Dtype) -> LanguageModel:
    """Loads a model with its weights in `dtype`; `InputError` says in one sentence why it cannot."""
    path = Path(name).expanduser()
    if name in MODELS:
        return cast(LanguageModel, MODELS.load(name)(dtype))
    if path.exists():
        return _from_path(path, dtype)
    if path.suffix == ".gguf" or name.startswith((".", "~", "/")):
        raise InputError(f"there is no model at {name}: expected a Hugging Face directory or a .gguf file.")
    if _HUB_ID.fullmatch(name):
        return _from_hub(name, dtype)
    return cast(LanguageModel, MODELS.load(name)(dtype))  # raises, and suggests a name


def load_served(model: ModelSpec) -> ServedModel:
    """What there is of a model beside its weights, for one that an engine runs."""
    return hf.served(model_directory(model.name), model.dtype, model.name)


def model_directory(name: str) -> Path:
    """The Hugging Face directory of a model, for engines that read it themselves; fetched where it has to be."""
    path = Path(name).expanduser()
    if name == pinned.NAME:
        return pinned.ensure()
    if name in MODELS and (lab.CHECKPOINTS / name).is_dir():
        return lab.CHECKPOINTS / name
    if path.is_dir():
        return path
    if _HUB_ID.fullmatch(name) and not path.exists():
        return hub.fetch(name)
    _ = MODELS[name] if not path.exists() else None  # raises, and suggests a name
    raise InputError(f"{name} is no Hugging Face directory, which every engine can read; `native` alone reads others.")


def _from_path(path: Path, dtype: Dtype) -> LanguageModel:
    if path.is_dir():
        return hf.load(path, dtype, path.resolve().name, f"Hugging Face directory {path}")
    if path.suffix == ".gguf":
        return gguf.load(path, dtype, path.stem, f"GGUF file {path}")
    raise InputError(f"{path} is no model: expected a Hugging Face directory or a .gguf file.")


def _from_hub(name: str, dtype: Dtype) -> LanguageModel:
    return hf.load(hub.fetch(name), dtype, name, f"hub repository {name}")
