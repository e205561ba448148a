"""Infilling problems: Python functions of which one line is missing, every line of the body once.

The docstring says what each step does, so that the missing line follows from it and from the code around it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from workloads.generators.ruler_parts import lexicon
from workloads.generators.seeding import item_rng

FUNCTIONS = 164
"""As many as HumanEval has."""
STEPS = (2, 6)
VERBS = ("count", "weigh", "rank", "measure", "collect", "reduce", "inspect", "settle")
TRANSFORMS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Keep the values above {n}.", ("{data} = [value for value in {data} if value > {n}]",)),
    ("Drop the values that {n} divides.", ("{data} = [value for value in {data} if value % {n}]",)),
    ("Add {n} to every value.", ("{data} = [value + {n} for value in {data}]",)),
    ("Multiply every value by {n}.", ("{data} = [value * {n} for value in {data}]",)),
    ("Sort the values, the largest first.", ("{data} = sorted({data}, reverse=True)",)),
    ("Forget repeated values.", ("{data} = list(dict.fromkeys({data}))",)),
    ("Leave out the first {n} values.", ("{data} = {data}[{n}:]",)),
    ("Put {n} at the end.", ("{data} = [*{data}, {n}]",)),
    ("If there are more than {n}, leave out the last one.", ("if len({data}) > {n}:", "    {data} = {data}[:-1]")),
    (
        "Subtract {n} from every second value.",
        ("for index in range(0, len({data}), 2):", "    {data}[index] -= {n}"),
    ),
)
RESULTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Return their sum.", ("return sum({data})",)),
    ("Return how many are not {n}.", ("return sum(value != {n} for value in {data})",)),
    ("Return the largest, or {n} if there is none.", ("return max({data}, default={n})",)),
    (
        "Return {n} plus their sum.",
        ("total = {n}", "for value in {data}:", "    total += value", "return total"),
    ),
)


@dataclass(frozen=True)
class Problem:
    """`prefix`, `solution` and `suffix` are the source of a function, in this order."""

    task_id: str
    prefix: str
    suffix: str
    solution: str


def problems(seed: int) -> Iterator[Problem]:
    """All problems of a seed: about a thousand, those of a function one after the other."""
    for number in range(FUNCTIONS):
        head, body = function(item_rng("infilling", seed, number))
        for line, solution in enumerate(body):
            prefix = head + "".join(f"{text}\n" for text in body[:line])
            suffix = "\n" + "".join(f"{text}\n" for text in body[line + 1 :])
            yield Problem(f"SingleLineInfilling/Synthetic/{number}/L{line}", prefix, suffix, solution)


def function(rng: random.Random) -> tuple[str, list[str]]:
    """The head of a function, docstring included, and the lines of its body."""
    adjectives, nouns = lexicon()
    adjective, noun = rng.choice(adjectives), rng.choice(nouns)
    steps = [*rng.choices(TRANSFORMS, k=rng.randint(*STEPS)), rng.choice(RESULTS)]
    told, body = [f"Look at {adjective} {noun}s step by step."], [f"{noun}s = list({noun}s)"]
    for sentence, lines in steps:
        number = rng.randint(2, 99)
        told.append(sentence.format(n=number))
        body += [line.format(n=number, data=f"{noun}s") for line in lines]
    name = f"{rng.choice(VERBS)}_{adjective}_{noun}s"
    docstring = "\n    ".join(told)
    head = f'def {name}({noun}s: list[int]) -> int:\n    """{docstring}\n    """\n'
    return head, [f"    {line}" for line in body]
