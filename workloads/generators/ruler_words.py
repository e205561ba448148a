"""RULER's aggregation tasks: the most common words of a list, and of a text in code."""

from __future__ import annotations

import math
import random
import string

from workloads.generators.passages import Passage
from workloads.generators.ruler_parts import Sample, codes, compounds, lexicon

COMMON = 10
SHORT = 4096
"""Below this length, in tokens, a list and its example have fewer words."""
LIST = "Below is a numbered list of words. Some come up more often than the others. Keep the ten most common in mind.\n"
LIST_QUESTION = "\nQuestion: Which ten words come up most often in the list above?"
LIST_PREFIX = " Answer: The ten words that come up most often in the list above are:"


def common_words(rng: random.Random, length: int, units: int) -> Sample:
    """cwe: ten common words among `units` others in a numbered list, after an example with words of its own.

    The example of a short item is the original code's as remembered (20 words, x3 and x1): the usual one of 190 entries
    would leave little room for the list itself.
    """
    example_words, example_counts, counts = (20, (3, 1), (6, 1)) if length < SHORT else (40, (10, 3), (30, 3))
    words = _vocabulary(rng, example_words + COMMON + units)
    example = _list(rng, words[:example_words], *example_counts)
    asked = _list(rng, words[example_words:], *counts)
    shown = f"{example.input}{example.answer_prefix}\n{_numbered(example.outputs)}\n\n"
    return Sample(shown + asked.before, asked.context, asked.after, asked.answer_prefix, asked.outputs)


def _vocabulary(rng: random.Random, count: int) -> list[str]:
    """Different words of one kind: plain ones, or compounds where there are not enough."""
    adjectives, nouns = lexicon()
    plain = adjectives + nouns
    return rng.sample(plain, count) if count <= len(plain) else compounds(rng, count)


def _list(rng: random.Random, words: list[str], often: int, seldom: int) -> Sample:
    """The first ten words `often` times each, the others `seldom` times."""
    common = words[:COMMON]
    entries = common * often + words[COMMON:] * seldom
    rng.shuffle(entries)
    return Sample(LIST, Passage(_numbered(entries)), LIST_QUESTION, LIST_PREFIX, common)


def _numbered(words: list[str]) -> str:
    """One a line: tokenizers differ in what they make of a blank before a number."""
    return "\n".join(f"{number}. {word}" for number, word in enumerate(words, start=1))


ALPHA = 2
ZETA = math.pi**2 / 6
"""zeta(ALPHA)"""
CODE_LETTERS = 6
TOKENS_A_CODE = 50
NOISE_MARK = "..."
CODED = "Below is a text in code. Keep in mind how often each of its words comes up.\n\n"
CODED_QUESTION = (
    "\nQuestion: Without any explanation, and leaving aside the dots '...': "
    "which three words come up most often in the coded text above?"
)
CODED_PREFIX = " Answer: The three words that come up most often in the coded text above are:"


def frequent_words(rng: random.Random, length: int, units: int) -> Sample:
    """fwe: about `units` coded words whose frequencies follow a zeta law; the most frequent one is shown as dots."""
    coded = codes(rng, string.ascii_lowercase, CODE_LETTERS, length // TOKENS_A_CODE - 1)
    words = [
        word
        for rank, word in enumerate([NOISE_MARK, *coded], start=1)
        for _ in range(math.floor(units * rank**-ALPHA / ZETA))
    ]
    rng.shuffle(words)
    return Sample(CODED, Passage(" ".join(words)), CODED_QUESTION, CODED_PREFIX, coded[:3])
