"""Multi-needle key-value recall, the lab model's task (card `methods/longheads.md`, "At small scale").

A sequence of whitespace-separated tokens from a tiny vocabulary: random filler words, in which pairs "key digit digit"
stand at random places, and at the end the question "? key". The answer is that key's two digits. Digits have 16
symbols, so chance is 1/16 = 0.06 per digit. A key occurs only in its pair and in the question, which is what marks it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field

from workloads.loading import read_records
from workloads.schema import Completion, DataError, Request, Workload, WorkloadConfig

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>")
ASK = "?"
DIGITS = tuple("0123456789abcdef")
KEYS = tuple(f"k{i:02}" for i in range(32))
FILLERS = tuple(f"w{i:02}" for i in range(32))

_VOCABULARY = (*SPECIALS, ASK, *DIGITS, *KEYS, *FILLERS)
_ID = {token: index for index, token in enumerate(_VOCABULARY)}
_BOS, _ASK = _ID["<bos>"], _ID[ASK]
_DIGIT, _KEY, _FILLER = _ID[DIGITS[0]], _ID[KEYS[0]], _ID[FILLERS[0]]

ANSWER_DIGITS = 2
PAIR_TOKENS = 1 + ANSWER_DIGITS
QUERY_TOKENS = 2 + ANSWER_DIGITS


def vocabulary() -> list[str]:
    """All tokens; a token's place in the list is its id. The first four are padding, begin, end and unknown."""
    return list(_VOCABULARY)


def training_batch(
    rng: np.random.Generator, batch: int, length: int, queries: int, pairs: int = 4
) -> tuple[IntArray, BoolArray]:
    """Sequences for the trainer: token ids [batch, length] and the mask [batch, length] of the tokens to predict.

    Every sequence starts with `<bos>` and ends with `queries` questions and their answers; more questions than pairs
    ask for some pair again. `mask[b, t]` is true where token t is an answer digit: its loss is taken from the logits at
    t - 1. With `queries` = 1 a sequence is exactly an evaluation item of that length followed by its answer.
    """
    ids = np.stack([_sequence(rng, length, queries, pairs)[0] for _ in range(batch)])
    mask = np.zeros(ids.shape, dtype=np.bool_)
    for query in range(queries):
        end = length - query * QUERY_TOKENS
        mask[:, end - ANSWER_DIGITS : end] = True
    return ids, mask


def _sequence(rng: np.random.Generator, length: int, queries: int, pairs: int) -> tuple[IntArray, IntArray, IntArray]:
    """Token ids [length], where each pair starts [pairs], and which pair each query asks for [queries]."""
    fillers = length - 1 - pairs * PAIR_TOKENS - queries * QUERY_TOKENS
    if fillers < 0 or queries < 1 or not 1 <= pairs <= len(KEYS):
        raise DataError(
            f"{pairs} pairs and {queries} queries do not fit into {length} tokens; expected at least 1 query, "
            f"1 to {len(KEYS)} pairs, and a length of at least {length - fillers}."
        )
    keys = _KEY + rng.choice(len(KEYS), pairs, replace=False)
    digits = _DIGIT + rng.integers(len(DIGITS), size=(pairs, ANSWER_DIGITS))
    starts = _pair_starts(rng, fillers, pairs)
    ids = _FILLER + rng.integers(len(FILLERS), size=length)
    ids[0] = _BOS
    facts = np.column_stack([keys, digits])
    ids[starts[:, None] + np.arange(PAIR_TOKENS)] = facts
    asked = rng.permutation(pairs)[:queries] if queries <= pairs else rng.integers(pairs, size=queries)
    tail = np.column_stack([np.full(queries, _ASK), facts[asked]])
    ids[length - queries * QUERY_TOKENS :] = tail.ravel()
    return ids, starts, asked


def _pair_starts(rng: np.random.Generator, fillers: int, pairs: int) -> IntArray:
    """Sorted first-token indices of non-overlapping pairs; every arrangement of pairs and fillers is equally likely."""
    slots = np.sort(rng.choice(fillers + pairs, pairs, replace=False))
    starts: IntArray = 1 + slots + np.arange(pairs) * (PAIR_TOKENS - 1)
    return starts


class RecallRecord(BaseModel):
    """One item of a user's own file. `length` = tokens of `<bos>`, prompt and answer together."""

    prompt: str = Field(min_length=1)
    answer: str = Field(min_length=1)
    length: int = Field(ge=1)


class RecallConfig(WorkloadConfig):
    """`pairs`: how many keys stand in the text; one of them is asked for."""

    pairs: int = Field(default=4, ge=1, le=len(KEYS))


class Recall(Workload):
    """Key-value recall at 128 to 2048 tokens (the task's name); the lab model is trained on 32 to 128.

    The prompt holds no `<bos>`: the lab model's tokenizer puts it in front, as in training. Lengths count it, and the
    answer's two digits too, so that nothing of task "128" lies beyond a context of 128.
    """

    name = "recall"
    version = "1"
    tasks = ("128", "256", "512", "1024", "2048")
    score_name = "digit accuracy, 0-100"
    Config = RecallConfig
    config: RecallConfig
    chance: ClassVar[float] = 100.0 / len(DIGITS)

    def __init__(self, config: RecallConfig | None = None) -> None:
        super().__init__(config)
        self._records = read_records(self.config.data, RecallRecord) if self.config.data else []

    @property
    def source(self) -> str:
        return str(self.config.data) if self.config.data else "synthetic"

    def data_files(self) -> Sequence[Path]:
        return (self.config.data,) if self.config.data else ()

    def requests(self, task: str, limit: int, seed: int) -> Iterator[Request]:
        self.check_task(task)
        length = int(task)
        if self._records:
            chosen = [record for record in self._records if record.length == length]
            for index, record in enumerate(chosen[:limit]):
                yield _request(task, index, seed, record.prompt, record.answer, {"length": length})
            return
        for index in range(limit):
            yield self._generated(task, length, index, seed)

    def _generated(self, task: str, length: int, index: int, seed: int) -> Request:
        rng = np.random.default_rng([seed, length, index])
        ids, starts, asked = _sequence(rng, length, 1, self.config.pairs)
        words = [_VOCABULARY[token] for token in ids[1:]]
        needle = int(starts[asked[0]])
        metadata = {
            "length": length,
            "needle_token": needle,
            "pair_tokens": starts.tolist(),
            "depth": needle / (length - QUERY_TOKENS),
        }
        prompt, answer = words[:-ANSWER_DIGITS], words[-ANSWER_DIGITS:]
        return _request(task, index, seed, " ".join(prompt), " ".join(answer), metadata)

    def score(self, completion: Completion, request: Request) -> float:
        """Share of the answer's digits that are right, each at its place, x100."""
        expected = request.references[0].split()
        given = completion.text.split()
        return 100.0 * sum(a == b for a, b in zip(expected, given, strict=False)) / len(expected)


def _request(task: str, index: int, seed: int, prompt: str, answer: str, metadata: dict[str, object]) -> Request:
    return Request(
        id=f"recall/{task}/{index}",
        task=task,
        prompt=prompt,
        references=(answer,),
        metric="digit_accuracy",
        max_new_tokens=ANSWER_DIGITS,
        seed=seed,
        truncation="extend",
        metadata=metadata,
    )
