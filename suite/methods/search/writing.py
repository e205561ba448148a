"""Where a piece ends, the text of a trace, and a trace without its end: the same for every sampler."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

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


class Ends:
    """Looks at the tokens of pieces, as they come one by one."""

    def __init__(self, model: TextModel) -> None:
        self._model = model

    def look(self, parent: Trace, ids: Sequence[int], until: str | None, limit: int) -> tuple[End | None, bool]:
        """Whether the trace has come to an end with the last token, and whether the piece is where it was to go."""
        problem = parent.problem
        end: End | None = None
        if ids[-1] in self._model.config.eos_ids:
            end = "eos"
        elif problem.stop and self._marks(problem.stop).found(ids):
            end = "stop"
        elif parent.length + len(ids) >= problem.max_new_tokens:
            end = "length"
        found = until is not None and self._marks((until,)).found(ids)
        return end, found or end in ("eos", "stop") or (end is None and len(ids) >= limit)

    @lru_cache(maxsize=16)  # noqa: B019 - it lives as long as its sampler
    def _marks(self, texts: tuple[str, ...]) -> Marks:
        return Marks(self._model.tokenizer, texts)
