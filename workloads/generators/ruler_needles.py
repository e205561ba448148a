"""RULER's retrieval tasks: needles in three kinds of haystack, and the tracking of a chain of variables."""

from __future__ import annotations

import random
import string
from collections.abc import Callable
from typing import Literal

from workloads.generators.passages import Passage, evidence
from workloads.generators.ruler_parts import Sample, codes, compounds, essay, noise, numbers, scatter, uuids

Kind = Literal["word", "number", "uuid"]
DRAW: dict[Kind, Callable[[random.Random, int], list[str]]] = {"word": compounds, "number": numbers, "uuid": uuids}

NEEDLE = "Among the secret {kind}s for {key} there is {value}."
MANY = (
    "Some secret {kind}s are hidden in the text below. Remember them: you will be asked for them at the end.\n",
    "\nWhich secret {kind}s for {query} does the text above give?",
    " The secret {kind}s for {query} that the text above gives are",
)
ONE = (
    "A secret {kind} is hidden in the text below. Remember it: you will be asked for it at the end.\n",
    "\nWhich secret {kind} for {query} does the text above give?",
    " The secret {kind} for {query} that the text above gives is",
)


def niah(
    rng: random.Random,
    length: int,
    units: int,
    haystack: Literal["noise", "essay", "needles"],
    key: Kind = "word",
    value: Kind = "number",
    keys: int = 1,
    values: int = 1,
    queries: int = 1,
) -> Sample:
    """`keys` keys with `values` values each, of which the first `queries` keys are asked for.

    `units`: lines of noise, sentences of an essay, or needles that are the haystack. Keys and values are all different.
    """
    spare = units if haystack == "needles" else 0
    names = DRAW[key](rng, keys + spare)
    given = DRAW[value](rng, keys * values + spare)
    owners = [name for name in names[:keys] for _ in range(values)] + names[keys:]
    texts = [NEEDLE.format(kind=value, key=name, value=item) for name, item in zip(owners, given, strict=True)]
    asked, hidden = queries * values, keys * values
    needles = [*map(evidence, texts[:asked]), *map(Passage, texts[asked:hidden])]
    rng.shuffle(needles)
    if haystack == "essay":
        context = essay(rng, units, needles)
    else:
        lines = noise(units) if haystack == "noise" else [Passage(text) for text in texts[hidden:]]
        context = scatter(rng, lines, needles)
    before, after, prefix = (
        part.format(kind=value, query=_enumeration(names[:queries])) for part in (ONE if asked == 1 else MANY)
    )
    return Sample(before, context, after, prefix, given[:asked])


def _enumeration(names: list[str]) -> str:
    """a, b, and c"""
    *first, last = names
    return ", ".join([*first, f"and {last}"]) if first else last


HOPS = 4
LETTERS, EXAMPLE_LETTERS = 5, 3
TRACK = "Below, variables are set to values or to other variables. Keep track of them.\n\n"
TRACK_QUESTION = "\nQuestion: Which variables have the value {value} in the text above?"
TRACK_PREFIX = " Answer: By the assignments in the text above, {count} variables have the value {value}. They are:"


def variable_tracking(rng: random.Random, length: int, units: int) -> Sample:
    """vt: one chain of assignments in noise, after an example with shorter names and another value.

    `units`: lines of noise beside the few that keep assignments apart; the example has one.
    """
    values = [str(number) for number in rng.sample(range(10_000, 100_000), 2)]
    example = _chain(rng, 1, values[0], EXAMPLE_LETTERS)
    asked = _chain(rng, units, values[1], LETTERS)
    shown = f"{example.input}{example.answer_prefix} {' '.join(example.outputs)}\n\n"
    return Sample(shown + asked.before, asked.context, asked.after, asked.answer_prefix, asked.outputs)


def _chain(rng: random.Random, units: int, value: str, letters: int) -> Sample:
    names = codes(rng, string.ascii_uppercase, letters, HOPS + 1)
    sources = [value, *(f"VAR {name}" for name in names)]
    statements = [evidence(f"VAR {name} = {source}") for name, source in zip(names, sources[:-1], strict=True)]
    return Sample(
        TRACK,
        scatter(rng, noise(HOPS + units), statements),
        TRACK_QUESTION.format(value=value),
        TRACK_PREFIX.format(value=value, count=len(names)),
        names,
    )
