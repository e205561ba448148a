"""What recipes for adapters learn from: text the frozen model wrote itself, and what its layers made of it.

A model's own prose is in its own distribution, needs no download and no licence, and is the same for the same seed;
a user's text can be given instead.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from rich.console import Console
from torch import Tensor

from suite.errors import InputError
from suite.models.attention import DenseAttention, Step
from suite.models.checkpoints.manifest import DataSource
from suite.models.language_model import LanguageModel
from suite.models.sampling import Sampler
from workloads.schema import Request

Made = TypeVar("Made")

TEMPERATURE, TOP_P = 0.8, 0.95
BATCH, ANSWER_TOKENS = 16, 640
TOLD_EVERY = 8
SUBJECTS = (
    "the history of a harbour town", "how bread is made", "a disputed inheritance", "the life of bees",
    "why bridges stand", "a small museum and its keeper", "the causes of a flood", "learning a second language",
    "an expedition into the mountains", "how a court decides", "the economy of an island", "a chemist and her rival",
    "the invention of the clock", "a village school", "how vaccines work", "a lost manuscript", "a train journey",
    "running a restaurant", "the fall of a company", "an old astronomer", "the rules of a board game",
    "how rivers change their beds", "a year on a farm", "the migration of birds",
)  # fmt: skip
FORMS = (
    "an essay about",
    "a long story about",
    "an encyclopedia article about",
    "a report with many facts and figures on",
)


@dataclass(frozen=True)
class Corpus:
    """Token ids [n, window] and where they came from."""

    windows: Tensor
    source: DataSource


def training_text(model: LanguageModel, data: Path | None, windows: int, length: int, seed: int) -> Corpus:
    """A user's text, or what the model writes; says on stderr how far it is, for that takes minutes."""
    if data is not None:
        return read_from(model, data, windows, length)
    return written_by(model, windows, length, seed, Console(stderr=True).print)


def from_windows(corpus: Corpus, make: Callable[[Tensor], Made]) -> list[Made]:
    """What a recipe makes of every window; says on stderr how far it is."""
    say, made = Console(stderr=True).print, []
    for index, ids in enumerate(corpus.windows):
        if index % TOLD_EVERY == 0:
            say(f"recording activations, {index} of {len(corpus.windows)} windows")
        made.append(make(ids))
    return made


def written_by(model: LanguageModel, windows: int, length: int, seed: int, tick: Callable[[str], None]) -> Corpus:
    """`windows` windows of `length` tokens that the model wrote on SUBJECTS; a token depends on the seed only.

    Texts are lines of their own.
    """
    ids: list[int] = []
    newline = model.tokenizer.encode("\n")
    batch = 0
    while len(ids) < windows * length:
        tick(f"writing training text, {len(ids)} of {windows * length} tokens")
        for text in write(model, writing_requests(seed, batch), DenseAttention(model.config), ANSWER_TOKENS):
            ids += [*text, *newline]
        batch += 1
    return _corpus(ids, windows, length, "self-written", f"{model.digest[:16]}, seed {seed}")


def read_from(model: LanguageModel, path: Path, windows: int, length: int) -> Corpus:
    """The first windows of a user's text file."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as UTF-8 text: {error}.") from error
    ids = model.tokenizer.encode(text)
    if len(ids) < 2 * length:
        raise InputError(f"{path} has {len(ids)} tokens; training needs two windows of {length} at least.")
    return _corpus(ids, min(windows, len(ids) // length), length, path.name, "a user's file")


def _corpus(ids: Sequence[int], windows: int, length: int, name: str, version: str) -> Corpus:
    tensor = torch.tensor(ids[: windows * length]).view(windows, length)
    digest = hashlib.sha256(tensor.numpy().tobytes()).hexdigest()[:16]
    return Corpus(tensor, DataSource(name=name, version=version, revision=digest))


def writing_requests(seed: int, batch: int) -> list[Request]:
    """One batch of writing tasks: all subjects in turn, in changing forms."""
    requests = []
    for index in range(batch * BATCH, (batch + 1) * BATCH):
        subject, form = SUBJECTS[index % len(SUBJECTS)], FORMS[index // len(SUBJECTS) % len(FORMS)]
        requests.append(
            Request(
                id=str(index),
                task="write",
                prompt=f"Write {form} {subject}.",
                chat=True,
                metric="none",
                max_new_tokens=ANSWER_TOKENS,
                seed=seed * 1_000_003 + index,
                temperature=TEMPERATURE,
                top_p=TOP_P,
            )
        )
    return requests


@torch.inference_mode()
def write(
    model: LanguageModel, requests: Sequence[Request], attention: DenseAttention, length: int
) -> Iterator[list[int]]:
    """What the model answers in `length` tokens, without end tokens."""
    prompts = [model.tokenizer.prompt(request.prompt, request.chat) for request in requests]
    counts = [len(prompt) for prompt in prompts]
    padded = torch.zeros(len(prompts), max(counts), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        padded[row, : len(prompt)] = torch.tensor(prompt)
    sampler = Sampler(requests)
    cache = model.decoder.new_cache(len(prompts), max(counts) + length)
    logits = model.decoder(padded, cache, attention, counts)
    drawn = []
    for _ in range(min(length, model.window - max(counts))):
        drawn.append(sampler(logits))
        logits = model.decoder(torch.tensor(drawn[-1])[:, None], cache, attention)
    for tokens in zip(*drawn, strict=True):
        end = next((i for i, token in enumerate(tokens) if token in model.config.eos_ids), len(tokens))
        yield list(tokens[:end])


@dataclass(frozen=True)
class Activations:
    """One window in one model: per recorded layer rotated queries [T, H, D] and keys [G, T, D]; the first layer's
    output [T, hidden]."""

    queries: dict[int, Tensor]
    keys: dict[int, Tensor]
    hidden: Tensor


@torch.inference_mode()
def record(model: LanguageModel, ids: Tensor, layers: Sequence[int]) -> Activations:
    """Runs ids [T] through the frozen model and keeps what its layers saw."""
    recorder = _Recorder(model, layers)
    cache = model.decoder.new_cache(1, len(ids))
    model.decoder(ids[None], cache, recorder)
    keys = {layer: cache.keys[layer][0, :, : len(ids)] for layer in layers}
    return Activations(recorder.queries, keys, recorder.hidden)


class _Recorder(DenseAttention):
    """Dense attention that keeps rotated queries of some layers and the first layer's output."""

    def __init__(self, model: LanguageModel, layers: Sequence[int]) -> None:
        super().__init__(model.config)
        self._layers = frozenset(layers)
        self.queries: dict[int, Tensor] = {}
        self.hidden = torch.empty(0)

    def plain(self, step: Step) -> None:
        """Every layer is to be seen."""

    def attend(self, layer: int, q: Tensor, step: Step) -> Tensor:
        if layer in self._layers:
            self.queries[layer] = q[0].clone()
        return super().attend(layer, q, step)

    def observe(self, layer: int, hidden: Tensor, step: Step) -> None:
        if layer == 0:
            self.hidden = hidden[0].clone()
