"""Runs a command and ends its whole process group when the command ends, or when the parent is gone.

`python -m suite.engines.guard COMMAND ...`: standard input is a pipe that the parent holds open and never writes to;
the kernel closes it however the parent ends, also by kill -9. Standard library only: any interpreter can run it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading


def main(command: list[str]) -> None:
    """Leads a session of its own, so that the group holds everything the command starts."""
    if (given := os.environ.get("SUITE_CPUS")) and hasattr(
        os, "sched_setaffinity"
    ):  # the parent's pinned thread passed only its own core on
        os.sched_setaffinity(0, {int(cpu) for cpu in given.split(",")})
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the group is asked first; the guard stays until the command is gone
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, close_fds=False, restore_signals=True,
                             preexec_fn=_default_signals)  # fmt: skip
    threading.Thread(target=_watch_parent, daemon=True).start()
    code = child.wait()
    print(f"[guard] the engine ended with code {code}", file=sys.stderr, flush=True)
    _end_group()


def _default_signals() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # an ignored signal would stay ignored in the command


def _watch_parent() -> None:
    while sys.stdin.buffer.read(1):
        pass
    _end_group()


def _end_group() -> None:
    os.killpg(0, signal.SIGKILL)  # this process is one of the group


if __name__ == "__main__":
    main(sys.argv[1:])
