"""A loaded model: decoder, tokenizer, and the facts of where both came from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

from suite.errors import UnitError
from suite.models.config import ModelConfig
from suite.models.decoder import Decoder
from suite.spec import Dtype
from workloads.schema import Request, truncate_middle


class Tokenizer(Protocol):
    """Text to ids and back. `encode` adds no special tokens; `prompt` adds those a prompt begins with."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...

    def prompt(self, text: str, chat: bool) -> list[int]:
        """Ids of a whole prompt, wrapped in the chat template where there is one and `chat` asks for it."""
        ...


@dataclass(frozen=True)
class EncodedPrompt:
    """A request as token ids; `notes` says what was done about a prompt that did not fit.

    `question`: the tokens [start, stop) of the prompt that ask, where the request knows them and they were not cut.
    """

    ids: tuple[int, ...]
    target_ids: tuple[int, ...]
    notes: tuple[str, ...]
    question: tuple[int, int] | None = None

    @property
    def question_ids(self) -> tuple[int, ...]:
        """The tokens that ask; none where they are not known."""
        return self.ids[slice(*self.question)] if self.question is not None else ()


class TextModel(ABC):
    """What turns requests into a model's tokens, and tokens into text: all there is of a model that an engine runs.

    `digest` is a sha256 over config and weights.
    """

    name: str
    tokenizer: Tokenizer
    dtype: Dtype
    digest: str

    @property
    @abstractmethod
    def config(self) -> ModelConfig:
        """Shape and switches of the decoder."""

    @property
    @abstractmethod
    def model_bytes(self) -> int:
        """Bytes of the weights."""

    @property
    def window(self) -> int:
        """Trained context length in tokens."""
        return self.config.window

    def encode(self, request: Request) -> EncodedPrompt:
        """Token ids of a request. A prompt longer than the window is cut, refused or let through, as it says."""
        encoded = self._fitted(request)
        if request.question is None:
            return encoded
        return replace(encoded, question=find_text(request.question, encoded.ids, self.tokenizer))

    def _fitted(self, request: Request) -> EncodedPrompt:
        target = tuple(self.tokenizer.encode(request.target)) if request.target is not None else ()
        room = self.window - (len(target) or request.max_new_tokens)
        ids = self.tokenizer.prompt(request.prompt, request.chat)
        if not ids or (request.target is not None and not target):
            empty = "target" if ids else "prompt"
            raise UnitError(f"request {request.id} has an empty {empty}: it needs one token at least.")
        if len(ids) <= room:
            return EncodedPrompt(tuple(ids), target, ())
        if request.truncation == "extend":
            note = f"the prompt of {len(ids)} tokens runs past the trained window of {self.window}"
            return EncodedPrompt(tuple(ids), target, (note,))
        cut = self._cut(request, ids, room) if request.truncation == "middle" else None
        if cut is None:
            raise UnitError(
                f"request {request.id} has {len(ids)} prompt tokens and asks for {self.window - room} more, "
                f"but {self.name} was trained on {self.window}; use a shorter item or a model with a longer window."
            )
        note = f"middle of the prompt cut: {len(ids)} tokens to {len(cut)} (window {self.window})"
        return EncodedPrompt(tuple(cut), target, (note,))

    def _cut(self, request: Request, ids: list[int], room: int) -> list[int] | None:
        """LongBench's middle truncation, before the chat template, so that the template itself stays whole.

        `None` when there is no room for two tokens of the prompt beside the template.
        """
        wrapping = len(ids) - len(self.tokenizer.encode(request.prompt))
        limit, cut = room - wrapping, ids
        while len(cut) > room:
            if limit < 2:
                return None
            text, _ = truncate_middle(request.prompt, limit, self.tokenizer)
            cut = self.tokenizer.prompt(text, request.chat)
            limit -= len(cut) - room  # joining the halves can tokenise into a few tokens more
        return cut


@dataclass
class LanguageModel(TextModel):
    """A model in this process. `origin` says in words where it came from."""

    name: str
    decoder: Decoder
    tokenizer: Tokenizer
    dtype: Dtype
    digest: str
    origin: str

    @property
    def config(self) -> ModelConfig:
        """Shape and switches of the decoder."""
        return self.decoder.config

    @cached_property
    def model_bytes(self) -> int:
        """Bytes of the parameters' real storages (a tied embedding counts once)."""
        storages = {p.untyped_storage().data_ptr(): p.untyped_storage().nbytes() for p in self.decoder.parameters()}
        return sum(storages.values())


@dataclass
class ServedModel(TextModel):
    """A model that an engine runs: its weights, `model_bytes` in their files, are not in this process."""

    name: str
    shape: ModelConfig
    tokenizer: Tokenizer
    dtype: Dtype
    digest: str
    weights: int

    @property
    def config(self) -> ModelConfig:
        """As its config.json says."""
        return self.shape

    @property
    def model_bytes(self) -> int:
        """Bytes of the weight files."""
        return self.weights


def find_text(text: str, ids: Sequence[int], tokenizer: Tokenizer) -> tuple[int, int] | None:
    """The fewest tokens [start, stop) around the last place where `text` stands in `ids`; `None` if it is not there.

    Looked for in decoded text, so that a chat template, truncation and tokens across its ends make no difference.
    """
    if text not in tokenizer.decode(ids):
        return None
    start = bisect_left(range(len(ids)), True, key=lambda first: text not in tokenizer.decode(ids[first:])) - 1
    stop = bisect_left(
        range(len(ids)), True, lo=start, key=lambda last: text in tokenizer.decode(ids[start : last + 1])
    )
    return start, stop + 1
