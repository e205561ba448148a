"""What the lab workloads share: facts in filler, questions at the end, and how an answer counts.

A lab text is whitespace-separated tokens of a tiny vocabulary: random filler words in which facts stand at random
places, and at the end a question, "mark key". A fact ties two symbols to a key; they are the answer. Each is one of 16,
so chance is 1/16 = 0.06 per symbol. A key occurs only in its fact and in the question.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count, islice
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel

from workloads.loading import read_records
from workloads.schema import Completion, DataError, Request, Workload, WorkloadConfig

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>")
BOS = 1
SYMBOLS = 16
ANSWER_TOKENS = 2
QUERY_TOKENS = 2 + ANSWER_TOKENS


@dataclass(frozen=True)
class Script:
    """The token ids of one kind of text, and how its facts are written.

    `ask` marks a question; `symbols` are the first ids of the answer's first and second token. `write` turns keys [n]
    and answers [n, 2] into the token ids of n facts, [n, fact_tokens].
    """

    ask: int
    symbols: tuple[int, int]
    keys: range
    fillers: range
    fact_tokens: int
    write: Callable[[np.random.Generator, IntArray, IntArray], IntArray]


class LabText(NamedTuple):
    """Token ids [length], each fact's first token's index [facts], and which fact each query asks for [queries]."""

    ids: IntArray
    starts: IntArray
    asked: IntArray


def compose(rng: np.random.Generator, script: Script, length: int, queries: int, facts: int) -> LabText:
    """A text of exactly `length` tokens, `<bos>` and the answers after the questions included.

    More questions than facts ask for some fact again.
    """
    fillers = length - 1 - facts * script.fact_tokens - queries * QUERY_TOKENS
    if fillers < 0 or queries < 1 or not 1 <= facts <= len(script.keys):
        raise DataError(
            f"{facts} facts and {queries} queries do not fit into {length} tokens; expected at least 1 query, "
            f"1 to {len(script.keys)} facts, and a length of at least {length - fillers}."
        )
    keys = script.keys.start + rng.choice(len(script.keys), facts, replace=False)
    answers = np.array(script.symbols) + rng.integers(SYMBOLS, size=(facts, ANSWER_TOKENS))
    starts = _fact_starts(rng, fillers, facts, script.fact_tokens)
    ids = script.fillers.start + rng.integers(len(script.fillers), size=length)
    ids[0] = BOS
    ids[starts[:, None] + np.arange(script.fact_tokens)] = script.write(rng, keys, answers)
    asked = rng.permutation(facts)[:queries] if queries <= facts else rng.integers(facts, size=queries)
    tail = np.column_stack([np.full(queries, script.ask), keys[asked], answers[asked]])
    ids[length - queries * QUERY_TOKENS :] = tail.ravel()
    return LabText(ids, starts, asked)


def _fact_starts(rng: np.random.Generator, fillers: int, facts: int, tokens: int) -> IntArray:
    """Sorted first-token indices of non-overlapping facts; every arrangement of facts and fillers is equally likely."""
    slots = np.sort(rng.choice(fillers + facts, facts, replace=False))
    starts: IntArray = 1 + slots + np.arange(facts) * (tokens - 1)
    return starts


def compose_batch(
    rng: np.random.Generator, script: Script, batch: int, length: int, queries: int, facts: int
) -> tuple[IntArray, BoolArray]:
    """Sequences for the trainer: token ids [batch, length] and the mask [batch, length] of the tokens to predict.

    `mask[b, t]` is true where token t belongs to an answer: its loss is taken from the logits at t - 1. With
    `queries` = 1 a sequence is exactly an evaluation item of that length followed by its answer.
    """
    ids = np.stack([compose(rng, script, length, queries, facts).ids for _ in range(batch)])
    mask = np.zeros(ids.shape, dtype=np.bool_)
    for query in range(queries):
        end = length - query * QUERY_TOKENS
        mask[:, end - ANSWER_TOKENS : end] = True
    return ids, mask


class Item(NamedTuple):
    """What a request is made of, generated or from a user's file."""

    prompt: str
    answer: str
    metadata: dict[str, Any]


class LabWorkload(Workload):
    """Items that `_item` generates, or those `_recorded` finds among the records of a user's own file.

    The prompt holds no `<bos>`: a lab model's tokenizer puts it in front, as in training. Lengths count it, and the
    answer's two tokens too, so that nothing of an item lies beyond a context of its length.
    """

    chance: ClassVar[float] = 100.0 / SYMBOLS
    Record: ClassVar[type[BaseModel]]

    def __init__(self, config: WorkloadConfig | None = None) -> None:
        super().__init__(config)
        self._records: list[Any] = read_records(self.config.data, self.Record) if self.config.data else []

    def requests(self, task: str, limit: int, seed: int) -> Iterator[Request]:
        self.check_task(task)
        items = self._recorded(task) if self._records else (self._item(task, index, seed) for index in count())
        return (self._request(task, index, seed, item) for index, item in enumerate(islice(items, limit)))

    @abstractmethod
    def _recorded(self, task: str) -> Iterator[Item]:
        """Those of `self._records` that belong to the task."""

    @abstractmethod
    def _item(self, task: str, index: int, seed: int) -> Item:
        """Item `index` of the generator."""

    def _request(self, task: str, index: int, seed: int, item: Item) -> Request:
        return Request(
            id=f"{self.name}/{task}/{index}",
            task=task,
            prompt=item.prompt,
            references=(item.answer,),
            metric="digit_accuracy",
            max_new_tokens=ANSWER_TOKENS,
            seed=seed,
            truncation="extend",
            metadata=item.metadata,
        )

    def score(self, completion: Completion, request: Request) -> float:
        """Share of the answer's tokens that are right, each at its place, x100."""
        expected = request.references[0].split()
        given = completion.text.split()
        return 100.0 * sum(a == b for a, b in zip(expected, given, strict=False)) / len(expected)


def as_item(text: LabText, words: Sequence[str]) -> Item:
    """A text with one query, in words. Token indices of the metadata count `<bos>`."""
    length, needle = len(text.ids), int(text.starts[text.asked[0]])
    names = np.array(words)[text.ids[1:]].tolist()
    prompt, answer = names[:-ANSWER_TOKENS], names[-ANSWER_TOKENS:]
    metadata = {
        "length": length,
        "needle_token": needle,
        "fact_tokens": text.starts.tolist(),
        "depth": needle / (length - QUERY_TOKENS),
    }
    return Item(" ".join(prompt), " ".join(answer), metadata)
