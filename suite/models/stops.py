"""Where a text ends at a stop string. Imports no torch: processes without a model use it too."""

from __future__ import annotations

from collections.abc import Sequence


def cut_at_stop(text: str, stops: Sequence[str]) -> str:
    """The text before the first stop string. One of newlines only counts behind some text: models begin with those."""
    opening = len(text) - len(text.lstrip("\n"))
    found = (text.find(stop, 0 if stop.strip("\n") else opening) for stop in stops)
    return text[: min((index for index in found if index >= 0), default=len(text))]
