"""LongBench (arXiv 2308.14508): 21 long-context data sets with their official metrics, or a seeded stand-in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from pydantic import Field, model_validator

from workloads.generators.longbench import GENERATOR_VERSION, gen_longbench
from workloads.generators.world import LEXICON_FILES
from workloads.loading import Source, fetch_from_hub
from workloads.longbench_data import (
    HUB_FILE,
    HUB_ID,
    OWN_PROMPTS,
    LongBenchRecord,
    hub_files,
    load_limits,
    load_records,
    load_templates,
    local_files,
)
from workloads.longbench_tasks import CODE, TASKS, aggregate, by_length, length_bin
from workloads.metrics import METRICS, classification, first_line
from workloads.schema import Completion, Request, Workload, WorkloadConfig

__all__ = ["LongBench", "LongBenchConfig", "aggregate", "by_length"]


class LongBenchConfig(WorkloadConfig):
    """Where items come from, and how they are put to the model.

    `data`: a directory of official `<task>.jsonl` (or `<task>_e.jsonl`) files. `hub`: fetch them from the hub instead.
    `templates`, `limits`: files in the format of LongBench's `dataset2prompt.json` and `dataset2maxlen.json`; without
    them the suite's own wording and the official limits hold. `target_tokens`: about how long the context of a
    generated item is. `released_classification`: score trec and lsht with the released loop's flaw.
    """

    hub: bool = False
    templates: Path | None = None
    limits: Path | None = None
    target_tokens: int = Field(default=1100, ge=100, le=1_000_000)
    released_classification: bool = False

    @model_validator(mode="after")
    def _one_source(self) -> LongBenchConfig:
        if self.hub and self.data is not None:
            raise ValueError("'hub' and 'data' are two sources; give one of them")
        return self


class LongBench(Workload):
    """The score of a task is the mean over its records of the best score over the references, 0 to 100."""

    name = "longbench"
    version = f"1.{GENERATOR_VERSION}"
    tasks: tuple[str, ...] = tuple(TASKS)
    score_name = "score, 0-100"
    Config = LongBenchConfig
    config: LongBenchConfig

    def __init__(self, config: LongBenchConfig | None = None) -> None:
        super().__init__(config)
        self._archive = fetch_from_hub(HUB_ID, HUB_FILE) if self.config.hub else None
        self._files = self._find()
        if self._files:
            self.tasks = tuple(self._files)
        self._templates = load_templates(self.config.templates or OWN_PROMPTS, self.tasks)
        self._limits = load_limits(self.config.limits, self.tasks) if self.config.limits else {}

    def _find(self) -> dict[str, Source]:
        if self._archive is not None:
            return hub_files(self._archive)
        return local_files(self.config.data) if self.config.data is not None else {}

    @property
    def source(self) -> str:
        if self.config.hub:
            return HUB_ID
        return str(self.config.data) if self.config.data is not None else "synthetic"

    def data_files(self) -> Sequence[Path]:
        items = [path for path in self._files.values() if isinstance(path, Path)] or LEXICON_FILES.values()
        options = [self._archive, self.config.templates or OWN_PROMPTS, self.config.limits]
        return (*items, *(path for path in options if path is not None))

    def requests(self, task: str, limit: int, seed: int) -> Iterator[Request]:
        """Reads the whole file of the task first, so that a bad line is known before any request is served."""
        self.check_task(task)
        if task not in self._files:
            generated = gen_longbench(seed, task, limit, self.config.target_tokens)
            records: Iterable[LongBenchRecord] = map(LongBenchRecord.model_validate, generated)
            return (
                self._request(task, index, record, record.all_classes, seed) for index, record in enumerate(records)
            )
        found = load_records(self._files[task], task)
        classes = found[-1].all_classes  # the released scorer takes the last record's for all
        return (self._request(task, index, record, classes, seed) for index, record in enumerate(found[:limit]))

    def _request(self, task: str, index: int, record: LongBenchRecord, classes: list[str] | None, seed: int) -> Request:
        info, template = TASKS[task], self._templates[task]
        start = len(template[: template.index("{context}")].format(**record.fields()))
        prompt, asked = template.format(**record.fields()), record.input.strip()
        known = asked and info.category != CODE and asked in prompt  # the input of a code task is more code
        return Request(
            id=f"longbench/{task}/{index}",
            task=task,
            prompt=prompt,
            question=asked if known else None,
            chat=info.chat,
            references=tuple(record.answers),
            metric=info.metric,
            max_new_tokens=self._limits.get(task, info.max_new_tokens),
            stop=info.stop,
            seed=seed,
            metadata={
                "record": record.id,
                "category": info.category,
                "language": record.language,
                "length": record.length,
                "length_bin": length_bin(record.length),
                "all_classes": classes or [],
                "depth": record.depth,
                "evidence_spans": [[start + low, start + high] for low, high in record.evidence_spans],
            },
        )

    def score(self, completion: Completion, request: Request) -> float:
        """The best score over the references, x100."""
        metric = METRICS[request.metric]
        if request.metric == "classification":
            metric = partial(classification, released_loop=self.config.released_classification)
        text = first_line(completion.text) if TASKS[request.task].first_line else completion.text
        classes = request.metadata["all_classes"]
        return 100.0 * max(metric(text, reference, classes) for reference in request.references)
