"""Pass-key retrieval: a number said twice at a random depth of a repeated filler line (card `methods/longheads.md`)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated

from pydantic import BaseModel, Field, field_validator

from workloads.generators.seeding import item_rng
from workloads.lengths import estimate_tokens
from workloads.loading import read_records
from workloads.schema import Completion, Request, Workload, WorkloadConfig

INTRODUCTION = "Somewhere in the long text below there is a pass key. Find it and keep it in mind.\n\n"
FILLER = "The river is wide. The hill is steep. The lamp is warm. We walk along and we come back."
KEY = "The pass key is {key}. Remember it. {key} is the pass key."
ASKED = "What is the pass key?"
QUESTION = f"\n\n{ASKED} The pass key is"
LARGEST_KEY = 50_000
DIGITS_ROOM = 8


class PasskeyRecord(BaseModel):
    """One item of a user's own file. `length`: tokens of the prompt, which is also the name of its task."""

    prompt: str = Field(min_length=1)
    answer: str = Field(pattern=r"^\d+$")
    length: int = Field(ge=1)


class PasskeyConfig(WorkloadConfig):
    """`lengths`: of the prompt in tokens, by the suite's own estimate; each is a task. Completions have true counts."""

    lengths: tuple[Annotated[int, Field(ge=100, le=1_000_000)], ...] = Field(default=(256, 512, 1024), min_length=1)

    @field_validator("lengths", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        """A command line gives "256,512"."""
        return value.split(",") if isinstance(value, str) else value


class Passkey(Workload):
    """The key is a random number from 1 to 50,000. The prompt is raw text that breaks off where the key should follow.

    Prompts may be longer than the model's window: extrapolation is what the task was made for.
    """

    name = "passkey"
    version = "1"
    tasks: tuple[str, ...] = ("256", "512", "1024")
    score_name = "exact match, 0-100"
    Config = PasskeyConfig
    config: PasskeyConfig

    def __init__(self, config: PasskeyConfig | None = None) -> None:
        super().__init__(config)
        self._records = read_records(self.config.data, PasskeyRecord) if self.config.data else []
        lengths = {record.length for record in self._records} or set(self.config.lengths)
        self.tasks = tuple(str(length) for length in sorted(lengths))

    def requests(self, task: str, limit: int, seed: int) -> Iterator[Request]:
        self.check_task(task)
        if self._records:
            chosen = [record for record in self._records if record.length == int(task)]
            for index, record in enumerate(chosen[:limit]):
                yield _request(task, index, seed, record.prompt, record.answer, {"length": record.length})
            return
        for index in range(limit):
            yield _generate(task, index, seed)

    def score(self, completion: Completion, request: Request) -> float:
        """100 if the first number of the output is the key, else 0."""
        number = re.search(r"\d+", completion.text)
        return 100.0 if number and number[0] == request.references[0] else 0.0


def _generate(task: str, index: int, seed: int) -> Request:
    rng = item_rng("passkey", seed, task, index)
    key = str(rng.randint(1, LARGEST_KEY))
    sentence = KEY.format(key=key)
    room = int(task) - estimate_tokens(INTRODUCTION + sentence + QUESTION)
    lines = max(1, room // estimate_tokens("\n" + FILLER))
    before = rng.randint(0, lines)
    text = "\n".join([FILLER] * before + [sentence] + [FILLER] * (lines - before))
    start = len(INTRODUCTION) + before * (len(FILLER) + 1)
    metadata = {
        "length": int(task),
        "depth": before / lines,
        "evidence_spans": [[start, start + len(sentence)]],
    }
    return _request(task, index, seed, INTRODUCTION + text + QUESTION, key, metadata)


def _request(task: str, index: int, seed: int, prompt: str, answer: str, metadata: dict[str, object]) -> Request:
    return Request(
        id=f"passkey/{task}/{index}",
        task=task,
        prompt=prompt,
        question=ASKED if ASKED in prompt else None,
        references=(answer,),
        metric="first_number",
        max_new_tokens=DIGITS_ROOM,
        seed=seed,
        truncation="extend",
        metadata=metadata,
    )
