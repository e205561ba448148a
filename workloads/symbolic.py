"""Asks a process of its own whether two LaTeX answers are equal: sympy may never come back, a process can be ended.

One process serves all questions, and a new one follows when it has ended itself over a question (`latex_math`). It is
ended with this process, however that ends.
"""

from __future__ import annotations

import atexit
import json
import subprocess
import sys
import threading
from functools import lru_cache
from pathlib import Path

PROGRAM = Path(__file__).with_name("latex_math.py")  # imported, it would bring sympy into this process
LIMIT_S = 3.0
"""Of the child's own processor time, so that a busy machine changes no score."""


class Worker:
    """The process, started at the first question; it ends itself over one that needs more than `limit_s`."""

    def __init__(self, limit_s: float = LIMIT_S) -> None:
        self._limit_s = limit_s
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()

    def equal(self, a: str, b: str) -> bool | None:
        """True if both are the same mathematics; None if one cannot be read, or sympy needs longer than its limit."""
        with self._lock:
            reply = self._ask(json.dumps([a, b]))
        answer: bool | None = json.loads(reply) if reply else None
        return answer

    def close(self) -> None:
        """Ends the process; the next question starts another."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()

    def _ask(self, question: str) -> str:
        process = self._running()
        assert process.stdin is not None
        try:
            process.stdin.write(f"{question}\n")
            process.stdin.flush()
            reply = _line(process)
        except BrokenPipeError:
            reply = ""
        except BaseException:  # Ctrl-C: a late reply must not answer the next question
            self.close()
            raise
        if not reply:
            self.close()
        return reply

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None or self._process.poll() is not None:
            self.close()
            self._process = subprocess.Popen(
                [sys.executable, "-P", str(PROGRAM), str(self._limit_s)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            if not _line(self._process):
                raise RuntimeError("the process that compares answers does not start; is sympy installed?")
        return self._process


def _line(process: subprocess.Popen[str]) -> str:
    """Its next line; empty if it has ended, as it does itself: no wall clock runs here."""
    assert process.stdout is not None
    return process.stdout.readline()


_WORKER = Worker()
atexit.register(_WORKER.close)


@lru_cache(maxsize=65536)
def equal(a: str, b: str) -> bool | None:
    """`Worker.equal` of the one process all share; answers are remembered."""
    return _WORKER.equal(a, b)
