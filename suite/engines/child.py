"""One engine as a child process: a guarded process group, a log file, and an end that always comes."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import psutil

import suite
from suite.engines.base import EngineError, FaultKind

_GRACE_S = 2.0  # between asking an engine to end and ending it
_TAIL_LINES = 8
_MEMORY = re.compile(
    r"MemoryError|out of memory|OutOfMemory|cannot allocate memory|can't allocate memory|No available memory"
    r"|Available memory on node .* is less than requested memory"
    r"|failed to map segment from shared object(?!: Operation not permitted)",
    re.I,
)
_EXIT = re.compile(r"\[guard\] the engine ended with code (-?\d+)")
_ROOT = str(Path(suite.__file__).parents[1])


class Child:
    """A command in a process group of its own, which ends with this process at the latest.

    Output goes into a log file. `pass_fds` are handed on to the command.
    """

    def __init__(
        self, engine: str, command: Sequence[str], environment: Mapping[str, str], pass_fds: Sequence[int] = ()
    ) -> None:
        self._engine = engine
        self._log_named = False
        descriptor, name = tempfile.mkstemp(prefix=f"suite-{engine}-", suffix=".log")
        self.log = Path(name)
        guarded = [sys.executable, str(Path(__file__).with_name("guard.py")), *command]
        with os.fdopen(descriptor, "wb") as log:
            self._process = subprocess.Popen(
                guarded, stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, pass_fds=pass_fds,
                env={**os.environ, "PYTHONPATH": _ROOT, **environment}, start_new_session=True,
            )  # fmt: skip

    @property
    def alive(self) -> bool:
        """Whether the group's leader still runs."""
        return self._process.poll() is None

    def processes(self) -> Iterator[psutil.Process]:
        """The engine's processes, without the guard."""
        with contextlib.suppress(psutil.NoSuchProcess):
            yield from psutil.Process(self._process.pid).children(recursive=True)

    def peak_memory_bytes(self) -> int:
        """Sum over the running processes of each one's largest resident set."""
        return sum(_peak_bytes(process.pid) for process in self.processes())

    def cpu_seconds(self) -> float:
        """User and system time of the running processes."""
        return sum(_cpu_seconds(process) for process in self.processes())

    def stop(self) -> None:
        """Asks the group to end, then ends it. A log that no fault names is removed."""
        processes = list(self.processes())
        self._signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE_S)
        self.kill()
        psutil.wait_procs(processes, _GRACE_S)
        if not self._log_named:
            self.log.unlink(missing_ok=True)

    def kill(self) -> None:
        """Ends the group at once; returns when all of it is gone."""
        processes = list(self.processes())
        self._signal(signal.SIGKILL)
        self._process.wait()
        psutil.wait_procs(processes, _GRACE_S)
        if self._process.stdin is not None:
            self._process.stdin.close()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def fault(self, kind: FaultKind, detail: str) -> EngineError:
        """The fault with the end of the log. Memory is named where the log or the kernel's way of killing shows it."""
        self._log_named = True
        text = self.log.read_text(errors="replace")
        ended = _EXIT.search(text)
        if kind != "timed out" and (_MEMORY.search(text) or self._killed_for_memory(ended)):
            kind = "out of memory"
        tail = " | ".join(line.strip() for line in text.splitlines()[-_TAIL_LINES:] if line.strip())
        return EngineError(kind, self._engine, f"{detail} The log ends: {tail or '(empty)'} [whole: {self.log}]")

    @staticmethod
    def _killed_for_memory(ended: re.Match[str] | None) -> bool:
        """A SIGKILL that the kernel's own counter of memory kills does not explain is somebody's kill -9."""
        return ended is not None and int(ended[1]) == -signal.SIGKILL and _memory_kills() > _KILLS_AT_START


def _memory_kills() -> int:
    """Processes the kernel has killed for memory since it started; 0 where it does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


_KILLS_AT_START = _memory_kills()


def _cpu_seconds(process: psutil.Process) -> float:
    with contextlib.suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        return float(times.user + times.system)
    return 0.0


def _peak_bytes(pid: int) -> int:
    """VmHWM; 0 for a process that has just ended."""
    with contextlib.suppress(OSError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
    return 0
