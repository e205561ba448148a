"""Single-line infilling in the shape of HumanEval-Infilling (2207.14255), as `hyperparams` uses it (2408.01050).

Its procedure is in card `methods/hyperparams.md`: problems by increasing length of what comes before the gap, 5 tokens
each. A generated answer is compared, never run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from pydantic import BaseModel, Field, field_validator

from workloads.generators.infilling import Problem, problems
from workloads.loading import read_records
from workloads.schema import Completion, Request, Workload, WorkloadConfig

TASK = "single-line"


class InfillRecord(BaseModel):
    """One line of the public file, unpacked; its `entry_point` and `test` are not needed."""

    task_id: str
    prompt: str = Field(min_length=1)
    suffix: str
    canonical_solution: str

    @field_validator("canonical_solution")
    @classmethod
    def _one_line(cls, value: str) -> str:
        if len(value.strip().splitlines()) != 1:
            raise ValueError("expected one line of code, as in the single-line set")
        return value


class InfillConfig(WorkloadConfig):
    """How a model is asked. The template's marks are those of StarCoder; other models have other ones.

    `{prefix}` alone is what 2408.01050 sends. `new_tokens` is 5 there: enough for a speed, for most lines too few to be
    right.
    """

    template: str = "<fim_prefix>{prefix}<fim_suffix>{suffix}<fim_middle>"
    new_tokens: int = Field(default=5, ge=1, le=1024)

    @field_validator("template")
    @classmethod
    def _has_prefix(cls, value: str) -> str:
        if "{prefix}" not in value:
            raise ValueError("expected {prefix} in it, and {suffix} for a model that fills in the middle")
        return value


class HumanEvalInfill(Workload):
    """Functions without one of their lines: code before and after it is given, the line is asked for."""

    name = "humaneval-infill"
    version = "1"
    tasks: tuple[str, ...] = (TASK,)
    score_name = "exact line, 0-100"
    Config = InfillConfig
    config: InfillConfig

    def __init__(self, config: InfillConfig | None = None) -> None:
        super().__init__(config)
        records = read_records(self.config.data, InfillRecord) if self.config.data else []
        self._given = [Problem(r.task_id, r.prompt, r.suffix, r.canonical_solution) for r in records]

    def requests(self, task: str, limit: int, seed: int) -> Iterator[Request]:
        """The shortest prefixes first, as in the paper: batches then hold prompts of about one length."""
        self.check_task(task)
        found: Sequence[Problem] = self._given or list(problems(seed))
        for index, problem in enumerate(sorted(found, key=lambda one: len(one.prefix))[:limit]):
            yield self._request(index, seed, problem)

    def score(self, completion: Completion, request: Request) -> float:
        """100 if the answer's first line that is not blank is the missing one, whatever its indentation."""
        line = completion.text.strip().split("\n")[0].strip()
        return 100.0 if line == request.references[0].strip() else 0.0

    def _request(self, index: int, seed: int, problem: Problem) -> Request:
        parts = {"{prefix}": problem.prefix, "{suffix}": problem.suffix}
        return Request(
            id=f"{self.name}/{index}",
            task=TASK,
            prompt=re.sub(r"\{(?:prefix|suffix)\}", lambda mark: parts[mark[0]], self.config.template),
            references=(problem.solution,),
            metric="exact_line",
            max_new_tokens=self.config.new_tokens,
            seed=seed,
            metadata={"task_id": problem.task_id},
        )
