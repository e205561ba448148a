"""MATH-500 (2103.03874; the 500 problems held out by 2305.20050): contest problems whose answer is an expression."""

from __future__ import annotations

from pydantic import Field

from workloads.generators.math_problems import math_problem
from workloads.generators.seeding import item_rng
from workloads.reasoning import Problem, ProblemRecord, ReasoningWorkload


class MathRecord(ProblemRecord):
    """The official schema."""

    solution: str = ""
    subject: str = ""
    level: int = Field(ge=1, le=5)
    unique_id: str = ""


class Math500(ReasoningWorkload[MathRecord]):
    """Answers are compared as mathematics: `0.5` is `\\frac12`."""

    name = "math500"
    version = "1"
    kind = "math"
    schema = MathRecord
    files = ("test", "math500")
    hub = ("HuggingFaceH4/MATH-500", "test.jsonl")

    def problem(self, index: int, record: MathRecord) -> Problem:
        facts = {"subject": record.subject, "level": record.level, "unique_id": record.unique_id}
        return Problem(record.problem.strip(), record.answer, facts)

    def generated(self, seed: int, index: int) -> MathRecord:
        made = math_problem(item_rng("math500", seed, index))
        return MathRecord.model_validate({**made, "unique_id": f"generated/{seed}/{index}"})
