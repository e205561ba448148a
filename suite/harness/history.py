"""The nights: an append-only file, one JSON line per unit, claim run or note, that a branch or an artefact can keep.

A line is written in one piece and synced, so a kill loses at most the line it was in; a torn or foreign line is skipped
and counted. Lines of two copies may simply be concatenated: what is there twice counts once.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from filelock import FileLock
from pydantic import Field, ValidationError

from suite.errors import InputError
from suite.harness.measurement import Record, Status

HISTORY_NAME = "nightly.jsonl"


class Observation(Record):
    """What one unit gave in one night.

    `question` hashes what was asked (method, workload and its data, model, engine, threads), `place` the hardware:
    equal ones form a series. `times` holds the milliseconds of every timed request by latency and "request#repeat",
    `scores` those of requests.
    """

    kind: Literal["unit"] = "unit"
    night: str
    at: str
    run: str
    question: str
    place: str
    label: str
    status: Status
    reasons: tuple[str, ...] = ()
    greedy: bool = True
    higher_is_better: bool = True
    metrics: dict[str, float] = Field(default_factory=dict)
    times: dict[str, dict[str, float]] = Field(default_factory=dict)
    scores: dict[str, float] = Field(default_factory=dict)
    code_version: str = ""
    commit: str = ""
    key: str = ""


class Turn(Record):
    """A run or the ledger rows of a system that a night got to: how long it took, and how it ended."""

    kind: Literal["turn"] = "turn"
    night: str
    at: str
    what: Literal["run", "ledger"]
    name: str
    seconds: float
    finished: bool
    error: str | None = None
    verdicts: dict[str, str] = Field(default_factory=dict)


Line = Observation | Turn


class History:
    """The file of the nights; it need not exist yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.skipped = 0

    def append(self, lines: Sequence[Line]) -> None:
        """Adds lines behind all that are there, whoever else is writing; they are on the disk when this returns."""
        if not lines:
            return
        text = "".join(line.model_dump_json() + "\n" for line in lines).encode()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{self.path}.lock"), self.path.open("ab") as file:
                end = file.tell()
                if end and self._last_byte() != b"\n":
                    text = b"\n" + text  # the line before was torn by a kill: it must not swallow this one
                _write_whole(file.fileno(), text, end)
        except OSError as error:
            raise InputError(
                f"the history {self.path} could not be written ({error.strerror or error}); "
                "free some space, or give --history another path."
            ) from error

    def _last_byte(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1)

    def read(self) -> list[Line]:
        """Every whole line, in the order of time; `skipped` says how many were not."""
        try:
            raw = self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            raise InputError(f"cannot read the history {self.path} ({error.strerror or error}).") from error
        self.skipped = 0
        found: dict[str, Line] = {}
        for line in filter(None, raw.split(b"\n")):
            try:
                made = _Any.model_validate_json(b'{"line":' + line + b"}").line
            except ValidationError:
                self.skipped += 1
            else:
                found[made.model_dump_json()] = made
        return sorted(found.values(), key=lambda line: line.at)


class _Any(Record):
    line: Line = Field(discriminator="kind")


def _write_whole(descriptor: int, text: bytes, end: int) -> None:
    """All bytes or none: what a full disk took of them is cut off again."""
    try:
        left = memoryview(text)
        while left:
            left = left[os.write(descriptor, left) :]
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, end)
        raise
