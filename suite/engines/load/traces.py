"""Recorded traffic to replay: when requests came and how long they were (card `methods/_serving_metrics.md` section 5).

Columns are found by name: BurstGPT and Azure's LLM traces as CSV, or JSON lines with `timestamp` (seconds),
`input_length` and `output_length`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, Field

from suite.errors import InputError
from workloads.loading import read_records

if TYPE_CHECKING:
    import pandas

BURSTGPT = ("Timestamp", "Request tokens", "Response tokens")
AZURE = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")
OWN = ("timestamp", "input_length", "output_length")


class TraceLine(BaseModel):
    """One line of the suite's own format; `timestamp` in seconds, lengths in tokens."""

    timestamp: float = Field(ge=0, allow_inf_nan=False)
    input_length: int = Field(ge=1)
    output_length: int = Field(ge=0)


@dataclass(frozen=True)
class Trace:
    """`due` in seconds after the first request, `lengths` as (input, output). `left_out` failed when recorded."""

    due: tuple[float, ...]
    lengths: tuple[tuple[int, int], ...]
    left_out: int

    def first(self, count: int | None) -> Trace:
        """The trace's first `count` requests; None is all."""
        if count is not None and count > len(self.due):
            raise InputError(f"the trace holds {len(self.due)} requests, and {count} are wanted in all.")
        return Trace(self.due[:count], self.lengths[:count], self.left_out)

    def at_rate(self, rate: float) -> Trace:
        """Stretched to `rate` requests/s on average; its bursts stay."""
        if not 0 < rate < float("inf"):
            raise InputError(f"a rate of {rate:g} requests/s is not possible; give a positive number.")
        if len(self.due) < 2 or self.due[-1] == 0:
            raise InputError("the trace's requests all come at one moment: it has no rate to scale.")
        scale = (len(self.due) - 1) / self.due[-1] / rate
        return Trace(tuple(at * scale for at in self.due), self.lengths, self.left_out)


def read_trace(path: Path) -> Trace:
    """A trace sorted by time, without requests that got no answer; `InputError` names the file, line and column."""
    import pandas

    if path.suffix == ".csv":
        frame = _csv(path)
    else:
        frame = pandas.DataFrame([tuple(vars(line).values()) for line in read_records(path, TraceLine)], columns=OWN)
    kept = frame[frame["output_length"] > 0].sort_values("timestamp", kind="stable")
    if kept.empty:
        raise InputError(f"{path}: no request of the trace has an answer.")
    due = kept["timestamp"] - kept["timestamp"].iloc[0]
    lengths = zip(kept["input_length"].astype(int), kept["output_length"].astype(int), strict=True)
    return Trace(tuple(due.tolist()), tuple((int(a), int(b)) for a, b in lengths), len(frame) - len(kept))


def _csv(path: Path) -> pandas.DataFrame:
    import pandas

    try:
        raw = pandas.read_csv(path, dtype=str, skip_blank_lines=False, encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a readable file.") from error
    except ValueError as error:  # pandas' parser errors and wrong encodings are of this kind
        raise InputError(f"{path}: {' '.join(str(error).split())}.") from error
    for columns in (BURSTGPT, AZURE):
        if set(columns) <= set(raw.columns):
            return _checked(raw[list(columns)], path)
    known = " or ".join(", ".join(columns) for columns in (BURSTGPT, AZURE))
    raise InputError(f"{path}: is no known trace; expected the columns {known}.")


def _checked(raw: pandas.DataFrame, path: Path) -> pandas.DataFrame:
    """The three columns as numbers, times in seconds; the first bad cell is the error."""
    import pandas

    time, *lengths = raw.columns
    numbers: pandas.DataFrame = raw.apply(pandas.to_numeric, errors="coerce")
    if time == AZURE[0]:
        moments = pandas.to_datetime(raw[time], errors="coerce", utc=True, format="ISO8601")
        numbers[time] = (moments - moments.min()).dt.total_seconds()
    good = numbers.notna() & (numbers >= [0, 1, 0]) & (numbers < float("inf"))
    good[lengths] &= numbers[lengths] % 1 == 0
    if not good.to_numpy().all():
        line, column = next((row, name) for row in good.index for name in raw.columns if not good.at[row, name])
        raise InputError(f"{path}, line {line + 2}: {column} is {raw.at[line, column]!r}, which does not fit a trace.")
    return numbers.set_axis(list(OWN), axis=1)
