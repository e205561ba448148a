"""`gen_ruler`: records of RULER's public schema from a seed, for all 13 tasks (arXiv 2404.06654)."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from workloads.generators.ruler_needles import niah, variable_tracking
from workloads.generators.ruler_parts import Sample
from workloads.generators.ruler_questions import question
from workloads.generators.ruler_words import common_words, frequent_words
from workloads.generators.seeding import item_rng
from workloads.lengths import estimate_tokens

GENERATOR_VERSION = "1"
SHORTEST = 1024
"""Tokens that every task fits into, whatever the seed."""


@dataclass(frozen=True)
class Task:
    """`make(rng, length, units)`: an item of a task, `units` being the size of its haystack in the task's own unit."""

    make: Callable[[random.Random, int, int], Sample]
    max_new_tokens: int
    metric: str = "all_references"


TASKS: Mapping[str, Task] = {
    "niah_single_1": Task(partial(niah, haystack="noise"), 128),
    "niah_single_2": Task(partial(niah, haystack="essay"), 128),
    "niah_single_3": Task(partial(niah, haystack="essay", value="uuid"), 128),
    "niah_multikey_1": Task(partial(niah, haystack="essay", keys=4), 128),
    "niah_multikey_2": Task(partial(niah, haystack="needles"), 128),
    "niah_multikey_3": Task(partial(niah, haystack="needles", key="uuid", value="uuid"), 128),
    "niah_multivalue": Task(partial(niah, haystack="essay", values=4), 128),
    "niah_multiquery": Task(partial(niah, haystack="essay", keys=4, queries=4), 128),
    "vt": Task(variable_tracking, 30),
    "cwe": Task(common_words, 120),
    "fwe": Task(frequent_words, 50),
    "qa_1": Task(partial(question, facts=("multifieldqa_en",)), 32, "any_reference"),
    "qa_2": Task(partial(question, facts=("hotpotqa", "2wikimqa")), 32, "any_reference"),
}


def gen_ruler(seed: int, task: str, n: int, length: int) -> Iterator[dict[str, Any]]:
    """`n` records whose input, answer prefix and new tokens fit into `length` tokens (`lengths.estimate_tokens`).

    As in the original, the size of the haystack is searched for once, with the first item, and reduced for an item that
    is too long with it. Beside the official fields a record holds `evidence_spans` (character spans in `input` of the
    needles, assignments or facts asked for; none where the whole text is) and `depths` (where they start in the
    haystack, 0 to 1). Record i depends on the seed, the task, the length and i alone.
    """
    make, new_tokens = TASKS[task].make, TASKS[task].max_new_tokens

    def sample(index: int, units: int) -> Sample:
        return make(item_rng("ruler", GENERATOR_VERSION, task, length, seed, index), length, units)

    def tokens(made: Sample) -> int:
        return estimate_tokens(made.input + made.answer_prefix) + new_tokens

    most = _largest(lambda units: tokens(sample(0, units)) <= length)
    for index in range(n):
        units, made = most, sample(index, most)
        while tokens(made) > length:
            units -= max(1, units // 100)
            made = sample(index, units)
        yield {
            "index": index,
            "input": made.input,
            "outputs": made.outputs,
            "length": tokens(made),
            "answer_prefix": made.answer_prefix,
            "evidence_spans": made.evidence,
            "depths": made.depths,
        }


def _largest(fits: Callable[[int], bool]) -> int:
    """The largest number that fits, by doubling and then by binary search."""
    bound = 1
    while fits(bound):
        bound *= 2
    return bisect_left(range(bound), True, lo=bound // 2, key=lambda units: not fits(units)) - 1
