"""What LongBench is made of: records from a directory of the official files or from the hub, templates and limits."""

from __future__ import annotations

import string
import zipfile
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from workloads.loading import Source, read_json, read_records
from workloads.longbench_tasks import TASKS
from workloads.schema import DataError

HUB_ID = "THUDM/LongBench"
HUB_FILE = "data.zip"
OWN_PROMPTS = Path(str(resources.files("workloads.data"))) / "longbench_prompts.json"


class LongBenchRecord(BaseModel):
    """The official schema, and the generator's two extra keys. `length`: words, or characters in Chinese."""

    model_config = ConfigDict(frozen=True, strict=True)

    input: str
    context: str
    answers: list[str] = Field(min_length=1)
    length: int = Field(ge=0)
    dataset: str
    language: str
    all_classes: list[str] | None
    id: str = Field(alias="_id")
    depth: float | None = None
    evidence_spans: list[list[int]] = []

    def fields(self) -> dict[str, Any]:
        """The official fields under their official names: what a template may use."""
        return self.model_dump(by_alias=True, exclude={"depth", "evidence_spans"})


def local_files(directory: Path) -> dict[str, Source]:
    """The data sets of a directory: `<task>.jsonl`, or else LongBench-E's `<task>_e.jsonl`."""
    if not directory.is_dir():
        raise DataError(
            f"{directory}: is not a directory; give the directory that holds LongBench's <task>.jsonl files."
        )
    return _present(directory, f"{directory}")


def hub_files(archive: Path) -> dict[str, Source]:
    """The data sets of the hub's archive, read without unpacking it."""
    return _present(zipfile.Path(archive, "data/"), f"{archive}")


def _present(directory: Source, place: str) -> dict[str, Source]:
    candidates = {task: [directory / f"{task}.jsonl", directory / f"{task}_e.jsonl"] for task in TASKS}
    found = {task: path for task, paths in candidates.items() for path in reversed(paths) if path.is_file()}
    if not found:
        raise DataError(f"{place}: holds no LongBench data set; expected files such as qasper.jsonl or qasper_e.jsonl.")
    return found


def load_records(path: Source, task: str) -> list[LongBenchRecord]:
    """The checked records of one data set."""
    records = read_records(path, LongBenchRecord)
    if TASKS[task].metric == "classification" and not records[-1].all_classes:
        raise DataError(
            f"{path}, line {len(records)}: field 'all_classes' is empty; expected the class names of {task}."
        )
    return records


def load_templates(path: Path, tasks: Iterable[str]) -> dict[str, str]:
    """Prompt templates by data set (the format of `dataset2prompt.json`), each with a `{context}` slot."""
    templates = _by_task(path, tasks)
    known = {field.alias or name for name, field in LongBenchRecord.model_fields.items()}
    for task, template in templates.items():
        if not isinstance(template, str):
            raise DataError(f"{path}: the template of {task!r} is not a string; expected text with a {{context}} slot.")
        slots = _slots(template, f"{path}: the template of {task!r}")
        if "context" not in slots or not slots <= known:
            raise DataError(
                f"{path}: the template of {task!r} has the slots {sorted(slots)}; expected context and input."
            )
    return templates


def load_limits(path: Path, tasks: Iterable[str]) -> dict[str, int]:
    """New tokens by data set (the format of `dataset2maxlen.json`)."""
    limits = _by_task(path, tasks)
    for task, limit in limits.items():
        if type(limit) is not int or limit < 1:
            raise DataError(
                f"{path}: the limit of {task!r} is {limit!r}; expected a whole number of tokens, 1 or more."
            )
    return limits


def _by_task(path: Path, tasks: Iterable[str]) -> dict[str, Any]:
    document = read_json(path)
    if not isinstance(document, Mapping):
        raise DataError(f"{path}: is a JSON {type(document).__name__}; expected an object with one entry a data set.")
    missing = [task for task in tasks if task not in document]
    if missing:
        raise DataError(f"{path}: has no entry for {', '.join(missing)}; expected one for every data set.")
    return {task: document[task] for task in tasks}


def _slots(template: str, place: str) -> set[str]:
    try:
        return {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    except ValueError as error:
        raise DataError(f"{place} cannot be parsed ({error}); write {{{{ and }}}} for braces.") from None
