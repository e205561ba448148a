"""Finds the token with which a text in a list of marks is complete, without decoding the text at every token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from suite.models.language_model import Tokenizer


class Marks:
    """Looks at a token's own text first, and at the text before it only if the token could complete a mark.

    Newlines at the beginning complete nothing: models begin with those.
    """

    def __init__(self, tokenizer: Tokenizer, marks: Sequence[str]) -> None:
        self._tokenizer, self._marks = tokenizer, marks
        self._reach = 4 * max(map(len, marks))  # tokens, at four per character at most
        self._kinds: dict[int, Literal["whole", "part", "none"]] = {}

    def found(self, ids: Sequence[int]) -> bool:
        """Whether the last token completes a mark."""
        kind = self._kinds.get(ids[-1]) or self._kind(ids[-1])
        if kind == "none":
            return False
        newest = self._tokenizer.decode(ids[-self._reach :]).lstrip("\n")
        return any(mark in newest for mark in self._marks)

    def _kind(self, token: int) -> Literal["whole", "part", "none"]:
        text = self._tokenizer.decode([token])
        if any(mark in text for mark in self._marks):
            kind: Literal["whole", "part", "none"] = "whole"
        elif any(text and _completes(text, mark) for mark in self._marks):
            kind = "part"
        else:
            kind = "none"
        self._kinds[token] = kind
        return kind


def _completes(text: str, mark: str) -> bool:
    """The text begins with some end of the mark."""
    return any(text.startswith(mark[i:]) for i in range(1, len(mark)))
