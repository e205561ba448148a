"""LongBench's retrieval tasks in the lab's vocabulary, from 512 to 128K tokens: the workload of `lab-long`.

`qa` is single-document QA: a fact is "key digit digit", the question "? key", as in `recall`. `passage_retrieval` is
LongBench's task of that name: a passage's number "digit digit" stands at its foot, as on a page, one of the 8 words
before it is a key, and the question "@ key" asks for the number of the passage which holds it. There are 16 facts or
passages whatever the length; the rest is filler (`workloads.lab`). Chance is 1/16 = 0.06 per digit, and twice that for
whoever names one of the 16 facts without knowing which.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from pydantic import Field

from workloads import recall
from workloads.lab import ANSWER_TOKENS, IntArray, Item, LabWorkload, as_item, compose
from workloads.longbench_data import LongBenchRecord
from workloads.schema import WorkloadConfig

ASK_PASSAGE = "@"
ENDING = 8  # words before a passage's number, of which one is its key

_VOCABULARY = (*recall.vocabulary(), ASK_PASSAGE)


def _passages(rng: np.random.Generator, keys: IntArray, numbers: IntArray) -> IntArray:
    fillers = recall.SCRIPT.fillers
    words = fillers.start + rng.integers(len(fillers), size=(len(keys), ENDING))
    words[np.arange(len(keys)), rng.integers(ENDING, size=len(keys))] = keys
    return np.column_stack([words, numbers])


SCRIPTS = {
    "qa": recall.SCRIPT,
    "passage_retrieval": replace(
        recall.SCRIPT,
        ask=_VOCABULARY.index(ASK_PASSAGE),
        fact_tokens=ENDING + ANSWER_TOKENS,
        write=_passages,
    ),
}
LENGTHS = tuple(1 << power for power in range(9, 18))


def vocabulary() -> list[str]:
    """Those of `recall`, and the mark of the second task's questions."""
    return list(_VOCABULARY)


class LabLongBenchConfig(WorkloadConfig):
    """`facts`: how many facts or passages stand in the text; one of them is asked for."""

    facts: int = Field(default=16, ge=1, le=32)


class LabLongBench(LabWorkload):
    """Tasks are "dataset-length". A user's own file holds records of LongBench's schema, `length` in tokens."""

    name = "lab-longbench"
    version = "1"
    tasks = tuple(f"{dataset}-{length}" for dataset in SCRIPTS for length in LENGTHS)
    score_name = "digit accuracy, 0-100"
    Config = LabLongBenchConfig
    Record = LongBenchRecord
    config: LabLongBenchConfig

    def _recorded(self, task: str) -> Iterator[Item]:
        for record in self._records:
            if f"{record.dataset}-{record.length}" == task:
                yield Item(f"{record.context} {record.input}", record.answers[0], {"length": record.length})

    def _item(self, task: str, index: int, seed: int) -> Item:
        dataset, length = task.split("-")
        rng = np.random.default_rng([seed, list(SCRIPTS).index(dataset), int(length), index])
        return as_item(compose(rng, SCRIPTS[dataset], int(length), 1, self.config.facts), _VOCABULARY)
