"""Files of results: read as JSON or JSON lines, and recognised by what they hold."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from suite.engines.load.imports import aiperf, aiperf_records, guidellm, own, vllm
from suite.engines.load.imports.run import Document, Run
from suite.errors import InputError, NothingMeasuredError

READERS = (
    (own.recognised, own.read),
    (vllm.recognised, vllm.read),
    (aiperf.recognised, aiperf.read),
    (aiperf_records.recognised, aiperf_records.read),
    (guidellm.recognised, guidellm.read),
)


def read_documents(path: Path) -> list[Document]:
    """The file's JSON object, or one per line. NaN and infinity, which tools write for no value, become null."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror or error}).") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not text: JSON or JSON lines are expected.") from error
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    if len(lines) > 1 and _is_object(lines[0][1]):
        return [_object(line, f"{path}, line {number}") for number, line in lines]
    return [_object(text, str(path))]


def read_runs(documents: list[Document], file: str) -> list[Run]:
    """The runs of a file, by whichever tool wrote it."""
    for recognised, read in READERS:
        if recognised(documents[0]):
            runs = read(documents, file)
            if not runs:
                raise NothingMeasuredError(f"{file} holds no finished run.")
            return runs
    raise InputError(
        f"{file} is no known result file: those of `suite load`, `vllm bench serve`, AIPerf, GuideLLM and "
        "`pytest --benchmark-json` are."
    )


def _is_object(line: str) -> bool:
    try:
        return isinstance(_parse(line), dict)
    except (ValueError, RecursionError):
        return False


def _object(text: str, place: str) -> Document:
    try:
        found = _parse(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place} is damaged, or no JSON: {error}.") from error
    if not isinstance(found, dict):
        raise InputError(f"{place} is no JSON object, which every known result file is.")
    return found


def _parse(text: str) -> Any:
    return json.loads(text, parse_constant=lambda constant: None)
