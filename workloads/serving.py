"""Requests as a server gets them: lengths from a distribution, or a ShareGPT file (card `methods/_serving_metrics.md`).

Lengths are in words. The generator's words are plain lower-case ones, about a token each; a server's `usage` has the
true counts.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Literal, Self

from pydantic import AliasChoices, BaseModel, Field, model_validator

from workloads.generators.ruler_parts import lexicon
from workloads.generators.seeding import item_rng
from workloads.lengths import estimate_tokens
from workloads.loading import read_records
from workloads.schema import Completion, DataError, Request, Workload, WorkloadConfig

TASK = "requests"
HUMAN = ("human", "user")
ASSISTANT = ("gpt", "assistant", "chatgpt", "bing", "bard")


class Message(BaseModel):
    """One message of a conversation; `from` and `value` in ShareGPT's files, `role` and `content` in later ones."""

    sender: str = Field(validation_alias=AliasChoices("from", "role"))
    text: str = Field(validation_alias=AliasChoices("value", "content"))


class Conversation(BaseModel):
    """One record of a ShareGPT file."""

    conversations: list[Message]

    def exchange(self) -> tuple[str, str] | None:
        """The first question with its answer, if there is one: what `vllm bench serve` takes too."""
        for question, answer in pairwise(self.conversations):
            known = question.sender in HUMAN and answer.sender in ASSISTANT
            if known and question.text.strip() and answer.text.strip():
                return question.text, answer.text
        return None


class ServingConfig(WorkloadConfig):
    """Lengths in words, with their mean and their spread around it.

    `spread`: uniform lengths lie within that share of the mean on both sides; for lognormal ones it is the coefficient
    of variation. Lengths are clipped to 1 and `max_words`. The first `prefix_words` of a prompt are those of its group,
    one of `prefix_groups` at random, and come before its `input_words`.
    """

    lengths: Literal["fixed", "uniform", "lognormal"] = "lognormal"
    input_words: int = Field(default=128, ge=1, le=1_000_000)
    output_words: int = Field(default=32, ge=1, le=1_000_000)
    spread: float = Field(default=0.5, gt=0, le=10)
    max_words: int = Field(default=4096, ge=1, le=1_000_000)
    prefix_words: int = Field(default=0, ge=0, le=1_000_000)
    prefix_groups: int = Field(default=1, ge=1)

    @model_validator(mode="after")
    def _possible(self) -> Self:
        """Lengths below zero would be clipped, and the mean would not be the one asked for."""
        if self.lengths == "uniform" and self.spread > 1:
            raise ValueError("a spread of uniform lengths is at most 1")
        return self


class Serving(Workload):
    """Requests that ask for as many new tokens as their output is long. No answer is right or wrong: any counts."""

    name = "serving"
    version = "1"
    tasks: tuple[str, ...] = (TASK,)
    score_name = "answered, 0-100"
    Config = ServingConfig
    config: ServingConfig

    def __init__(self, config: ServingConfig | None = None) -> None:
        super().__init__(config)
        records = read_records(self.config.data, Conversation) if self.config.data else []
        self._exchanges = [exchange for record in records if (exchange := record.exchange())]
        if records and not self._exchanges:
            raise DataError(f"{self.config.data}: no conversation has a human message followed by its answer.")

    def requests(self, task: str, limit: int, seed: int) -> Iterator[Request]:
        """A file's conversations come in an order that the seed chooses."""
        self.check_task(task)
        if not self._exchanges:
            yield from (self._generate(index, seed) for index in range(limit))
            return
        order = list(range(len(self._exchanges)))
        item_rng("serving", seed).shuffle(order)
        for index, place in enumerate(order[:limit]):
            question, answer = self._exchanges[place]
            yield _request(index, seed, question, answer, max(1, estimate_tokens(answer)))

    def score(self, completion: Completion, request: Request) -> float:
        """100 if there is an answer, else 0."""
        return 100.0 if completion.text.strip() else 0.0

    def _generate(self, index: int, seed: int) -> Request:
        rng = item_rng("serving", seed, index)
        n_in, n_out = self._length(rng, self.config.input_words), self._length(rng, self.config.output_words)
        group = rng.randrange(self.config.prefix_groups)
        prefix = _words(item_rng("serving prefix", seed, group), self.config.prefix_words)
        return of_lengths(index, seed, n_in, n_out, prefix)

    def _length(self, rng: random.Random, mean: int) -> int:
        spread = self.config.spread
        length = float(mean)
        if self.config.lengths == "uniform":
            length = rng.uniform(mean * (1 - spread), mean * (1 + spread))
        elif self.config.lengths == "lognormal":
            variance = math.log1p(spread**2)  # of the logarithm; the mean of the lengths stays `mean`
            length = rng.lognormvariate(math.log(mean) - variance / 2, math.sqrt(variance))
        return min(max(1, round(length)), self.config.max_words)


def of_lengths(index: int, seed: int, n_in: int, n_out: int, prefix: Sequence[str] = ()) -> Request:
    """A request of `n_in` random words after the prefix, which asks for `n_out` tokens."""
    rng = item_rng("serving words", seed, index)
    prompt = " ".join([*prefix, *_words(rng, n_in)])
    return _request(index, seed, prompt, " ".join(_words(rng, n_out)), n_out)


def _words(rng: random.Random, count: int) -> list[str]:
    adjectives, nouns = lexicon()
    return rng.choices(adjectives + nouns, k=count)


def _request(index: int, seed: int, prompt: str, answer: str, new_tokens: int) -> Request:
    return Request(
        id=f"serving/{index}",
        task=TASK,
        prompt=prompt,
        references=(answer,),
        metric="answered",
        max_new_tokens=new_tokens,
        seed=seed,
        metadata={"output_words": len(answer.split())},
    )
