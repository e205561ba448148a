"""RULER's question answering: the document(s) with the answer among numbered others, from the suite's seeded world."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import islice
from typing import Any

from workloads.generators.passages import Passage, evidence, join, plant
from workloads.generators.questions import instance
from workloads.generators.ruler_parts import Sample
from workloads.generators.world import World

SAME_KIND = 8
INSTRUCTION = "Answer the question from the documents below. Give the answer alone, in a few words.\n\n"
QUESTION = (
    "\n\nAnswer the question from the documents above. Give the answer alone, in a few words.\n\nQuestion: {question}"
)
PREFIX = " Answer:"


def question(rng: random.Random, length: int, units: int, facts: tuple[str, ...]) -> Sample:
    """A question among `units` other documents. `facts`: the lists of the lexicon to draw questions from.

    Each fact stands in a document of its own: one for a question of one hop, two for two.
    """
    world = World(rng, "en")
    chains = [chain for name in facts for chain in world.lexicon["facts"][name]]
    asked = rng.choice(chains)
    gold, bound = instance(world, asked)
    world.keep()
    documents = [plant(world, evidence(fact)) for fact in gold]
    documents += islice(_others(world, asked, chains), units)
    rng.shuffle(documents)
    numbered = [
        join([Passage(f"Document {number}:\n"), document], "") for number, document in enumerate(documents, start=1)
    ]
    # "a goat called Tiger" is right without its article too
    answers = [world.bind(answer, bound).removeprefix("a ") for answer in asked["answers"]]
    asking = QUESTION.format(question=world.bind(asked["question"], bound))
    return Sample(INSTRUCTION, join(numbered, "\n\n"), asking, PREFIX, answers)


def _others(world: World, asked: dict[str, Any], chains: list[dict[str, Any]]) -> Iterator[Passage]:
    """Documents without end: first about the same matter, as those of the same article are, then about any."""
    made = 0
    while True:
        for fact in instance(world, asked if made < SAME_KIND else world.rng.choice(chains))[0]:
            yield plant(world, Passage(fact))
            made += 1
