"""Chains of operations, the tasks of the reasoning lab (card `methods/_verifiers.md`, section 5).

A task is a family of problems and a reading of their result: the state itself, or a number's remainder, which makes
wrong answers meet as in a multiple-choice question. How a trace thinks belongs to the model, not to the task.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from pydantic import BaseModel, Field, field_validator

from workloads.generators.chain import ANS, END, LETTERS, MODULUS, NL, PLACES, Family, Problem, is_state, parse
from workloads.lab import Item, LabWorkload
from workloads.schema import Completion, DataError, Request, WorkloadConfig

READINGS: dict[str, int | None] = {"chain": None, "chain-mod4": 4, "chain-mod2": 2}
"""Kinds of answers, by the number a result's remainder is taken of."""


@dataclass(frozen=True)
class Task:
    """Problems, how their answer is read, and room for one answer in tokens."""

    family: Family
    reading: str
    max_new_tokens: int


TASKS = {
    "arithmetic-8": Task(Family(3, 6, 8), "chain", 64),
    "arithmetic-24": Task(Family(3, 6, 24), "chain", 64),
    "arithmetic-24-mod4": Task(Family(3, 6, 24), "chain-mod4", 64),
    "arithmetic-24-mod2": Task(Family(3, 6, 24), "chain-mod2", 64),
    "long": Task(Family(3, 5, 8), "chain", 192),
    "long-mod4": Task(Family(3, 5, 8), "chain-mod4", 192),
    "overthinking": Task(Family(3, 4, 8), "chain", 320),
    "string": Task(Family(3, 6, 0), "chain", 160),
}


class ChainRecord(BaseModel):
    """One problem of a user's own file, in the words of the lab; `task` names the task it belongs to."""

    task: str
    prompt: str = Field(min_length=1)

    @field_validator("prompt")
    @classmethod
    def _is_a_problem(cls, prompt: str) -> str:
        parse(prompt)
        return prompt


class ChainConfig(WorkloadConfig):
    """`hard`: the probability of an arithmetic operation to be hard. The policies are trained on one half."""

    hard: float = Field(default=0.5, ge=0, le=1)


class Chain(LabWorkload):
    """Chain problems. The request holds no more than the question.

    `metadata` names the reading of the answer, and what ends a step and the thinking.
    """

    name = "chain"
    version = "1"
    tasks = tuple(TASKS)
    score_name = "exact answer, 0-100"
    Config = ChainConfig
    Record = ChainRecord
    config: ChainConfig

    def _recorded(self, task: str) -> Iterator[Item]:
        return (self._asked(task, parse(record.prompt)) for record in self._records if record.task == task)

    def _item(self, task: str, index: int, seed: int) -> Item:
        rng = np.random.default_rng([seed, tuple(TASKS).index(task), index])
        return self._asked(task, replace(TASKS[task].family, hard=self.config.hard).draw(rng))

    def _asked(self, task: str, problem: Problem) -> Item:
        reading = TASKS[task].reading
        answer = final_answer(" ".join(problem.answer), reading)
        if answer is None:
            raise DataError(f"{self.name}: {problem.prompt!r} has no answer of kind {reading}; expected numbers.")
        return Item(problem.prompt, answer, {"step": NL, "answer": reading, "closing": END})

    def _request(self, task: str, index: int, seed: int, item: Item) -> Request:
        own = {"metric": "exact_answer", "max_new_tokens": TASKS[task].max_new_tokens, "truncation": "refuse"}
        return super()._request(task, index, seed, item).model_copy(update=own)

    def score(self, completion: Completion, request: Request) -> float:
        """100 if the final answer is the reference."""
        return 100.0 * (final_answer(completion.text, request.metadata["answer"]) in request.references)


def final_answer(text: str, reading: str = "chain") -> str | None:
    """The state behind the last ANS, as the reading has it; a text that is nothing but a state is its own answer.

    `None`: the text ends without an answer, or with one that is no state.
    """
    words = text.rpartition(ANS)[2].split()
    modulus = READINGS[reading]
    if is_state(words, ("0",)):
        return str(int(words[0]) % (modulus or MODULUS))
    return " ".join(words) if modulus is None and is_state(words, LETTERS[:PLACES]) else None
