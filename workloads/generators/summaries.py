"""Summaries: a few key sentences among filler; the reference is the key sentences in the order of the text."""

from __future__ import annotations

from workloads.generators.passages import PARAGRAPH_SENTENCES, Draft, Passage, evidence, filler, join, size
from workloads.generators.world import World

KEY_SENTENCES = 3
QUERY = "What did the group agree on in this meeting?"


def report(world: World, dataset: str, tokens: int) -> Draft:
    """A report whose key sentences each open a paragraph."""
    return _draft(world, _paragraphs(world, dataset, tokens), "\n\n", query="")


def news(world: World, dataset: str, tokens: int) -> Draft:
    """Several news items, each opened by its key sentence."""
    items = _paragraphs(world, dataset, tokens)
    items = [join([Passage(f"Passage {number}:\n"), item], "") for number, item in enumerate(items, start=1)]
    return _draft(world, items, "\n\n", query="")


def meeting(world: World, dataset: str, tokens: int, query: str = "") -> Draft:
    """A transcript: every paragraph is one turn of a speaker."""
    speakers = [world.draw("person") for _ in range(4)]
    colon = ": " if world.blank else "："
    turns = [
        join([Passage(world.rng.choice(speakers) + colon), turn], "") for turn in _paragraphs(world, dataset, tokens)
    ]
    return _draft(world, turns, "\n", query)


def _paragraphs(world: World, dataset: str, tokens: int) -> list[Passage]:
    templates: list[str] = world.lexicon["key_points"][dataset]
    chosen = world.rng.sample(templates, min(KEY_SENTENCES, len(templates)))
    keys = [world.bind(template, {}) for template in chosen]
    paragraphs = [
        join([evidence(key), Passage(world.join(world.paragraph(PARAGRAPH_SENTENCES - 1)))], world.blank)
        for key in keys
    ]
    paragraphs += filler(world, tokens - size(paragraphs))
    world.rng.shuffle(paragraphs)
    return paragraphs


def _draft(world: World, paragraphs: list[Passage], separator: str, query: str) -> Draft:
    whole = join(paragraphs, separator)
    reference = world.join([whole.text[start:end] for start, end in whole.evidence])
    return Draft(input=query, context=whole.text, answers=[reference], evidence=whole.evidence)
