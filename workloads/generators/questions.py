"""Question answering: one to three facts, each in a passage of its own, among distractors of the same kind."""

from __future__ import annotations

from typing import Any

from workloads.generators.passages import Draft, Passage, evidence, filler, join, plant, size
from workloads.generators.world import World

DISTRACTORS = 1
DISTRACTOR_FACTS = 2
"""Of a distractor chain: with the third fact of three-hop questions too, a small model finds none of the answers."""
LABELS = {
    "plain": "",
    "passages": "Passage {number}:\n",
    "paper": "{number}. {heading}\n",
    "articles": "文章{number}\n",
}


def question_answer(world: World, dataset: str, tokens: int, label: str = "plain") -> Draft:
    """A question whose facts stand at random depths. `label`: what a passage starts with, a key of `LABELS`."""
    chain = world.rng.choice(world.lexicon["facts"][dataset])
    facts, bound = instance(world, chain)
    others = [text for _ in range(DISTRACTORS) for text in instance(world, chain)[0][:DISTRACTOR_FACTS]]
    passages = [plant(world, evidence(text)) for text in facts]
    passages += [plant(world, Passage(text)) for text in others]
    passages += filler(world, tokens - size(passages))
    world.rng.shuffle(passages)
    whole = join(_labelled(world, passages, LABELS[label]), "\n\n")
    return Draft(
        input=world.bind(chain["question"], bound),
        context=whole.text,
        answers=[world.bind(answer, bound) for answer in chain["answers"]],
        evidence=whole.evidence,
    )


def instance(world: World, chain: dict[str, Any]) -> tuple[list[str], dict[str, str]]:
    """The chain's facts about entities not met before, and the names those entities got."""
    bound: dict[str, str] = {}
    return [world.bind(fact, bound) for fact in chain["facts"]], bound


def _labelled(world: World, passages: list[Passage], label: str) -> list[Passage]:
    headings: list[str] = world.lexicon.get("headings", [""])
    return [
        join([Passage(label.format(number=number, heading=headings[(number - 1) % len(headings)])), passage], "")
        for number, passage in enumerate(passages, start=1)
    ]
