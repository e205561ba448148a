"""Pieces that are drawn, where they end, and the text of traces: the same for every sampler."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Self, TypeVar

from suite.methods.search.asks import Sampling
from suite.methods.search.marks import Marks
from suite.methods.search.trace import End, Trace
from suite.models.language_model import TextModel
from suite.models.stops import cut_at_stop


def text_of(model: TextModel, parent: Trace, ids: tuple[int, ...]) -> str:
    """What stands behind the prompt when `ids` follow the parent: without the end token and what follows a stop."""
    shown = [token for token in (*parent.all_ids, *ids) if token not in model.config.eos_ids]
    return cut_at_stop(model.tokenizer.decode(shown), parent.problem.stop)


def without_end(model: TextModel, trace: Trace, instead: str | None) -> tuple[Trace, int]:
    """The trace as it was before it wrote its end token, its stop or the text `instead`, and the tokens dropped."""
    ids, decode = trace.ids, model.tokenizer.decode
    if trace.end == "eos":
        ids = ids[:-1]
    marks = [mark for mark in (instead, *trace.problem.stop) if mark is not None]
    start = min((decode(ids).index(mark) for mark in marks if mark in decode(ids)), default=None)
    while start is not None and len(decode(ids)) > start:
        ids = ids[:-1]
    dropped = len(trace.ids) - len(ids)
    if not dropped or trace.parent is None:
        return trace, 0
    if not ids:
        return trace.parent, 0
    text, logprobs = text_of(model, trace.parent, ids), trace.logprobs[:-dropped]
    return Trace(trace.problem, trace.parent, ids, text, logprobs, drawn=trace.drawn), dropped


@dataclass(eq=False)
class Piece:
    """A piece that is being drawn behind a parent, `limit` tokens at most."""

    parent: Trace
    asked: Sampling
    limit: int
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    end: End | None = None
    reached: bool = False
    cancelled: bool = False

    @classmethod
    def of(cls, asked: Sampling, index: int, **more: Any) -> Self:
        """The piece behind parent number `index`; `more` are a sampler's own fields."""
        parent = asked.parents[index]
        return cls(parent, asked, min(asked.limit, parent.problem.max_new_tokens - parent.length), **more)

    @property
    def open(self) -> bool:
        """It has to go on."""
        return self.end is None and not self.reached and not self.cancelled

    def child(self, model: TextModel) -> Trace:
        """The trace that it makes of its parent."""
        ids = tuple(self.ids)
        logprobs = tuple(self.logprobs) if len(self.logprobs) == len(ids) else ()
        text = text_of(model, self.parent, ids)
        return Trace(self.parent.problem, self.parent, ids, text, logprobs, self.end, self.reached)


P = TypeVar("P", bound=Piece)


def call_off(group: Sequence[P]) -> list[P]:
    """When enough pieces of one ask are there, lower ones first where they tie, the others stop where they are."""
    first = group[0].asked.first
    arrived = [piece for piece in group if piece.reached]
    if not first or len(arrived) < first:
        return []
    stopped = [piece for piece in group if piece.open or piece in arrived[first:]]
    for piece in stopped:
        piece.cancelled, piece.reached = True, False
    return stopped


class Ends:
    """Looks at the tokens of pieces, as they come one by one."""

    def __init__(self, model: TextModel) -> None:
        self._model = model

    def look(self, piece: Piece) -> None:
        """Whether the trace has come to an end with the last token, and whether the piece is where it was to go."""
        problem, ids, until = piece.parent.problem, piece.ids, piece.asked.until
        if ids[-1] in self._model.config.eos_ids:
            piece.end = "eos"
        elif problem.stop and self._marks(problem.stop).found(ids):
            piece.end = "stop"
        elif piece.parent.length + len(ids) >= problem.max_new_tokens:
            piece.end = "length"
        found = until is not None and self._marks((until,)).found(ids)
        if found and piece.end is None and until == problem.step and self._says(ids, problem.final):
            piece.end = "stop"
        piece.reached = found or piece.end in ("eos", "stop") or (piece.end is None and len(ids) >= piece.limit)

    def _says(self, ids: Sequence[int], text: str | None) -> bool:
        return text is not None and text in self._model.tokenizer.decode(ids)

    @lru_cache(maxsize=16)  # noqa: B019 - it lives as long as its sampler
    def _marks(self, texts: tuple[str, ...]) -> Marks:
        return Marks(self._model.tokenizer, texts)
