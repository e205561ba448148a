"""Text with known evidence: passages that remember where their evidence stands, joined into one context."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from workloads.generators.world import World
from workloads.lengths import estimate_tokens

Span = tuple[int, int]
PARAGRAPH_SENTENCES = 5


@dataclass(frozen=True)
class Passage:
    """A piece of text and the character spans of the evidence in it."""

    text: str
    evidence: tuple[Span, ...] = ()


@dataclass(frozen=True)
class Draft:
    """What a generator makes of one item; `gen_longbench` turns it into a record of the public schema.

    `unique`: the answers may stand in the evidence and nowhere else in context or input. `language`: of code; else "".
    """

    input: str
    context: str
    answers: list[str]
    evidence: tuple[Span, ...]
    all_classes: list[str] | None = None
    language: str = ""
    unique: bool = True


def evidence(text: str) -> Passage:
    """A passage that is evidence as a whole."""
    return Passage(text, ((0, len(text)),))


def join(passages: Sequence[Passage], separator: str) -> Passage:
    """One passage of many, evidence spans moved along."""
    spans: list[Span] = []
    offset = 0
    for passage in passages:
        spans += [(offset + start, offset + end) for start, end in passage.evidence]
        offset += len(passage.text) + len(separator)
    return Passage(separator.join(passage.text for passage in passages), tuple(spans))


def plant(world: World, sentence: Passage, sentences: int = PARAGRAPH_SENTENCES) -> Passage:
    """A paragraph of filler with `sentence` at a random place among `sentences` others."""
    parts = [Passage(text) for text in world.paragraph(sentences)]
    parts.insert(world.rng.randrange(sentences + 1), sentence)
    return join(parts, world.blank)


def filler(world: World, tokens: int) -> Iterator[Passage]:
    """Paragraphs without evidence, about `tokens` tokens in all."""
    left = tokens
    while left > 0:
        text = world.join(world.paragraph(PARAGRAPH_SENTENCES))
        left -= estimate_tokens(text)
        yield Passage(text)


def size(passages: Sequence[Passage]) -> int:
    """About how many tokens the passages have together."""
    return sum(estimate_tokens(passage.text) for passage in passages)
