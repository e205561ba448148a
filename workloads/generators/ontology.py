"""Questions in GPQA's schema about an invented chemistry: everything needed is told, so nobody knows it by heart.

Four chains of reactions start from four substances, told in mixed order. Asked is what one of them ends in; the wrong
options are the ends of the others. Without the text each option is as likely as the next.
"""

from __future__ import annotations

import random
from itertools import pairwise

OPTIONS = 4
DOMAINS = {"Biology": "Molecular Biology", "Chemistry": "Organic Chemistry", "Physics": "Condensed Matter Physics"}
AGENTS = ("the enzyme", "the catalyst", "the microbe", "the field")
VERBS = ("turns", "converts", "changes")
_STARTS = ("b", "br", "d", "dr", "f", "g", "gl", "k", "kr", "l", "m", "n", "p", "pl", "r", "s", "st", "t", "tr", "v")
_VOWELS = ("a", "e", "i", "o", "u", "ae", "io")
_ENDS = ("lane", "rite", "sol", "xine", "dole", "phene", "gon", "mide")


def ontology_question(rng: random.Random) -> dict[str, str]:
    """A record of GPQA's columns, without its `Record ID`."""
    hops = rng.randint(2, 4)
    names = _names(rng, OPTIONS * (2 * hops + 1))
    chains = [[names.pop() for _ in range(hops + 1)] for _ in range(OPTIONS)]
    facts = [(names.pop(), before, after) for chain in chains for before, after in pairwise(chain)]
    agent, verb, domain = rng.choice(AGENTS), rng.choice(VERBS), rng.choice(list(DOMAINS))
    told = [f"{agent.capitalize()} {tool} {verb} {before} into {after}." for tool, before, after in facts]
    used = [tool for tool, before, _ in facts if before in chains[0]]
    asked = f"A sample of {chains[0][0]} is exposed to {', '.join(used[:-1])} and {used[-1]}, one after the other"
    rng.shuffle(told)
    return {
        "Question": f"{' '.join(told)}\n\n{asked}. Which substance is there in the end?",
        "Correct Answer": chains[0][-1],
        **{f"Incorrect Answer {number}": chains[number][-1] for number in range(1, OPTIONS)},
        "Explanation": "\n\n".join(f"{tool} {verb} {before} into {after}." for tool, before, after in facts[:hops]),
        "High-level domain": domain,
        "Subdomain": DOMAINS[domain],
    }


def _names(rng: random.Random, count: int) -> list[str]:
    """Different invented words, none of which is a part of another."""
    found: dict[str, None] = {}
    while len(found) < count:
        word = "".join(rng.choice(_STARTS) + rng.choice(_VOWELS) for _ in range(2)) + rng.choice(_ENDS)
        if not any(word in other or other in word for other in found):
            found[word] = None
    return list(found)
