"""The store keeps what it was given, and says in one sentence what is wrong with a file it cannot use."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from suite.errors import InputError
from suite.harness.export import FORMATS, export
from suite.harness.measurement import Calibration, Ceiling, Finding
from suite.harness.store import Run, Store, default_path
from tests.analysis.factory import MACHINE, validation
from tests.harness.support import unit


def _finding(measured: float, machine: str = "m") -> Finding:
    return Finding(
        slug="longheads", claim="flat", paper="p", conditions="c", measured=measured, low=0, high=1, unit="x",
        verdict="partly", command="python -m suite reproduce longheads", machine_id=machine,
    )  # fmt: skip


def _calibration(value: float) -> Calibration:
    ceiling = Ceiling(kind="read", dtype="bf16", threads=1, size=1, value=value, spread=0.0, samples=(value,))
    return Calibration(machine_id="m", measured_at="now", ceilings=(ceiling,), call_overhead_us=1.0)


def test_units_come_back_as_they_were(store: Store) -> None:
    store.add_units([unit("k0"), unit("k1", method="other")], "s")
    assert store.units() == [unit("k0"), unit("k1", method="other")]
    assert store.unit("k1") == unit("k1", method="other")
    assert store.unit("k2") is None
    assert store.has("k0")
    assert not store.has("k2")


@pytest.mark.parametrize(
    ("name", "value", "keys"),
    [
        ("method", "other", ["k1"]),
        ("block", "b0", ["k0", "k1"]),
        ("workload", "tasks", ["k0", "k1", "k2"]),
        ("model", "nobody", []),
        ("sweep", "s2", ["k2"]),
        ("machine_id", "machine", ["k0", "k1", "k2"]),
    ],
)
def test_units_are_filtered(store: Store, name: str, value: str, keys: list[str]) -> None:
    store.add_units([unit("k0"), unit("k1", method="other")], "s1")
    store.add_units([unit("k2", "b1")], "s2")
    assert [one.key for one in store.units(**{name: value})] == keys


def test_a_block_is_written_whole_or_not_at_all(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.add_units([unit("k0")], "s")
    store._connection.execute(
        "CREATE TRIGGER no BEFORE INSERT ON units WHEN NEW.key = 'k3' BEGIN SELECT RAISE(ABORT, 'x'); END"
    )
    with pytest.raises(InputError):
        store.add_units([unit("k1"), unit("k2"), unit("k3")], "s")
    assert [one.key for one in store.units()] == ["k0"]


def test_a_unit_measured_again_replaces_the_older_one(store: Store) -> None:
    store.add_units([unit("k0", status="unstable")], "s1")
    store.add_units([unit("k0")], "s2")
    assert [one.status for one in store.units()] == ["ok"]


@pytest.mark.parametrize(
    ("status", "sweep", "settled"),
    [("ok", "old", True), ("gated", "old", True), ("failed", "old", False), ("unstable", "old", False)]
    + [(status, "this", True) for status in ("ok", "gated", "failed", "unstable")],
)
def test_settled(store: Store, status: str, sweep: str, settled: bool) -> None:
    store.add_units([unit("k0"), unit("k1", status=status)], sweep)
    assert store.settled(["k0", "k1"], "this") is settled
    assert not store.settled(["k0", "k1", "k2"], "this")


def test_the_latest_finding_of_each_claim_and_machine_counts(store: Store) -> None:
    store.add_findings([_finding(0.1), _finding(0.2, "n")])
    store.add_findings([_finding(0.3)])
    assert {(one.machine_id, one.measured) for one in store.findings("longheads")} == {("m", 0.3), ("n", 0.2)}
    assert store.findings("nobody") == []
    assert len(store.findings()) == 2


def test_the_latest_calibration_counts(store: Store) -> None:
    assert store.calibration("m") is None
    store.add_calibration(_calibration(30.0))
    store.add_calibration(_calibration(33.0))
    assert store.calibration("m") == _calibration(33.0)


def test_the_latest_document_of_each_name_and_machine_counts(store: Store) -> None:
    for name, machine, value in (("a", "m", 1), ("b", "m", 2), ("a", "n", 3), ("a", "m", 4)):
        store.add_document("tuning", name, machine, {"value": value})
    store.add_document("engines", "a", "m", {"value": 5})
    assert store.documents("tuning") == {"m": [{"value": 2}, {"value": 4}], "n": [{"value": 3}]}


def test_the_latest_unfinished_sweep_is_pending(store: Store) -> None:
    store.save_sweep("s1", "{}")
    store.save_sweep("s2", '{"a": 1}')
    store.save_sweep("s2", '{"a": 2}')
    pending = store.pending_sweep()
    assert pending is not None
    assert (pending.id, pending.plan) == ("s2", '{"a": 2}')
    store.finish_sweep("s2")
    store.finish_sweep("s1")
    assert store.pending_sweep() is None


def test_a_crash_of_the_machine_cannot_tear_a_commit(store: Store) -> None:
    assert store._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    assert store._connection.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


def test_the_environment_names_the_default_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUITE_STORE", "/somewhere/else.sqlite")
    assert default_path() == Path("/somewhere/else.sqlite")
    monkeypatch.delenv("SUITE_STORE")
    assert default_path() == Path("results/suite.sqlite")


def _text_file(folder: Path) -> Path:
    (folder / "s.sqlite").write_text("this is a shopping list, and it is long enough to be read as a header\n" * 9)
    return folder / "s.sqlite"


def _foreign(folder: Path) -> Path:
    with sqlite3.connect(folder / "s.sqlite") as connection:
        connection.execute("CREATE TABLE songs (name TEXT)")
    return folder / "s.sqlite"


def _newer(folder: Path) -> Path:
    Store(folder / "s.sqlite").close()
    with sqlite3.connect(folder / "s.sqlite") as connection:
        connection.execute("PRAGMA user_version=99")
    return folder / "s.sqlite"


def _torn(folder: Path) -> Path:
    with Store(folder / "s.sqlite") as store:
        store.add_units([unit(f"k{i}", text="x" * 5000) for i in range(20)], "s")
    with (folder / "s.sqlite").open("r+b") as file:
        file.seek(4096)
        file.write(os.urandom(100_000))
    return folder / "s.sqlite"


def _file_as_folder(folder: Path) -> Path:
    (folder / "file").touch()
    return folder / "file" / "s.sqlite"


def _folder_as_file(folder: Path) -> Path:
    (folder / "s.sqlite").mkdir()
    return folder / "s.sqlite"


def _in_proc(folder: Path) -> Path:
    return Path("/proc/s.sqlite")


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        pytest.param(_text_file, "is damaged or no results store", id="a text file"),
        pytest.param(_torn, "is damaged or no results store", id="random bytes inside"),
        pytest.param(_foreign, "belongs to another program", id="another program's database"),
        pytest.param(_newer, "has store version 99, this program reads 1", id="a newer version"),
        pytest.param(_file_as_folder, "cannot be written", id="a file where a folder should be"),
        pytest.param(_folder_as_file, "cannot be written", id="a folder where the file should be"),
        pytest.param(_in_proc, "cannot be written|could not be read or written", id="a place nobody can write to"),
    ],
)
def test_an_unusable_store_is_one_sentence(tmp_path: Path, make: object, sentence: str) -> None:
    path = make(tmp_path)  # type: ignore[operator]
    with pytest.raises(InputError, match=sentence) as caught:
        Store(path).units()
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_reading_a_store_that_is_not_there_says_what_to_run(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run `python -m suite run` first"):
        Store(tmp_path / "none.sqlite", create=False)
    assert not (tmp_path / "none.sqlite").exists()


def test_a_record_of_another_shape_is_one_sentence(store: Store) -> None:
    store.add_units([unit("k0")], "s")
    store._connection.execute("UPDATE units SET json = json_set(json, '$.surprise', 1)")
    with pytest.raises(InputError, match="holds a record this program cannot read"):
        store.units()


def test_a_store_in_use_is_one_sentence(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("suite.harness.store.BUSY_TIMEOUT_S", 0.01)
    store._connection.execute("BEGIN IMMEDIATE")
    with pytest.raises(InputError, match="in use by another process"):
        Store(store.path)
    store._connection.execute("ROLLBACK")


def test_a_full_database_is_one_sentence_and_keeps_what_was_there(store: Store) -> None:
    store.add_units([unit("k0")], "s")
    (pages,) = store._connection.execute("PRAGMA page_count").fetchone()
    store._connection.execute(f"PRAGMA max_page_count={pages + 2}")
    with pytest.raises(InputError, match="the disk is full"):
        store.add_units([unit("k1", text="x" * 100_000)], "s")
    assert [one.key for one in store.units()] == ["k0"]


def test_a_full_disk_is_one_sentence_and_keeps_what_was_there(tiny_disk: Path) -> None:
    with Store(tiny_disk / "s.sqlite") as store:
        store.add_units([unit("k0")], "s")
        with pytest.raises(InputError, match=r"the disk is full .* free some space"):
            store.add_units([unit("k1", text="x" * 400_000)], "s")
        assert [one.key for one in store.units()] == ["k0"]


@pytest.mark.parametrize("form", FORMATS)
def test_units_and_samples_are_exported(tmp_path: Path, form: str) -> None:
    import pandas

    paths = export([unit("k0", text="a\n,b"), unit("k1", method="other")], tmp_path / "out", form)
    assert [path.name for path in paths] == [f"units.{form}", f"samples.{form}"]
    read = {"parquet": pandas.read_parquet, "csv": pandas.read_csv, "json": pandas.read_json}[form]
    units, samples = (read(path) for path in paths)
    assert list(units["spec.method.name"]) == ["dense", "other"]
    assert samples["text"][0] == "a\n,b"
    assert samples["itl_ms"][0] == "[1.0, 1.0]"
    assert list(samples["ttft_ms"]) == [5.0, 5.0]


def test_an_export_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write the export into"):
        export([unit()], tmp_path / "file" / "out", "csv")
    with pytest.raises(InputError, match="unknown export format 'xls'; known: parquet, csv, json"):
        export([unit()], tmp_path, "xls")


def test_a_finished_run_comes_back_whole_or_not_at_all(store: Store) -> None:
    units = (unit("k0"), unit("k1", method="other"))
    store.add_run("r", units, ["left out"])
    assert store.run("r") == Run(units, ("left out",))
    assert store.run("s") is None
    store._connection.execute("DELETE FROM units WHERE key = 'k1'")
    assert store.run("r") is None


def test_a_run_and_its_units_are_one_transaction(store: Store) -> None:
    store._connection.execute("CREATE TRIGGER no BEFORE INSERT ON runs BEGIN SELECT RAISE(ABORT, 'x'); END")
    with pytest.raises(InputError):
        store.add_run("r", [unit("k0")], [])
    assert store.units() == []


def test_a_store_from_before_sweeps_and_validations_gets_their_tables(store: Store) -> None:
    for table in ("runs", "validations", "documents"):
        store._connection.execute(f"DROP TABLE {table}")
    with Store(store.path) as opened:
        opened.add_run("r", [unit("k0")], [])
        opened.add_validation(validation())
        assert opened.documents("tuning") == {}
    assert store.run("r") is not None
    assert store.validations(MACHINE) == [validation()]


def test_validations_of_a_machine_come_back_in_order(store: Store) -> None:
    first, second = validation(), validation(noise=0.5)
    for run in (first, second, first.model_copy(update={"machine_id": "other"})):
        store.add_validation(run)
    assert store.validations(MACHINE) == [first, second]
    assert store.validations("nowhere") == []


WRITERS, EACH = 4, 10
_WRITE = (
    "import sys; from pathlib import Path; from suite.harness.store import Store\n"
    "from tests.harness.support import unit\n"
    f"for i in range({EACH}):\n"
    "    with Store(Path(sys.argv[1])) as store: store.add_units([unit(f'{sys.argv[2]}-{i}', text='x' * 50_000)], 's')"
)


def test_several_writers_lose_no_unit(tmp_path: Path) -> None:
    path = tmp_path / "shared.sqlite"
    root = Path(__file__).resolve().parents[2]
    writers = [
        subprocess.Popen([sys.executable, "-c", _WRITE, str(path), str(name)], cwd=root) for name in range(WRITERS)
    ]
    assert [writer.wait() for writer in writers] == [0] * WRITERS
    with Store(path) as store:
        assert {one.key for one in store.units()} == {f"{name}-{i}" for name in range(WRITERS) for i in range(EACH)}
        assert store._connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
