"""AIME, the American Invitational Mathematics Examination: 30 problems a year, each with a whole number 0 to 999.

Its copies name their fields in many ways; all of them have a problem (or question) and an answer. The hub's are those
of 2024.
"""

from __future__ import annotations

from pydantic import Field, field_validator

from workloads.answers import extract
from workloads.generators.contest_problems import contest_problem
from workloads.generators.seeding import item_rng
from workloads.reasoning import Problem, ProblemRecord, ReasoningWorkload


class AimeRecord(ProblemRecord):
    """The fields that some copy has and that are used."""

    solution: str = ""
    id: str = Field(default="", coerce_numbers_to_str=True)
    year: str = Field(default="", coerce_numbers_to_str=True)

    @field_validator("answer")
    @classmethod
    def _is_in_range(cls, value: str) -> str:
        if extract("aime", rf"\boxed{{{value}}}") is None:
            raise ValueError("expected a whole number from 0 to 999")
        return value


class Aime(ReasoningWorkload[AimeRecord]):
    """Leading zeros do not count, and 0 is an answer."""

    name = "aime"
    version = "1"
    kind = "aime"
    wanted = "the final answer, a whole number from 0 to 999,"
    schema = AimeRecord
    files = ("aime", "test", "train")
    hub = ("HuggingFaceH4/aime_2024", "data/train-00000-of-00001.parquet")

    def problem(self, index: int, record: AimeRecord) -> Problem:
        return Problem(record.problem.strip(), record.answer, {"source_id": record.id, "year": record.year})

    def generated(self, seed: int, index: int) -> AimeRecord:
        made = contest_problem(item_rng("aime", seed, index))
        return AimeRecord.model_validate({**made, "id": f"{seed}/{index}"})
