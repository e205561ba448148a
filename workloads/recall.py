"""Multi-needle key-value recall, the task of `lab-recall` (card `methods/longheads.md`, "At small scale").

A fact is a pair "key digit digit", the question "? key" (`workloads.lab`). Both digits come from one set of symbols.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from pydantic import BaseModel, Field

from workloads.lab import (
    ANSWER_TOKENS,
    SPECIALS,
    BoolArray,
    IntArray,
    Item,
    LabWorkload,
    Script,
    as_item,
    compose,
    compose_batch,
)
from workloads.schema import WorkloadConfig

ASK = "?"
DIGITS = tuple("0123456789abcdef")
KEYS = tuple(f"k{i:02}" for i in range(32))
FILLERS = tuple(f"w{i:02}" for i in range(32))
PAIR_TOKENS = 1 + ANSWER_TOKENS

_VOCABULARY = (*SPECIALS, ASK, *DIGITS, *KEYS, *FILLERS)
_KEY, _FILLER, _DIGIT = (_VOCABULARY.index(first) for first in (KEYS[0], FILLERS[0], DIGITS[0]))


def _pairs(rng: np.random.Generator, keys: IntArray, digits: IntArray) -> IntArray:
    return np.column_stack([keys, digits])


SCRIPT = Script(
    ask=_VOCABULARY.index(ASK),
    symbols=(_DIGIT, _DIGIT),
    keys=range(_KEY, _KEY + len(KEYS)),
    fillers=range(_FILLER, _FILLER + len(FILLERS)),
    fact_tokens=PAIR_TOKENS,
    write=_pairs,
)


def vocabulary() -> list[str]:
    """All tokens; a token's place in the list is its id. The first four are padding, begin, end and unknown."""
    return list(_VOCABULARY)


def training_batch(
    rng: np.random.Generator, batch: int, length: int, queries: int, pairs: int = 4
) -> tuple[IntArray, BoolArray]:
    """`workloads.lab.compose_batch` of this task: ids and mask [batch, length]."""
    return compose_batch(rng, SCRIPT, batch, length, queries, pairs)


class RecallRecord(BaseModel):
    """One item of a user's own file. `length` = tokens of `<bos>`, prompt and answer together."""

    prompt: str = Field(min_length=1)
    answer: str = Field(min_length=1)
    length: int = Field(ge=1)


class RecallConfig(WorkloadConfig):
    """`pairs`: how many keys stand in the text; one of them is asked for."""

    pairs: int = Field(default=4, ge=1, le=len(KEYS))


class Recall(LabWorkload):
    """Key-value recall at 128 to 2048 tokens (the task's name); the lab model is trained on 32 to 128."""

    name = "recall"
    version = "1"
    tasks = ("128", "256", "512", "1024", "2048")
    score_name = "digit accuracy, 0-100"
    Config = RecallConfig
    Record = RecallRecord
    config: RecallConfig

    def _recorded(self, task: str) -> Iterator[Item]:
        for record in self._records:
            if record.length == int(task):
                yield Item(record.prompt, record.answer, {"length": record.length})

    def _item(self, task: str, index: int, seed: int) -> Item:
        rng = np.random.default_rng([seed, int(task), index])
        return as_item(compose(rng, SCRIPT, int(task), 1, self.config.pairs), _VOCABULARY)
