"""What a model's weights meant on some text: the diagonal Fisher information, and samples of each layer's input.

methods/squeezellm.md, section 3, step 1. Text the model wrote itself stands for C4 unless the user gives a text: it is
in the model's distribution, needs no download, and no evaluation text can be among it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from suite.errors import InputError
from suite.methods.weights.linear import plain_linears
from suite.models.decoder import Decoder, Linear
from suite.models.language_model import LanguageModel
from suite.models.recipes.activations import training_text

SEQUENCES, TOKENS, SEED = 32, 256, 17
SAMPLED = 4
"""Rows of a sequence whose layer inputs are kept."""


@dataclass(frozen=True)
class Statistics:
    """One matrix on the calibration text: `fisher` fp32 [out, in] and `inputs` fp32 [n, in]."""

    fisher: Tensor
    inputs: Tensor


_known: WeakKeyDictionary[Decoder, tuple[str, Mapping[str, Statistics]]] = WeakKeyDictionary()


def statistics_for(model: LanguageModel, data: Path | None) -> Mapping[str, Statistics]:
    """The statistics by matrix, kept with the model: settings of one method share them."""
    source, known = text_source(data), _known.get(model.decoder)
    if known is None or known[0] != source:
        known = source, calibrate(model.decoder, calibration_windows(model, data))
        _known[model.decoder] = known
    return known[1]


def calibration_windows(model: LanguageModel, data: Path | None) -> Tensor:
    """Token ids [SEQUENCES, TOKENS], fewer from a short text."""
    return training_text(model, data, SEQUENCES, min(TOKENS, model.window), SEED).windows


def text_source(data: Path | None) -> str:
    """What names the calibration text in a hash: how much of what."""
    return f"{_content(data)}, {SEQUENCES} x {TOKENS}"


def _content(data: Path | None) -> str:
    if data is None:
        return f"self-written, seed {SEED}"
    try:
        return hashlib.sha256(data.read_bytes()).hexdigest()
    except OSError as error:
        raise InputError(f"{data} cannot be read: {error.strerror}; give a UTF-8 text to calibrate on.") from error


def missing_text(model: LanguageModel, data: Path | None) -> str | None:
    """One sentence if there is no text to calibrate on: a model without a chat template cannot be asked to write."""
    if data is not None or getattr(model.tokenizer, "template", None):
        return None
    return f"{model.name} has no chat template to write calibration text with; give a text by the option `data`"


def calibrate(decoder: Decoder, windows: Tensor) -> dict[str, Statistics]:
    """The statistics of every matrix over windows [n, T], one window at a time.

    The Fisher diagonal sums the squares of each sequence's gradient: squares of a sum would let sequences cancel.
    """
    linears = plain_linears(decoder)
    fisher = {name: torch.zeros_like(linear.weight, dtype=torch.float32) for name, linear in linears.items()}
    with _differentiable(linears), _recorded(linears) as inputs:
        for ids in windows:
            logits = decoder.train_logits(ids[None, :-1])
            functional.cross_entropy(logits[0], ids[1:]).backward()  # type: ignore[no-untyped-call]
            for name, linear in linears.items():
                gradient = _taken_gradient(linear)
                fisher[name].addcmul_(gradient, gradient)
    return {name: Statistics(fisher[name], torch.cat(inputs[name])) for name in linears}


def _taken_gradient(linear: Linear) -> Tensor:
    gradient = linear.weight.grad
    assert gradient is not None
    linear.weight.grad = None
    return gradient.float()


@contextmanager
def _differentiable(linears: Mapping[str, Linear]) -> Iterator[None]:
    """Gradients for these weights alone; as frozen as before when the block ends."""
    try:
        for linear in linears.values():
            linear.weight.requires_grad_(True)
        with torch.enable_grad():
            yield
    finally:
        for linear in linears.values():
            linear.weight.requires_grad_(False)
            linear.weight.grad = None


@contextmanager
def _recorded(linears: Mapping[str, Linear]) -> Iterator[dict[str, list[Tensor]]]:
    """Keeps SAMPLED rows of what each matrix is given in a pass, evenly spaced."""
    kept: dict[str, list[Tensor]] = {name: [] for name in linears}

    def keep(name: str) -> Any:
        def hook(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            rows = arguments[0].detach().flatten(0, -2)
            kept[name].append(rows[:: max(1, len(rows) // SAMPLED)][:SAMPLED].float())

        return hook

    with ExitStack() as stack:
        for name, linear in linears.items():
            stack.callback(linear.register_forward_pre_hook(keep(name)).remove)
        yield kept
