"""RULER (arXiv 2404.06654): 13 tasks of one length that tell a model's effective context, or a seeded stand-in."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from workloads.generators.ruler import GENERATOR_VERSION, SHORTEST, TASKS, gen_ruler
from workloads.generators.ruler_parts import WORD_FILE
from workloads.generators.world import LEXICON_FILES
from workloads.loading import read_records
from workloads.schema import Completion, DataError, Request, Workload, WorkloadConfig

CONTROL = re.compile(r"[\x00-\x1f]")


class RulerRecord(BaseModel):
    """The official schema, and the generator's two extra keys. `length`: tokens, those to be generated included.

    Files of older releases have no `answer_prefix`: there it is the end of `input`.
    """

    model_config = ConfigDict(frozen=True)

    index: int
    input: str = Field(min_length=1)
    outputs: list[Annotated[str, Field(min_length=1)]] = Field(min_length=1)
    length: int = Field(ge=1)
    answer_prefix: str = ""
    evidence_spans: list[tuple[int, int]] = []
    depths: list[float] = []


class RulerConfig(WorkloadConfig):
    """`data`: a directory with RULER's `<task>/validation.jsonl` (or `<task>.jsonl`) files, or one `<task>.jsonl`.

    `length`: of generated items in tokens, those to be generated included, by the suite's own estimate
    (`lengths.estimate_tokens`); completions have true counts. The original's lengths are 4K to 128K.
    """

    length: int = Field(default=2048, ge=SHORTEST, le=1_000_000)


class Ruler(Workload):
    """The score of a task is the mean share of references that the answer contains; of QA, whether it contains any.

    The answer prefix is the start of the answer and belongs to the prompt. A request's chat template goes around all
    of the prompt, and nothing can follow it; so the prompt is raw text that the prefix ends, as official files have it.
    """

    name = "ruler"
    version = f"1.{GENERATOR_VERSION}"
    tasks: tuple[str, ...] = tuple(TASKS)
    score_name = "references found, 0-100"
    Config = RulerConfig
    config: RulerConfig

    def __init__(self, config: RulerConfig | None = None) -> None:
        super().__init__(config)
        self._files = local_files(self.config.data) if self.config.data is not None else {}
        self._records = {task: read_records(path, RulerRecord) for task, path in self._files.items()}
        if self._records:
            self.tasks = tuple(self._records)

    def data_files(self) -> Sequence[Path]:
        return tuple(self._files.values()) or (LEXICON_FILES["en"], WORD_FILE)

    def requests(self, task: str, limit: int, seed: int) -> Iterator[Request]:
        self.check_task(task)
        records = (
            self._records[task][:limit]
            if self._records
            else map(RulerRecord.model_validate, gen_ruler(seed, task, limit, self.config.length))
        )
        return (_request(task, index, record, seed) for index, record in enumerate(records))

    def score(self, completion: Completion, request: Request) -> float:
        """Share of the references that the answer contains in upper or lower case, x100; 100 for any one in QA."""
        text = CONTROL.sub("\n", completion.text).lower()
        found = [float(reference.lower() in text) for reference in request.references]
        return 100.0 * (max(found) if request.metric == "any_reference" else fmean(found))


def local_files(data: Path) -> dict[str, Path]:
    """The file of every task that is there. RULER names a file's task by its directory, never inside the file."""
    if data.is_dir():
        places = {task: (data / task / "validation.jsonl", data / f"{task}.jsonl") for task in TASKS}
        found = {task: path for task, paths in places.items() for path in reversed(paths) if path.is_file()}
    else:
        found = {data.stem: data} if data.stem in TASKS else {}
    if not found:
        raise DataError(
            f"{data}: is no RULER data; expected a file or directory such as vt.jsonl or vt/validation.jsonl."
        )
    return found


def _request(task: str, index: int, record: RulerRecord, seed: int) -> Request:
    return Request(
        id=f"ruler/{task}/{index}",
        task=task,
        prompt=record.input + record.answer_prefix,
        question=_question(record.input),
        references=tuple(record.outputs),
        metric=TASKS[task].metric,
        max_new_tokens=TASKS[task].max_new_tokens,
        seed=seed,
        truncation="refuse",
        metadata={
            "record": record.index,
            "length": record.length,
            "depths": record.depths,
            "evidence_spans": [list(span) for span in record.evidence_spans],
        },
    )


def _question(text: str) -> str | None:
    """The last line, which asks in all 13 tasks; nothing of an input that is one line."""
    _, line_break, last = text.rstrip().rpartition("\n")
    return last.strip().removeprefix("Question: ") if line_break else None
