"""The model that engines are asked for, from the words of a command."""

from __future__ import annotations

import json
from typing import cast

from suite.engines.base import EngineModel
from suite.errors import InputError
from suite.models.loaders import model_directory
from suite.spec import Dtype

_USUAL_WINDOW = 2048  # vLLM compiles anew for another window, which takes minutes


def engine_model(name: str, dtype: str, tokens: int) -> EngineModel:
    """A model with room for `tokens` tokens; `InputError` where it has none, or where engines cannot read it."""
    if dtype not in ("bf16", "fp32"):
        raise InputError(f"--dtype {dtype!r} is not known; bf16 or fp32.")
    directory = model_directory(name)
    try:
        trained = int(json.loads((directory / "config.json").read_text())["max_position_embeddings"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{directory / 'config.json'} does not say how long the model's context is.") from error
    if tokens > trained:
        raise InputError(f"prompt and new tokens, {tokens} together, do not fit into the {trained} tokens of {name}.")
    return EngineModel(name, str(directory), cast(Dtype, dtype), max(tokens, min(_USUAL_WINDOW, trained)))
