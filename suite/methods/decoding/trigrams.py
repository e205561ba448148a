"""A table of what an encoder makes of three tokens in a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

TRIGRAMS = 16384  # entries of the table; a full one begins anew

Trigram = tuple[int, int, int]


class TrigramTable:
    """Trigram encodings by the three ids they depend on."""

    def __init__(self, encode: Callable[[Tensor], Tensor]) -> None:
        self._encode = encode
        self._places: dict[Trigram, int] = {}
        self._rows: Tensor | None = None
        self.asked = self.hits = 0

    def __call__(self, trigrams: Sequence[Trigram]) -> Tensor:
        """[N, d] of N trigrams; what is not known yet is encoded in one call."""
        new = [trigram for trigram in dict.fromkeys(trigrams) if trigram not in self._places]
        self.asked, self.hits = self.asked + len(trigrams), self.hits + len(trigrams) - len(new)
        if len(self._places) + len(new) > TRIGRAMS:
            self._places, new = {}, list(dict.fromkeys(trigrams))
        if new:
            made = self._encode(torch.tensor(new))
            if self._rows is None:
                self._rows = made.new_empty(TRIGRAMS, made.shape[1])
            self._rows[len(self._places) : len(self._places) + len(new)] = made
            self._places |= {trigram: len(self._places) + i for i, trigram in enumerate(new)}
        assert self._rows is not None
        return self._rows[[self._places[trigram] for trigram in trigrams]]

    def held_bytes(self) -> int:
        """Of the entries in use."""
        return 0 if self._rows is None else self._rows[: len(self._places)].nbytes
