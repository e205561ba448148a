"""What drafters learn from: answers the frozen model wrote itself, and its final states while it wrote them."""

from __future__ import annotations

import copy
import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import Tensor

from suite.models.adapters import cache_root
from suite.models.attention import DenseAttention, Step
from suite.models.checkpoints.manifest import DataSource
from suite.models.language_model import LanguageModel
from suite.models.recipes.activations import BATCH, read_from, write, writing_requests

WIDE = 3 * BATCH  # answers written at a time


@dataclass(frozen=True)
class Text:
    """Token ids [T] and the model's final-norm states [T, hidden] in bf16. The first `prompt` tokens are given."""

    ids: Tensor
    states: Tensor
    prompt: int


def texts_with_states(model: LanguageModel, data: Path | None, batches: int, length: int, seed: int) -> list[Text]:
    """Answers of up to `length` tokens with their prompts, `batches` times WIDE; or windows of a user's text.

    States, and so the answers, are those of the model in bf16, as it is used. They take minutes and stay in the cache.
    """
    frozen = replace(model, decoder=copy.deepcopy(model.decoder).cast_weights(torch.bfloat16))
    if data is not None:
        return [_read(frozen, ids) for ids in read_from(model, data, batches * WIDE, length).windows]
    texts: list[Text] = []
    for batch in range(batches):
        kept = cache_root() / "texts" / f"{model.digest[:16]}-{WIDE}x{length}-{seed}-{batch}.safetensors"
        if not kept.exists():
            Console(stderr=True).print(f"writing training text, {batch} of {batches} batches")
            _keep(list(_answers(frozen, batch, length, seed)), kept)
        texts += _kept(kept)
    return texts


def source_of(texts: Sequence[Text], data: Path | None, model: LanguageModel, seed: int) -> DataSource:
    """The texts' origin, and the hash of their tokens."""
    digest = hashlib.sha256(torch.cat([text.ids for text in texts]).numpy().tobytes()).hexdigest()[:16]
    if data is not None:
        return DataSource(name=data.name, version="a user's file", revision=digest)
    return DataSource(name="self-written answers", version=f"{model.digest[:16]}, seed {seed}", revision=digest)


def _answers(model: LanguageModel, batch: int, length: int, seed: int) -> Iterator[Text]:
    pieces = WIDE // BATCH
    requests = [one for n in range(pieces) for one in writing_requests(seed, batch * pieces + n)]
    prompts = [model.tokenizer.prompt(request.prompt, request.chat) for request in requests]
    watching = _StateRecorder(model)
    for row, answer in enumerate(write(model, requests, watching, length)):
        ids = torch.tensor([*prompts[row], *answer])
        first, *others = watching.passes
        states = torch.cat([first[row, : len(prompts[row])], *(state[row] for state in others)])
        yield Text(ids, states[: len(ids)].clone(), len(prompts[row]))


def _read(model: LanguageModel, ids: Tensor) -> Text:
    watching = _StateRecorder(model)
    with torch.inference_mode():
        model.decoder(ids[None], model.decoder.new_cache(1, len(ids)), watching)
    return Text(ids, watching.passes[0][0].clone(), 0)


class _StateRecorder(DenseAttention):
    """Dense attention that keeps the final-norm states [B, T, hidden] of every pass."""

    def __init__(self, model: LanguageModel) -> None:
        super().__init__(model.config)
        self._norm = model.decoder.norm
        self.passes: list[Tensor] = []

    def observe(self, layer: int, hidden: Tensor, step: Step) -> None:
        if layer == self.config.layers - 1:
            self.passes.append(self._norm(hidden))


def _keep(texts: Sequence[Text], path: Path) -> None:
    """All texts in one file, which appears when it is whole."""
    counts = torch.tensor([[len(text.ids), text.prompt] for text in texts])
    whole = {"ids": torch.cat([t.ids for t in texts]), "states": torch.cat([t.states for t in texts]), "counts": counts}
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}")
    save_file(whole, part)
    os.replace(part, path)


def _kept(path: Path) -> list[Text]:
    whole = load_file(path)
    lengths, prompts = whole["counts"].T.tolist()
    parts = zip(torch.split(whole["ids"], lengths), torch.split(whole["states"], lengths), prompts, strict=True)
    return [Text(ids, states, prompt) for ids, states, prompt in parts]
