"""The results: one SQLite file, one row per finished unit. A killed run loses the block it was in and nothing else."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from pydantic import ValidationError

from suite.errors import InputError
from suite.harness.measurement import Calibration, Finding, UnitResult, Validation

STORE_VARIABLE = "SUITE_STORE"
DEFAULT_STORE = Path("results") / "suite.sqlite"
APPLICATION_ID = 0x53554954  # "SUIT": tells our files from those of other programs
SCHEMA_VERSION = 1
BUSY_TIMEOUT_S = 30.0

_TABLES = """
CREATE TABLE units (key TEXT PRIMARY KEY, block TEXT NOT NULL, sweep TEXT NOT NULL, created TEXT NOT NULL,
                    json TEXT NOT NULL);
CREATE INDEX units_by_block ON units (block);
CREATE TABLE sweeps (id TEXT PRIMARY KEY, plan TEXT NOT NULL, created TEXT NOT NULL, done TEXT);
CREATE TABLE findings (slug TEXT NOT NULL, claim TEXT NOT NULL, machine_id TEXT NOT NULL, created TEXT NOT NULL,
                       json TEXT NOT NULL);
CREATE TABLE calibrations (machine_id TEXT NOT NULL, created TEXT NOT NULL, json TEXT NOT NULL);
CREATE TABLE machines (machine_id TEXT PRIMARY KEY, json TEXT NOT NULL);
"""
# Added after version 1 was in use; an older program does not look at them, so an older store just gets them.
_LATER = (
    "CREATE TABLE IF NOT EXISTS runs (id TEXT PRIMARY KEY, created TEXT NOT NULL, json TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS validations (machine_id TEXT NOT NULL, created TEXT NOT NULL, json TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS documents (kind TEXT NOT NULL, name TEXT NOT NULL, machine_id TEXT NOT NULL, "
    "created TEXT NOT NULL, json TEXT NOT NULL)",
)

_FILTERS = {
    "block": "block",
    "sweep": "sweep",
    "workload": "json_extract(json, '$.spec.workload.name')",
    "method": "json_extract(json, '$.spec.method.name')",
    "model": "json_extract(json, '$.spec.model.name')",
    "machine_id": "json_extract(json, '$.machine_id')",
}


@dataclass(frozen=True)
class Sweep:
    """A run as it was planned; `plan` is the plan's JSON document."""

    id: str
    plan: str
    created: str


@dataclass(frozen=True)
class Run:
    """A finished run of a `suite sweep`: its units in order, and what was said about it."""

    units: tuple[UnitResult, ...]
    notes: tuple[str, ...]


def default_path() -> Path:
    """The store of this directory, or the one that the environment variable SUITE_STORE names."""
    return Path(os.environ.get(STORE_VARIABLE) or DEFAULT_STORE)


def now() -> str:
    """The time as it is written into the store: UTC, ISO 8601, microseconds (so that text order is time order)."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


_ADD_UNIT = "INSERT OR REPLACE INTO units VALUES (?, ?, ?, ?, ?)"


def _unit_rows(units: Sequence[UnitResult], sweep: str) -> list[tuple[str, ...]]:
    return [(unit.key, unit.block, sweep, now(), unit.model_dump_json()) for unit in units]


class Store:
    """An open results file. Every write is one transaction; every failure is an `InputError` of one sentence."""

    def __init__(self, path: Path | None = None, *, create: bool = True) -> None:
        self.path = path if path is not None else default_path()
        if not create and not self.path.exists():
            raise InputError(
                f"there is no results store at {self.path}; run `python -m suite run` first, or give --store."
            )
        with self._explained():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = sqlite3.connect(self.path, timeout=BUSY_TIMEOUT_S, isolation_level=None)
            with ExitStack() as undo:
                undo.callback(self._connection.close)
                self._open()
                undo.pop_all()

    def _open(self) -> None:
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        with self._transaction() as connection:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            (owner,) = connection.execute("PRAGMA application_id").fetchone()
            (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if tables == 0:
                self._create()
            elif owner != APPLICATION_ID:
                raise InputError(f"{self.path} belongs to another program; give --store the path of a results store.")
            elif version != SCHEMA_VERSION:
                raise InputError(
                    f"{self.path} has store version {version}, this program reads {SCHEMA_VERSION}; "
                    "give --store a new path, or use the program's version that wrote it."
                )
            for statement in _LATER:
                connection.execute(statement)

    def _create(self) -> None:
        for statement in _TABLES.split(";"):
            self._connection.execute(statement)
        self._connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
        self._connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Turns what SQLite and the file system say into one sentence for the user."""
        try:
            yield
        except sqlite3.Error as error:
            raise InputError(_sentence(self.path, str(error))) from error
        except OSError as error:
            raise InputError(_sentence(self.path, error.strerror or str(error))) from error
        except ValidationError as error:
            raise InputError(
                f"the store {self.path} holds a record this program cannot read ({error.title}); "
                "give --store a new path, or use the program's version that wrote it."
            ) from error

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing: commits at the end, rolls back when anything is raised inside."""
        with self._connection:
            self._connection.execute("BEGIN IMMEDIATE")
            yield self._connection

    def close(self) -> None:
        """Closes the file. Everything written is already safe."""
        with self._explained():
            self._connection.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, statement: str, rows: Iterable[tuple[Any, ...]]) -> None:
        with self._explained(), self._transaction() as connection:
            connection.executemany(statement, rows)

    def _read(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._explained():
            return self._connection.execute(statement, values).fetchall()

    def add_units(self, units: Sequence[UnitResult], sweep: str) -> None:
        """Writes the units of one block: all of them or none. A unit measured again replaces the older result."""
        self._write(_ADD_UNIT, _unit_rows(units, sweep))

    def add_run(self, run: str, units: Sequence[UnitResult], notes: Sequence[str]) -> None:
        """Writes a finished run of a `suite sweep` with all its units, or nothing of it."""
        document = json.dumps({"units": [unit.key for unit in units], "notes": list(notes)})
        with self._explained(), self._transaction() as connection:
            connection.executemany(_ADD_UNIT, _unit_rows(units, run))
            connection.execute("INSERT OR REPLACE INTO runs VALUES (?, ?, ?)", (run, now(), document))

    def run(self, run: str) -> Run | None:
        """A finished run of a `suite sweep` that has all its units, or `None`."""
        rows = self._read("SELECT json FROM runs WHERE id = ?", (run,))
        if not rows:
            return None
        document = json.loads(rows[0][0])
        units = [unit for key in document["units"] if (unit := self.unit(key)) is not None]
        return Run(tuple(units), tuple(document["notes"])) if len(units) == len(document["units"]) else None

    def has(self, key: str) -> bool:
        """True when this unit is stored, whatever its status."""
        return bool(self._read("SELECT 1 FROM units WHERE key = ?", (key,)))

    def unit(self, key: str) -> UnitResult | None:
        """One unit, or `None`."""
        rows = self._read("SELECT json FROM units WHERE key = ?", (key,))
        with self._explained():
            return UnitResult.model_validate_json(rows[0][0]) if rows else None

    def units(self, **filters: str) -> list[UnitResult]:
        """All units in the order they were written; filters: block, sweep, workload, method, model, machine_id."""
        where = " AND ".join(f"{_FILTERS[name]} = ?" for name in filters) or "1"
        rows = self._read(f"SELECT json FROM units WHERE {where} ORDER BY created, rowid", list(filters.values()))
        with self._explained():
            return [UnitResult.model_validate_json(text) for (text,) in rows]

    def settled(self, keys: Sequence[str], sweep: str, *, fresh: bool = False) -> bool:
        """True when none of these units need be measured (again) in this sweep.

        What this sweep itself finished is never repeated. An older result is taken over if it is sound, unless all are
        to be `fresh`; a failed or an unstable one is measured again, because that is what its reader was told to do.
        """
        marks = ", ".join("?" * len(keys))
        sound = "json_extract(json, '$.status') IN ('ok', 'gated')"
        rows = self._read(
            f"SELECT count(*) FROM units WHERE key IN ({marks}) AND (sweep = ? OR (NOT ? AND {sound}))",
            [*keys, sweep, fresh],
        )
        return bool(rows[0][0] == len(set(keys)))

    def add_findings(self, findings: Sequence[Finding]) -> None:
        """Writes rows of the claims ledger; older ones stay as history."""
        rows = [(f.slug, f.claim, f.machine_id, now(), f.model_dump_json()) for f in findings]
        self._write("INSERT INTO findings VALUES (?, ?, ?, ?, ?)", rows)

    def findings(self, slug: str | None = None) -> list[Finding]:
        """The latest finding of each claim on each machine, of one system or of all."""
        rows = self._read(
            "SELECT json FROM findings AS f WHERE (?1 IS NULL OR slug = ?1) AND rowid = ("
            "SELECT max(rowid) FROM findings WHERE slug = f.slug AND claim = f.claim AND machine_id = f.machine_id"
            ") ORDER BY slug, claim",
            (slug,),
        )
        with self._explained():
            return [Finding.model_validate_json(text) for (text,) in rows]

    def add_calibration(self, calibration: Calibration) -> None:
        """Writes a measured roofline; older ones stay as history."""
        row = (calibration.machine_id, now(), calibration.model_dump_json())
        self._write("INSERT INTO calibrations VALUES (?, ?, ?)", [row])

    def calibration(self, machine_id: str) -> Calibration | None:
        """The latest calibration of one machine, or `None`."""
        rows = self._read(
            "SELECT json FROM calibrations WHERE machine_id = ? ORDER BY rowid DESC LIMIT 1", (machine_id,)
        )
        with self._explained():
            return Calibration.model_validate_json(rows[0][0]) if rows else None

    def add_document(self, kind: str, name: str, machine_id: str, document: Mapping[str, Any]) -> None:
        """Keeps what a command found that measures no units: "engines" (a comparison), "tuning" (a study)."""
        self._write(
            "INSERT INTO documents VALUES (?, ?, ?, ?, ?)", [(kind, name, machine_id, now(), json.dumps(document))]
        )

    def documents(self, kind: str) -> dict[str, list[dict[str, Any]]]:
        """By machine id, the latest document of each name."""
        rows = self._read(
            "SELECT machine_id, json FROM documents AS d WHERE kind = ? AND rowid = (SELECT max(rowid) FROM documents "
            "WHERE kind = d.kind AND name = d.name AND machine_id = d.machine_id) ORDER BY rowid",
            (kind,),
        )
        found: dict[str, list[dict[str, Any]]] = {}
        for machine_id, text in rows:
            found.setdefault(machine_id, []).append(json.loads(text))
        return found

    def add_validation(self, validation: Validation) -> None:
        """Writes one run's times of passes; those of older runs stay."""
        self._write(
            "INSERT INTO validations VALUES (?, ?, ?)", [(validation.machine_id, now(), validation.model_dump_json())]
        )

    def validations(self, machine_id: str) -> list[Validation]:
        """All runs that timed passes on one machine, in order."""
        rows = self._read("SELECT json FROM validations WHERE machine_id = ? ORDER BY rowid", (machine_id,))
        with self._explained():
            return [Validation.model_validate_json(text) for (text,) in rows]

    def add_machine(self, machine_id: str, document: str) -> None:
        """Keeps the fingerprint (JSON) that a machine id is the hash of."""
        self._write("INSERT OR REPLACE INTO machines VALUES (?, ?)", [(machine_id, document)])

    def machines(self) -> dict[str, str]:
        """Fingerprints (JSON) by machine id."""
        return dict(self._read("SELECT machine_id, json FROM machines"))

    def sweeps(self, prefix: str) -> list[str]:
        """Ids, beginning so, of the sweeps that units were last measured in, in order."""
        rows = self._read(
            "SELECT DISTINCT sweep FROM units WHERE substr(sweep, 1, ?) = ? ORDER BY sweep", (len(prefix), prefix)
        )
        return [sweep for (sweep,) in rows]

    def save_sweep(self, sweep: str, plan: str) -> None:
        """Writes down what a run is about to do, before it does it; saving it again changes the plan only."""
        self._write(
            "INSERT INTO sweeps VALUES (?, ?, ?, NULL) ON CONFLICT (id) DO UPDATE SET plan = excluded.plan",
            [(sweep, plan, now())],
        )

    def finish_sweep(self, sweep: str) -> None:
        """Nothing of this sweep is left to do."""
        self._write("UPDATE sweeps SET done = ? WHERE id = ?", [(now(), sweep)])

    def pending_sweep(self, prefix: str = "") -> Sweep | None:
        """The latest sweep, of those whose id begins so, that was begun and not finished, or `None`."""
        rows = self._read(
            "SELECT id, plan, created FROM sweeps WHERE done IS NULL AND substr(id, 1, ?) = ? "
            "ORDER BY created DESC LIMIT 1",
            (len(prefix), prefix),
        )
        return Sweep(*rows[0]) if rows else None


_ELSEWHERE = "give --store the path of a file in a directory you may write to"
_SENTENCES = (
    (
        ("disk is full", "no space left"),
        "the disk is full and the store {path} could not be written; free some space, or give --store another path.",
    ),
    (
        ("not a database", "malformed", "file is encrypted", "could not decode"),
        "{path} is damaged or no results store ({reason}); give --store another path, or restore the file from a copy.",
    ),
    (
        ("locked",),
        "the store {path} is in use by another process; wait for it, or give --store another path.",
    ),
    (
        ("readonly", "unable to open", "permission denied", "directory", "file exists", "read-only"),
        "the store {path} cannot be written ({reason}); " + _ELSEWHERE + ".",
    ),
)


def _sentence(path: Path, reason: str) -> str:
    """What an error of SQLite or of the file system means for the user."""
    reason = reason.partition(" with text")[0]  # behind it stands the whole record
    for marks, sentence in _SENTENCES:
        if any(mark in reason.lower() for mark in marks):
            return sentence.format(path=path, reason=reason)
    return f"the store {path} could not be read or written ({reason}); check its disk, or {_ELSEWHERE}."
