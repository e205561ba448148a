"""A seeded world of people, towns, dates and things, rendered by sentence templates (`data/english.json`, ...).

A template holds slots such as `{town}` or `{person2}`: the digit tells slots of one kind apart. Every entity of a fact
is drawn at most once in a world, so that an answer stands nowhere but in its own sentence.
"""

from __future__ import annotations

import json
import random
import re
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal

Language = Literal["en", "zh"]
LEXICON_FILES = {
    language: Path(str(resources.files("workloads.data"))) / name
    for language, name in (("en", "english.json"), ("zh", "chinese.json"))
}
_SLOT = re.compile(r"\{([a-z]+)\d*\}")
_TRIES = 50


@cache
def lexicon(language: Language) -> dict[str, Any]:
    """The word lists, compounds and sentence templates of one language."""
    document: dict[str, Any] = json.loads(LEXICON_FILES[language].read_text(encoding="utf-8"))
    return document


class World:
    """Draws the entities of one item. `draw` never repeats a value as long as there are others; `word` may."""

    def __init__(self, rng: random.Random, language: Language) -> None:
        self.rng = rng
        self.lexicon = lexicon(language)
        self.blank = " " if language == "en" else ""
        self._words: dict[str, list[str]] = self.lexicon["slots"]
        self._compounds: dict[str, str] = self.lexicon["compound"]
        self._used: set[str] = set()
        self._kept: set[str] = set()

    def word(self, kind: str) -> str:
        """A word of a list, a number, or a compound of such; may come again."""
        if kind in self._compounds:
            return _SLOT.sub(lambda match: self.word(match[1]), self._compounds[kind])
        if kind in _NUMBERS:
            return str(self.rng.randrange(*_NUMBERS[kind]))
        return self.rng.choice(self._words[kind])

    def draw(self, kind: str) -> str:
        """An entity not drawn before. When a list runs dry, its values come again, but not those kept."""
        for _ in range(2):
            for _ in range(_TRIES):
                value = self.word(kind)
                if value not in self._used:
                    self._used.add(value)
                    return value
            self._used = set(self._kept)
        return value

    def keep(self) -> None:
        """Protects everything drawn so far: the entities of questions and answers."""
        self._kept = set(self._used)

    def bind(self, template: str, bound: dict[str, str]) -> str:
        """The template with its slots filled; new slots are drawn as unique entities and added to `bound`."""

        def value(match: re.Match[str]) -> str:
            slot = match[0]
            if slot not in bound:
                bound[slot] = self.draw(match[1])
            return bound[slot]

        return _SLOT.sub(value, template)

    def sentence(self) -> str:
        """One sentence of filler: common words only, no entity."""
        return _SLOT.sub(lambda match: self.word(match[1]), self.rng.choice(self.lexicon["filler"]))

    def paragraph(self, sentences: int) -> list[str]:
        """That many sentences of filler."""
        return [self.sentence() for _ in range(sentences)]

    def join(self, sentences: list[str]) -> str:
        """Sentences as running text."""
        return self.blank.join(sentences)


_NUMBERS = {"day": (1, 29), "year": (1700, 2000), "number": (101, 1000)}
