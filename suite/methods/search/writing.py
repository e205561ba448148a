"""The text of a trace, and a trace without its end: the same for every sampler."""

from __future__ import annotations

from suite.methods.search.trace import Trace
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
