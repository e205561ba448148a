"""GSM8K (arXiv 2110.14168): grade-school word problems, judged by the final number alone.

The prompt asks for a chain of thought by worked examples (2201.11903), laid out as in task `gsm8k` of EleutherAI's
lm-evaluation-harness: `Question: ...` and `Answer: ...`, five of them, each with its sums and its line `#### number`.
They are none of those papers' examples. Without examples the problem is put as a chat message.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count, islice
from pathlib import Path

from pydantic import BaseModel, Field, field_validator

from workloads import answers
from workloads.answers import Extraction, final_number
from workloads.generators.seeding import item_rng
from workloads.generators.word_problems import without_marks, word_problem
from workloads.generators.world import LEXICON_FILES
from workloads.loading import data_file, read_records
from workloads.schema import Completion, DataError, Request, Workload, WorkloadConfig

TASK = "test"
KIND = "gsm8k"
STEP = "\n"
"""The examples show one sum a line, and a blank line ends the answer."""
EXAMPLES_FILE = "train"
PROBLEM = "Question: {question}\nAnswer:"
ASKED = "{question}\n\nThink step by step, one sum a line. End with the line: #### and the number alone."
STOPS = ("\n\n", "Question:")


class Gsm8kRecord(BaseModel):
    """The official schema."""

    question: str = Field(min_length=1)
    answer: str

    @field_validator("answer")
    @classmethod
    def _ends_in_a_number(cls, value: str) -> str:
        if final_number(value, "strict") is None:
            raise ValueError("expected its last line to be #### and a number")
        return value


class Gsm8kConfig(WorkloadConfig):
    """`data`: a file of problems, or a directory with `test.jsonl` and, for the examples, `train.jsonl`.

    Without such a file the examples are generated, the same for every seed. `shots`: how many there are; 0 asks in a
    chat message instead. `extraction`: "strict" takes only a number marked by `####`.
    """

    shots: int = Field(default=5, ge=0, le=64)
    new_tokens: int = Field(default=256, ge=1, le=32_768)
    extraction: Extraction = "flexible"


class Gsm8k(Workload):
    """A file's problems come in its order, the generated ones without end."""

    name = "gsm8k"
    version = "2"
    tasks: tuple[str, ...] = (TASK,)
    score_name = "exact number, 0-100"
    Config = Gsm8kConfig
    config: Gsm8kConfig

    def __init__(self, config: Gsm8kConfig | None = None) -> None:
        super().__init__(config)
        self._file: Path | None = None
        self._examples_file: Path | None = None
        if self.config.data:
            self._file, self._examples_file = _files(self.config.data)
        self._records = read_records(self._file, Gsm8kRecord) if self._file else []
        self._examples = "".join(_example(record) for record in self._shots())

    def data_files(self) -> Sequence[Path]:
        given = (self._file, self._examples_file if self.config.shots else None)
        return tuple(path for path in given if path) or (LEXICON_FILES["en"],)

    def requests(self, task: str, limit: int, seed: int) -> Iterator[Request]:
        self.check_task(task)
        records = self._records or (_generated("gsm8k", seed, index) for index in count())
        for index, record in enumerate(islice(records, limit)):
            yield self._request(index, seed, record)

    def score(self, completion: Completion, request: Request) -> float:
        """100 if the final number is the reference's, else 0."""
        text, reference = completion.text, request.references[0]
        if self.config.extraction == "strict":
            return 100.0 if final_number(text, "strict") == final_number(reference) else 0.0
        return 100.0 if answers.correct(KIND, text, reference) else 0.0

    def _shots(self) -> list[Gsm8kRecord]:
        wanted = self.config.shots
        if not wanted or self._examples_file is None:
            return [_generated("gsm8k example", index) for index in range(wanted)]
        known = read_records(self._examples_file, Gsm8kRecord)
        if len(known) < wanted:
            raise DataError(f"{self._examples_file}: holds {len(known)} records; {wanted} shots need as many.")
        return known[:wanted]

    def _request(self, index: int, seed: int, record: Gsm8kRecord) -> Request:
        question, shots = record.question.strip(), self.config.shots
        return Request(
            id=f"gsm8k/{index}",
            task=TASK,
            prompt=self._examples + (PROBLEM if shots else ASKED).format(question=question),
            question=question or None,
            chat=not shots,
            references=(record.answer,),
            metric="final_number",
            max_new_tokens=self.config.new_tokens,
            stop=STOPS if shots else (),
            seed=seed,
            metadata={"sums": record.answer.count("<<"), "answer": KIND, "step": STEP},
        )


def _files(data: Path) -> tuple[Path, Path | None]:
    """The file of the problems, and that of the examples if `data` is a directory that has one."""
    problems = data_file(data, (TASK,))
    if problems is None:
        raise DataError(f"{data}: holds no GSM8K problems; expected test.jsonl in it.")
    return problems, data_file(data, (EXAMPLES_FILE,)) if data.is_dir() else None


def _generated(*parts: object) -> Gsm8kRecord:
    return Gsm8kRecord.model_validate(word_problem(item_rng(*parts)))


def _example(record: Gsm8kRecord) -> str:
    return f"{PROBLEM.format(question=record.question.strip())} {without_marks(record.answer)}\n\n"
