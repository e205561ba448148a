"""What RULER's tasks are put together from: keys and values, haystacks, and ways to hide needles in them."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from uuid import UUID

import numpy as np

from workloads.generators.passages import Passage, Span, join
from workloads.generators.world import World

WORD_FILE = Path(str(resources.files("workloads.data"))) / "ruler.json"
"""Adjectives and nouns, common enough to be one token each. None is part of another, so that a word found in an answer
is that word."""
NOISE = "The barn is tall. The pond is deep. The path is long. Off we walk. At dusk we come back."
DEPTHS = tuple(round(depth) for depth in np.linspace(0, 100, 40))
"""Where needles can stand in an essay, in percent of its sentences."""


@dataclass(frozen=True)
class Sample:
    """One item: the haystack between two pieces of text, the start of the answer, and what should follow it."""

    before: str
    context: Passage
    after: str
    answer_prefix: str
    outputs: list[str]

    @property
    def input(self) -> str:
        """The prompt without the answer prefix."""
        return f"{self.before}{self.context.text}{self.after}"

    @property
    def evidence(self) -> list[Span]:
        """Character spans in `input`."""
        offset = len(self.before)
        return [(offset + start, offset + end) for start, end in self.context.evidence]

    @property
    def depths(self) -> list[float]:
        """Where each piece of evidence starts in the haystack, 0 to 1."""
        return [start / len(self.context.text) for start, _ in self.context.evidence]


@cache
def lexicon() -> tuple[list[str], list[str]]:
    """All adjectives and all nouns."""
    document = json.loads(WORD_FILE.read_text(encoding="utf-8"))
    return document["adjectives"], document["nouns"]


def compounds(rng: random.Random, count: int) -> list[str]:
    """Different keys such as "quiet-lantern"."""
    adjectives, nouns = lexicon()
    pairs = rng.sample(range(len(adjectives) * len(nouns)), count)
    return [f"{adjectives[pair // len(nouns)]}-{nouns[pair % len(nouns)]}" for pair in pairs]


def numbers(rng: random.Random, count: int) -> list[str]:
    """Different numbers of seven digits."""
    return [str(number) for number in rng.sample(range(1_000_000, 10_000_000), count)]


def uuids(rng: random.Random, count: int) -> list[str]:
    """Random UUIDs of version 4."""
    return [str(UUID(int=rng.getrandbits(128), version=4)) for _ in range(count)]


def codes(rng: random.Random, alphabet: str, letters: int, count: int) -> list[str]:
    """Different strings of that many random letters."""
    found: dict[str, None] = {}  # a set would lose the order
    while len(found) < count:
        found["".join(rng.choices(alphabet, k=letters))] = None
    return list(found)


def noise(lines: int) -> list[Passage]:
    """The same line again and again."""
    return [Passage(NOISE)] * lines


def scatter(rng: random.Random, lines: Sequence[Passage], needles: Sequence[Passage]) -> Passage:
    """The needles, in their order, at random gaps between lines, one a gap."""
    whole = list(lines)
    gaps = sorted(rng.sample(range(len(lines) + 1), len(needles)))
    for gap, needle in reversed(list(zip(gaps, needles, strict=True))):  # from the back: earlier gaps stay
        whole.insert(gap, needle)
    return join(whole, "\n")


def essay(rng: random.Random, sentences: int, needles: Sequence[Passage]) -> Passage:
    """Running prose with the needles, in their order, at sorted random depths."""
    world = World(rng, "en")
    whole = [Passage(text) for text in world.paragraph(sentences)]
    depths = sorted(rng.sample(DEPTHS, len(needles)))
    for depth, needle in reversed(list(zip(depths, needles, strict=True))):
        whole.insert(sentences * depth // 100, needle)
    return join(whole, " ")
