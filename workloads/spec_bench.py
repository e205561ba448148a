"""Spec-Bench (arXiv 2401.07851): what speculative decoding is timed on, six tasks in which answers copy more or less.

Every turn is a request of its own, and a request cannot wait for a completion. So the second turn of a conversation
does not see what the method under test answered to the first: it sees a given answer, the same for every method, as
text in front of the question. That is the model's own only if `answers` names a file of them. The original feeds back
each method's answer; under greedy decoding a lossless method's is the dense run's, so the prompts agree there too.

Spec-Bench has no score of quality. Where a record has a reference, translation and summarization are scored by ROUGE-L
against it, qa and rag by whether it stands in the answer, math_reasoning by the final number. Without a reference, and
in conversations, where no answer is the only right one, a question counts as answered or not.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import NamedTuple

from pydantic import Field

from workloads.answers import final_number
from workloads.generators.spec_bench import SPEC_BENCH_FILE, TASKS, gen_spec_bench
from workloads.generators.world import LEXICON_FILES
from workloads.loading import read_records
from workloads.metrics import rouge_l
from workloads.schema import Completion, Request, Workload, WorkloadConfig
from workloads.spec_bench_data import AnswerRecord, SpecBenchRecord

OFFICIAL_TOKENS = 1024
GENERATED_TOKENS = 192
EARLIER = "Question: {question}\n\nAnswer: {answer}\n\n"
TALK = "Here is our conversation so far.\n\n{earlier}Now answer this, with it in mind.\n\nQuestion: {question}"


class SpecBenchConfig(WorkloadConfig):
    """`data`: the official `question.jsonl`. `answers`: a model's answers to it, for the turns after the first.

    Turns with no answer to show before them, from there or from `reference`, are left out. `new_tokens`: 1024 for a
    file, as in the protocol, and 192 for generated questions unless given. `target_tokens`: about how long the text of
    a generated summarization or rag question is.
    """

    answers: Path | None = None
    new_tokens: int | None = Field(default=None, ge=1, le=32_768)
    target_tokens: int = Field(default=400, ge=200, le=100_000)


class Turn(NamedTuple):
    """One turn of a record, and the questions and answers before it."""

    record: SpecBenchRecord
    number: int
    earlier: list[tuple[str, str]]

    @property
    def asked(self) -> str:
        return self.record.turns[self.number]

    @property
    def reference(self) -> str:
        """Empty where there is none."""
        return self.record.reference[self.number] if self.number < len(self.record.reference) else ""


class SpecBench(Workload):
    """A limit counts turns, task by task; conversations alternate between the eight topics of MT-Bench."""

    name = "spec-bench"
    version = "1"
    tasks: tuple[str, ...] = TASKS
    score_name = "score, 0-100"
    Config = SpecBenchConfig
    config: SpecBenchConfig

    def __init__(self, config: SpecBenchConfig | None = None) -> None:
        super().__init__(config)
        records = read_records(self.config.data, SpecBenchRecord) if self.config.data else []
        self._records = {
            task: _alternating(found) for task in TASKS if (found := [one for one in records if one.task == task])
        }
        self.tasks = tuple(self._records) or TASKS
        given = read_records(self.config.answers, AnswerRecord) if self.config.answers else []
        self._answers = {answer.question_id: answer.choices[0].turns for answer in given}

    def data_files(self) -> Sequence[Path]:
        items = (self.config.data,) if self.config.data else (LEXICON_FILES["en"], SPEC_BENCH_FILE)
        return (*items, *((self.config.answers,) if self.config.answers else ()))

    def requests(self, task: str, limit: int, seed: int) -> Iterator[Request]:
        self.check_task(task)
        turns = chain.from_iterable(map(self._turns, self._of_task(task, seed)))
        for index, turn in enumerate(islice(turns, limit)):
            yield self._request(task, index, seed, turn)

    def score(self, completion: Completion, request: Request) -> float:
        """By the request's metric, see the module; 0 for an empty answer."""
        if request.metric == ANSWERED:
            return 100.0 if completion.text.strip() else 0.0
        return 100.0 * SCORES[request.metric](completion.text, request.references[0])

    def _of_task(self, task: str, seed: int) -> Iterable[SpecBenchRecord]:
        if self._records:
            return self._records[task]
        return map(SpecBenchRecord.model_validate, gen_spec_bench(seed, task, self.config.target_tokens))

    def _turns(self, record: SpecBenchRecord) -> Iterator[Turn]:
        """The turns before which every answer is known."""
        answers = self._answers.get(record.question_id, record.reference)
        for number in range(min(len(record.turns), len(answers) + 1)):
            yield Turn(record, number, list(zip(record.turns[:number], answers, strict=False)))

    def _request(self, task: str, index: int, seed: int, turn: Turn) -> Request:
        default = OFFICIAL_TOKENS if self.config.data else GENERATED_TOKENS
        asked = turn.asked.strip()
        return Request(
            id=f"spec-bench/{task}/{index}",
            task=task,
            prompt=_prompt(turn),
            question=asked if turn.number and asked else None,
            chat=True,
            references=(turn.reference,) if turn.reference else (),
            metric=METRICS.get(task, ANSWERED) if turn.reference else ANSWERED,
            max_new_tokens=self.config.new_tokens or default,
            seed=seed,
            metadata={
                "question_id": turn.record.question_id,
                "category": turn.record.category,
                "turn": turn.number + 1,
            },
        )


def _alternating(records: Iterable[SpecBenchRecord]) -> list[SpecBenchRecord]:
    """One record of each category in turn, each category in its own order."""
    by_category: dict[str, list[SpecBenchRecord]] = {}
    for record in records:
        by_category.setdefault(record.category, []).append(record)
    return [record for group in zip_longest(*by_category.values()) for record in group if record is not None]


def _prompt(turn: Turn) -> str:
    if not turn.earlier:
        return turn.asked
    earlier = "".join(EARLIER.format(question=question, answer=answer) for question, answer in turn.earlier)
    return TALK.format(earlier=earlier, question=turn.asked)


def named(text: str, reference: str) -> float:
    """1 if the reference stands in the text as words of their own, in upper or lower case."""
    return float(re.search(rf"(?<!\w){re.escape(reference)}(?!\w)", text, re.IGNORECASE) is not None)


def same_number(text: str, reference: str) -> float:
    """1 if both end in the same number, as GSM8K counts it."""
    found = final_number(text)
    return float(found is not None and found == final_number(reference))


ANSWERED = "answered"
SCORES: Mapping[str, Callable[[str, str], float]] = {
    "rouge_l": rouge_l,
    "named": named,
    "final_number": same_number,
}
METRICS: Mapping[str, str] = {
    "translation": "rouge_l",
    "summarization": "rouge_l",
    "qa": "named",
    "rag": "named",
    "math_reasoning": "final_number",
}
