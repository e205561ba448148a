"""What a search is about: a problem, and traces that were written behind its prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from workloads.schema import Request

End = Literal["eos", "stop", "length"]


@dataclass(frozen=True)
class Problem:
    """A request without its references: all that methods and verifiers may know.

    `ids`: the prompt's tokens. `step`: the text that ends a reasoning step. `answer`: how an answer is found and
    compared (a kind of `workloads.answers`). `final`: a step that holds this text is the last one. `closing`: the text
    that ends the thinking, where thinking and answer are apart.
    """

    id: str
    prompt: str
    ids: tuple[int, ...]
    max_new_tokens: int
    seed: int = 0
    step: str = "\n\n"
    answer: str = "gsm8k"
    final: str | None = None
    closing: str | None = None
    stop: tuple[str, ...] = ()

    @classmethod
    def of(cls, request: Request, ids: tuple[int, ...]) -> Problem:
        """The request as the search sees it; its metadata say how steps and answers look."""
        names = ("step", "answer", "final", "closing")
        known = {name: request.metadata[name] for name in names if name in request.metadata}
        return cls(request.id, request.prompt, ids, request.max_new_tokens, request.seed, stop=request.stop, **known)


@dataclass(frozen=True, eq=False)
class Trace:
    """A prompt and what has been written behind it, in pieces. Nothing of it changes: two children are a fork.

    `ids` and `logprobs` are those of the last piece alone; log-probabilities are the model's own, before temperature.
    `text` is all that stands behind the prompt, without the end token and what follows a stop string. `end` is why no
    more can follow; None: it is open. `reached`: the piece came to where it was to go, was not called off before, and
    did not run out of tokens.
    """

    problem: Problem
    parent: Trace | None = None
    ids: tuple[int, ...] = ()
    text: str = ""
    logprobs: tuple[float, ...] = ()
    end: End | None = None
    reached: bool = True
    drawn: bool = True

    @property
    def finished(self) -> bool:
        """Nothing can follow."""
        return self.end is not None

    @property
    def lineage(self) -> tuple[Trace, ...]:
        """The pieces from the first to this one; the bare prompt is none. Not kept: a trace would hold itself alive."""
        pieces: list[Trace] = []
        trace = self
        while trace.parent is not None:
            pieces.append(trace)
            trace = trace.parent
        return tuple(reversed(pieces))

    @property
    def depth(self) -> int:
        """Pieces written so far."""
        return len(self.lineage)

    @cached_property
    def length(self) -> int:
        """Tokens written behind the prompt."""
        return len(self.ids) + (self.parent.length if self.parent is not None else 0)

    @property
    def written(self) -> int:
        """Those of them that the model did not choose."""
        return sum(len(piece.ids) for piece in self.lineage if not piece.drawn)

    @property
    def all_ids(self) -> tuple[int, ...]:
        """Tokens behind the prompt."""
        return tuple(token for piece in self.lineage for token in piece.ids)

    @property
    def all_logprobs(self) -> tuple[float, ...]:
        """Of all tokens behind the prompt."""
        return tuple(value for piece in self.lineage for value in piece.logprobs)


def distinct(traces: Sequence[Trace]) -> list[Trace]:
    """The first of every text, in order: what siblings have both written is judged and followed once."""
    found: dict[tuple[Trace | None, tuple[int, ...]], Trace] = {}
    for trace in traces:
        found.setdefault((trace.parent, trace.ids), trace)
    return list(found.values())


@dataclass(frozen=True)
class Answer:
    """What a search returns: the trace it chose, and the finished candidates it chose from with their scores."""

    trace: Trace
    pool: tuple[Trace, ...] = ()
    scores: tuple[float, ...] = ()
    notes: tuple[str, ...] = ()
