"""Needle in a haystack over a grid of context lengths and depths (`gkamradt/LLMTest_NeedleInAHaystack`)."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic import BaseModel, Field, model_validator

from workloads.generators.seeding import item_rng
from workloads.generators.world import LEXICON_FILES, World
from workloads.lengths import estimate_tokens
from workloads.loading import read_records
from workloads.schema import Completion, Request, Workload, WorkloadConfig

ROOM_TOKENS = 200
"""Kept free of haystack for the question, the chat template and the answer."""
PROMPT = (
    "Below is a text. One sentence in it is needed to answer the question at the end.\n\n{context}\n\n"
    "Answer from the text above, briefly.\nQuestion: {question}"
)


class NeedleRecord(BaseModel):
    """One item of a user's own file. `depth_percent` is where the needle stands, 0 (start) to 100 (end)."""

    context_length: int = Field(ge=1)
    depth_percent: float = Field(ge=0, le=100)
    needle: str = Field(min_length=1)
    question: str = Field(min_length=1)
    answer: str = Field(min_length=1)
    context: str = Field(min_length=1)


class NeedleConfig(WorkloadConfig):
    """The grid: `lengths` context lengths from `min_length` to `max_length`, and `depths` depths from 0 to 100 %.

    Lengths are in tokens by the suite's own estimate (`lengths.estimate_tokens`), because a workload has no tokenizer;
    a completion reports the true number. A small model on a CPU is why the defaults are a tenth of the original's.
    """

    min_length: int = Field(default=500, ge=300)
    max_length: int = Field(default=2000, le=1_000_000)
    lengths: int = Field(default=4, ge=1, le=100)
    depths: int = Field(default=5, ge=1, le=100)
    needles_per_cell: int = Field(default=5, ge=1, le=1000)

    @model_validator(mode="after")
    def _ordered(self) -> NeedleConfig:
        if self.max_length < self.min_length:
            raise ValueError(f"max_length {self.max_length} is below min_length {self.min_length}")
        return self


class Cell(NamedTuple):
    """A place of the grid: context length in tokens, depth in percent."""

    length: int
    depth: int


class Needle(Workload):
    """A sentence with a seven-digit code hidden in generated prose; the code is to be found again.

    Requests walk the grid so that any number of them is spread over depths and lengths, then start over with new
    needles. Every needle has a value and, within its text, a name of its own.
    """

    name = "needle"
    version = "1"
    tasks = ("grid",)
    score_name = "needles found, 0-100"
    Config = NeedleConfig
    config: NeedleConfig

    def __init__(self, config: NeedleConfig | None = None) -> None:
        super().__init__(config)
        self._records = read_records(self.config.data, NeedleRecord) if self.config.data else []

    def data_files(self) -> Sequence[Path]:
        return (self.config.data or LEXICON_FILES["en"],)

    def requests(self, task: str, limit: int, seed: int) -> Iterator[Request]:
        self.check_task(task)
        if self._records:
            for index, record in enumerate(self._records[:limit]):
                yield _request(index, record, record.depth_percent, seed)
            return
        cells = grid(self.config)
        for index in range(min(limit, len(cells) * self.config.needles_per_cell)):
            cell = cells[index % len(cells)]
            yield _request(index, _generate(cell, index, seed), cell.depth, seed)

    def score(self, completion: Completion, request: Request) -> float:
        """100 if the value stands in the answer as a word or number of its own, else 0."""
        value = re.escape(request.references[0])
        text = re.sub(r"(?<=\d),(?=\d)", "", completion.text)  # 1,234,567 is 1234567
        return 100.0 if re.search(rf"(?<!\w){value}(?!\w)", text) else 0.0


def grid(config: NeedleConfig) -> list[Cell]:
    """All cells, in an order in which neighbours differ in depth and in length."""
    lengths = [round(x) for x in np.linspace(config.min_length, config.max_length, config.lengths)]
    depths = [round(x) for x in np.linspace(0, 100, config.depths)]
    lap = math.lcm(len(lengths), len(depths))
    return [
        Cell(lengths[(i + i // lap) % len(lengths)], depths[i % len(depths)]) for i in range(len(lengths) * len(depths))
    ]


def keyword_recall(completion: Completion, request: Request) -> float:
    """Share of the needle's words that the answer repeats, 0-100: a softer figure beside the exact score."""
    words = set(re.findall(r"\w+", request.metadata["needle"].lower()))
    return 100.0 * len(words & set(re.findall(r"\w+", completion.text.lower()))) / len(words)


def _generate(cell: Cell, index: int, seed: int) -> NeedleRecord:
    world = World(item_rng("needle", seed, index), "en")
    person, value = world.draw("person"), _value(seed, index)
    needle = f"The code word of {person} is {value}."
    haystack = _haystack(world, cell.length - ROOM_TOKENS - estimate_tokens(needle))
    before, depth = _insertion(haystack, cell.depth)
    return NeedleRecord(
        context_length=cell.length,
        depth_percent=depth,
        needle=needle,
        question=f"What is the code word of {person}?",
        answer=value,
        context=" ".join([*haystack[:before], needle, *haystack[before:]]),
    )


def _value(seed: int, index: int) -> str:
    """Seven digits that no other index of the seed has: the factor is coprime to the 9,000,000 numbers there are."""
    start = item_rng("needle values", seed).randrange(9_000_000)
    return str(1_000_000 + (start + index * 5_915_587) % 9_000_000)


def _haystack(world: World, tokens: int) -> list[str]:
    """Sentences that together stay within `tokens`."""
    sentences: list[str] = []
    left = tokens
    while (left := left - estimate_tokens(" " + (sentence := world.sentence()))) >= 0:
        sentences.append(sentence)
    return sentences


def _insertion(sentences: list[str], depth: int) -> tuple[int, float]:
    """How many sentences go before the needle (back to the full stop before `depth`), and the depth it gets (%)."""
    ends = [0, *accumulate(estimate_tokens(" " + sentence) for sentence in sentences)]
    wanted = int(ends[-1] * depth / 100)
    before = max(count for count, end in enumerate(ends) if end <= wanted)
    return before, 100 * ends[before] / ends[-1]


def _request(index: int, record: NeedleRecord, nominal_depth: float, seed: int) -> Request:
    prompt = PROMPT.format(context=record.context, question=record.question)
    start = prompt.find(record.needle)
    return Request(
        id=f"needle/grid/{index}",
        task="grid",
        prompt=prompt,
        question=record.question if record.question.strip() else None,
        chat=True,
        references=(record.answer,),
        metric="exact_value",
        max_new_tokens=32,
        seed=seed,
        truncation="refuse",
        metadata={
            "context_length": record.context_length,
            "depth_percent": nominal_depth,
            "realised_depth_percent": record.depth_percent,
            "needle": record.needle,
            "evidence_spans": [[start, start + len(record.needle)]] if start >= 0 else [],
        },
    )
