"""Models in Hugging Face layout: a directory with config.json, safetensors (one file or shards) and tokenizer.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from suite.errors import InputError
from suite.models.config import ModelConfig, from_hf
from suite.models.decoder import Decoder
from suite.models.language_model import LanguageModel, ServedModel
from suite.models.loaders.weights import Tensors, build, digest
from suite.models.tokenizer import HFTokenizer
from suite.spec import Dtype

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def load(directory: Path, dtype: Dtype, name: str, origin: str) -> LanguageModel:
    """The model in `directory`, with its tokenizer."""
    tokenizer = HFTokenizer.from_directory(directory)
    decoder = load_decoder(directory, dtype)
    return LanguageModel(name, decoder, tokenizer, dtype, model_digest(directory), origin)


def served(directory: Path, dtype: Dtype, name: str) -> ServedModel:
    """The model in `directory` without its weights."""
    tokenizer, weights = HFTokenizer.from_directory(directory), weight_files(directory)
    size = sum(path.stat().st_size for path in weights)
    return ServedModel(name, read_config(directory), tokenizer, dtype, model_digest(directory), size)


def load_decoder(directory: Path, dtype: Dtype) -> Decoder:
    """The decoder alone. Its weights are copied out of the mapped files once, straight into `dtype`."""
    config = read_config(directory)
    with _opened(weight_files(directory)) as tensors:
        return build(config, tensors, dtype, str(directory))


def model_digest(directory: Path) -> str:
    """sha256 over config and weights (see `weights.digest`)."""
    return digest([directory / "config.json", *weight_files(directory)])


def read_config(directory: Path) -> ModelConfig:
    """config.json, with the end tokens of generation_config.json where there is one: chat models stop at those."""
    document = _read_object(directory / "config.json")
    generation = directory / "generation_config.json"
    if generation.is_file() and (eos := _read_object(generation).get("eos_token_id")) is not None:
        document["eos_token_id"] = eos
    return from_hf(document)


def weight_files(directory: Path) -> list[Path]:
    """The safetensors files of a checkpoint; `InputError` when there are none, or one of the index is missing."""
    index = directory / INDEX
    if not index.is_file():
        return [_single(directory)]
    weight_map = _read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index} has no 'weight_map' from tensor names to files.")
    files = sorted({directory / Path(str(name)).name for name in weight_map.values()})
    if missing := [path.name for path in files if not path.is_file()]:
        raise InputError(f"{index} names {missing[0]!r}, which is not in {directory}.")
    return files


def _single(directory: Path) -> Path:
    if (path := directory / SINGLE).is_file():
        return path
    if any(directory.glob("*.bin")) or any(directory.glob("*.pt*")):
        raise InputError(
            f"{directory} has pickled weights only, which can run code when opened: "
            "convert them to safetensors (save_pretrained does) or use a safetensors copy."
        )
    raise InputError(f"{directory} has no weights: expected {SINGLE} or {INDEX}.")


@contextmanager
def _opened(files: list[Path]) -> Iterator[Tensors]:
    with ExitStack() as stack:
        tensors: dict[str, Callable[[], Tensor]] = {}
        for path in files:
            try:
                handle = stack.enter_context(safe_open(path, framework="pt"))
            except (SafetensorError, OSError) as error:
                raise InputError(f"{path} is truncated or corrupt: {error}.") from error
            for name in handle.keys():  # noqa: SIM118 - the handle is no mapping
                tensors[name] = partial(handle.get_tensor, name)
        yield tensors


def _read_object(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path.parent} is no Hugging Face model: it has no {path.name}.") from error
    except ValueError as error:
        raise InputError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(document, dict):
        raise InputError(f"{path} must hold a JSON object, not {type(document).__name__}.")
    return document
