r"""What math500, aime and gpqa share: a problem put as a chat message, whose answer is wanted in a box.

Card `_workloads.md`, section 6: zero-shot, step by step, the last `\boxed{...}` counts. How it is compared is up to the
kind of answer (`workloads.answers`), which every request names for the methods that vote.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, Self, TypeVar

from pydantic import BaseModel, Field, model_validator

from workloads import answers
from workloads.loading import data_file, fetch_from_hub, read_records
from workloads.schema import Completion, DataError, Json, Request, Workload, WorkloadConfig

TASK = "test"
BOX = r"\boxed{}"
ASKED = "{text}\n\nSolve this step by step, with a blank line between two steps. Put {wanted} in {box} at the end."


class ProblemRecord(BaseModel):
    """A problem and its answer. Names of fields count in any case, and `question` is a `problem`: copies differ."""

    problem: str = Field(min_length=1)
    answer: str = Field(min_length=1, coerce_numbers_to_str=True)

    @model_validator(mode="before")
    @classmethod
    def _known_names(cls, raw: Any) -> Any:
        lower = {str(name).lower(): value for name, value in dict(raw).items()}
        return {"problem": lower["question"], **lower} if "question" in lower else lower


Record = TypeVar("Record", bound=BaseModel)


class Problem(NamedTuple):
    """What is asked and what answers it; `facts` about it go into the request's metadata."""

    text: str
    answer: str
    facts: Json


class ReasoningConfig(WorkloadConfig):
    """`data`: a file in the official format, or a directory with it. `hub`: fetch it from the hub instead.

    `new_tokens`: models that think at length need 8,000 to 32,000.
    """

    hub: bool = False
    new_tokens: int = Field(default=2048, ge=1, le=131_072)

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if self.hub and self.data is not None:
            raise ValueError("'hub' and 'data' are two sources; give one of them")
        return self


class ReasoningWorkload(Workload, Generic[Record]):
    """A file's problems come in its order, the generated ones without end."""

    kind: ClassVar[str]
    """Of `workloads.answers.KINDS`."""
    wanted: ClassVar[str] = "the final answer"
    schema: type[Record]
    files: ClassVar[tuple[str, ...]]
    """What the file is called in a directory, without its suffix."""
    hub: ClassVar[tuple[str, str]]
    """The data set's id on the hub, and the file in it."""
    tasks: tuple[str, ...] = (TASK,)
    score_name = "right answers, 0-100"
    Config = ReasoningConfig
    config: ReasoningConfig

    def __init__(self, config: ReasoningConfig | None = None) -> None:
        super().__init__(config)
        self._file = self._find()
        self._records = read_records(self._file, self.schema) if self._file else []

    @property
    def source(self) -> str:
        return self.hub[0] if self.config.hub else super().source

    def data_files(self) -> Sequence[Path]:
        return (self._file,) if self._file else ()

    def requests(self, task: str, limit: int, seed: int) -> Iterator[Request]:
        self.check_task(task)
        records = self._records or (self.generated(seed, index) for index in count())
        for index, record in enumerate(islice(records, limit)):
            problem = self.problem(index, record)
            yield Request(
                id=f"{self.name}/{index}",
                task=task,
                prompt=ASKED.format(text=problem.text, wanted=self.wanted, box=BOX),
                question=problem.text,
                chat=True,
                references=(rf"\boxed{{{problem.answer}}}",),
                metric=self.kind,
                max_new_tokens=self.config.new_tokens,
                seed=seed,
                metadata={"answer": self.kind, "step": answers.STEP, "final": r"\boxed{", **problem.facts},
            )

    def score(self, completion: Completion, request: Request) -> float:
        """100 if the answer found in the text is the reference's, else 0."""
        return 100.0 if answers.correct(self.kind, completion.text, request.references[0]) else 0.0

    @abstractmethod
    def problem(self, index: int, record: Record) -> Problem:
        """How the record, the `index`-th of its source, is put."""

    @abstractmethod
    def generated(self, seed: int, index: int) -> Record:
        """A record of the official schema, made from the seed."""

    def _find(self) -> Path | None:
        if self.config.hub:
            return fetch_from_hub(*self.hub)
        if self.config.data is None:
            return None
        if (found := data_file(self.config.data, self.files)) is None:
            raise DataError(f"{self.config.data}: holds no {self.name} problems; expected {self.files[0]}.jsonl in it.")
        return found
