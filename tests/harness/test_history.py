"""The file of the nights loses nothing that was finished: kill, full disk, torn and foreign lines, several writers."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from suite.errors import InputError
from suite.harness.history import History, Observation, Turn

ROOT = Path(__file__).resolve().parents[2]


def _line(night: str = "n0", key: str = "k0", label: str = "") -> Observation:
    return Observation(
        night=night, at=night + key, run="r", question=key, place="p", label=label, status="ok", key=key
    )  # fmt: skip


def _turn(name: str = "r", at: str = "n0") -> Turn:
    return Turn(night="n0", at=at, what="run", name=name, seconds=1.5, finished=True)


@pytest.fixture
def history(tmp_path: Path) -> History:
    return History(tmp_path / "deep" / "nightly.jsonl")


def test_lines_come_back_in_the_order_of_time(history: History) -> None:
    assert history.read() == []
    history.append([_line("n1"), _turn(at="n2")])
    history.append([_line("n0")])
    assert history.read() == [_line("n0"), _line("n1"), _turn(at="n2")]


@pytest.mark.parametrize("cut", [1, 40, 200])
def test_a_torn_line_costs_itself_only(history: History, cut: int) -> None:
    history.append([_line("n0"), _line("n1")])
    history.path.write_bytes(history.path.read_bytes()[:-cut])
    history.append([_line("n2")])
    assert history.read() == [_line("n0"), _line("n2")] or cut == 1
    assert history.skipped == (0 if cut == 1 else 1)


def test_foreign_lines_are_counted_and_left_out(history: History) -> None:
    history.append([_line("n0")])
    with history.path.open("ab") as file:
        file.write(b'<<<<<<< HEAD\n{"kind": "unit"}\n\xff\xfe\n[]\n')
    history.append([_line("n1")])
    assert history.read() == [_line("n0"), _line("n1")]
    assert history.skipped == 4


def test_two_copies_put_together_are_one_history(history: History) -> None:
    history.append([_line("n0"), _line("n1")])
    history.path.write_bytes(2 * history.path.read_bytes())
    assert history.read() == [_line("n0"), _line("n1")]


@contextmanager
def _file_size_limit(limit: int) -> Iterator[None]:
    """No file of this process may grow beyond it: to the writer the disk is full."""
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, ignored)


def test_a_full_disk_is_one_sentence_and_leaves_what_was_there_whole(history: History) -> None:
    history.append([_line("n0")])
    before = history.path.read_bytes()
    with (
        _file_size_limit(len(before) + 500),
        pytest.raises(InputError, match=r"could not be written .* free some space"),
    ):
        history.append([_line("n1", label="x" * 10_000)])
    assert history.path.read_bytes() == before
    history.append([_line("n2")])
    assert history.read() == [_line("n0"), _line("n2")]


WRITERS, LINES = 4, 25
_WRITE = (
    "import sys; from pathlib import Path; from tests.harness.test_history import History, _line\n"
    "for i in range({lines}): History(Path(sys.argv[1])).append([_line('n' + sys.argv[2], f'k{{i}}', 'x' * 20_000)])"
)


def _writer(history: History, name: int, lines: int) -> subprocess.Popen[bytes]:
    code = _WRITE.format(lines=lines)
    return subprocess.Popen([sys.executable, "-c", code, str(history.path), str(name)], cwd=ROOT)


def test_several_writers_lose_no_line(history: History) -> None:
    writers = [_writer(history, name, LINES) for name in range(WRITERS)]
    assert [writer.wait() for writer in writers] == [0] * WRITERS
    assert len(history.read()) == WRITERS * LINES
    assert history.skipped == 0


def test_a_killed_writer_loses_the_line_it_was_in_at_most(history: History) -> None:
    writer = _writer(history, 0, 100_000)
    while not history.path.exists() or history.path.stat().st_size < 500_000:
        assert writer.poll() is None
    whole = history.path.read_bytes().count(b"\n")
    writer.kill()
    writer.wait()
    history.append([_line("after")])
    lines = history.read()
    assert len(lines) > whole
    assert history.skipped <= 1
    assert lines[0].night == "after"
