"""Few-shot tasks: labelled examples, then a last one to complete.

The last example's text is the end of `context` and only its open label is in `input`, so that a run without the
context cannot answer. Laid out by the templates, the prompt reads the same as the official one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from workloads.generators.passages import Draft, Passage, evidence, join, plant
from workloads.generators.questions import instance
from workloads.generators.world import World
from workloads.lengths import estimate_tokens

PASSAGE_SENTENCES = 2


def classification(world: World, dataset: str, tokens: int, labels: tuple[str, str]) -> Draft:
    """The class follows from a cue word that stands in at least one labelled example. `labels`: of text and class."""
    shots = world.lexicon["few_shot"]
    classes: dict[str, list[str]] = shots["classes"]
    text_label, class_label = labels
    answer = world.rng.choice(list(classes))
    asked = world.rng.choice(classes[answer])

    def example(cue: str, name: str) -> Passage:
        text = f"{text_label}{_classified(world, shots, cue)}\n{class_label}{world.blank}{name}"
        return evidence(text) if cue == asked else Passage(text)

    question = f"{text_label}{_classified(world, shots, asked)}\n{class_label}"

    def random_example() -> Passage:
        name = world.rng.choice(list(classes))
        return example(world.rng.choice(classes[name]), name)

    examples = _until(tokens - estimate_tokens(question), example(asked, answer), random_example)
    world.rng.shuffle(examples)
    whole = join(examples, "\n")
    return Draft(question, whole.text, [answer], whole.evidence, list(classes), unique=False)


def _classified(world: World, shots: dict[str, Any], cue: str) -> str:
    return world.bind(world.rng.choice(shots["questions"]), {"{cue}": cue})


def trivia(world: World, dataset: str, tokens: int) -> Draft:
    """Passage, question, answer; the last passage holds the fact the last question asks for."""
    chains = world.lexicon["facts"]["multifieldqa_en"]

    def example() -> tuple[Passage, str, str]:
        chain = world.rng.choice(chains)
        facts, bound = instance(world, chain)
        passage = plant(world, evidence(facts[0]), PASSAGE_SENTENCES)
        return passage, world.bind(chain["question"], bound), world.bind(chain["answers"][0], bound)

    last, question, answer = example()
    world.keep()

    def shown() -> Passage:
        passage, asked, given = example()
        return Passage(f"Passage:\n{passage.text}\nQuestion:\n{asked}\nAnswer:\n{given}")

    ending = join([Passage("Passage:\n"), last], "")
    whole = _with_ending(ending, tokens - estimate_tokens(question), shown)
    return Draft(f"Question:\n{question}\nAnswer:\n", whole.text, [answer], whole.evidence)


def dialogue(world: World, dataset: str, tokens: int) -> Draft:
    """Dialogue, summary; the last dialogue is to be summarised in the same form."""

    def example() -> tuple[str, str]:
        shape = world.rng.choice(world.lexicon["dialogues"])
        bound: dict[str, str] = {}
        return world.bind("\n".join(shape["lines"]), bound), world.bind(shape["summary"], bound)

    talk, summary = example()

    def shown() -> Passage:
        return Passage("Dialogue: {}\nSummary: {}".format(*example()))

    ending = join([Passage("Dialogue: "), evidence(talk)], "")
    whole = _with_ending(ending, tokens, shown)
    return Draft("Summary:", whole.text, [summary], whole.evidence)


def _until(tokens: int, first: Passage, make: Callable[[], Passage]) -> list[Passage]:
    """`first`, and as many made ones as fit."""
    passages, left = [first], tokens - estimate_tokens(first.text)
    while left > 0:
        passages.append(make())
        left -= estimate_tokens(passages[-1].text)
    return passages


def _with_ending(ending: Passage, tokens: int, make: Callable[[], Passage]) -> Passage:
    last, *shown = _until(tokens, ending, make)
    return join([*shown, last], "\n\n")
