"""What is kept of every request, one JSON line each: every figure of a report is computed from these (card section 1).

All times are seconds after the start of the run on the system's monotonic clock, which all processes share.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from suite.errors import InputError

Phase = Literal["warmup", "measure", "cooldown"]
TokenSource = Literal["usage", "tokenizer", "unknown"]


@dataclass(frozen=True)
class Record:
    """One request that was due, whatever became of it. `error` is empty when it succeeded.

    `chunks` are the arrival times of the stream events that carried output; `chunk_tokens` says how many tokens each
    held, where the server tells (`usage` in every event). `n_out` is None where nobody knows: events are not tokens.
    `source` says whose `n_in` and `n_out` are; `n_tokenizer_in` and `n_tokenizer` are a tokenizer's, if one counted.
    """

    index: int
    phase: Phase
    t_sched: float
    t_send: float | None
    t_done: float
    chunks: tuple[float, ...] = ()
    chunk_tokens: tuple[int, ...] | None = None
    n_in: int | None = None
    n_out: int | None = None
    source: TokenSource = "unknown"
    n_tokenizer_in: int | None = None
    n_tokenizer: int | None = None
    asked_out: int = 0
    session: str = ""
    turn: int = 0
    error: str = ""
    text: str = ""

    @property
    def ok(self) -> bool:
        """Whether the whole answer arrived."""
        return not self.error

    @property
    def first(self) -> float | None:
        """When the first output arrived."""
        return self.chunks[0] if self.chunks else None

    @property
    def last(self) -> float | None:
        """When the last output arrived; the usage event and `[DONE]` after it do not count."""
        return self.chunks[-1] if self.chunks else None


def to_line(record: Record) -> bytes:
    """One line of a record file."""
    return json.dumps(vars(record), ensure_ascii=False).encode() + b"\n"


def rewrite(path: Path, records: Iterable[Record]) -> None:
    """Puts other records in a file's place, all or none of them."""
    made = path.with_name(path.name + ".new")
    made.write_bytes(b"".join(to_line(record) for record in records))
    made.replace(path)


def read(path: Path) -> list[Record]:
    """All records of a file by their number; a last line cut off by a crash is left out."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}).") from error
    return sorted((_parse(line, f"{path}, line {n}") for n, line in enumerate(lines[:-1], 1)), key=lambda r: r.index)


def _parse(line: bytes, place: str) -> Record:
    try:
        raw = json.loads(line)
        record = Record(**raw)
    except (ValueError, TypeError) as error:
        raise InputError(f"{place}: is not a request record ({error}).") from error
    tokens = record.chunk_tokens
    return replace(record, chunks=tuple(record.chunks), chunk_tokens=None if tokens is None else tuple(tokens))


def measured(records: Iterable[Record]) -> list[Record]:
    """Those scheduled inside the measured window."""
    return [record for record in records if record.phase == "measure"]
