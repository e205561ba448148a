"""`python -m suite`: pins the threads before torch can be imported, then runs the command line."""

from __future__ import annotations

import sys

from suite.harness import threads


def main() -> int:
    """Runs the program and returns its exit code (DESIGN section 4)."""
    threads.pin()
    from suite.cli import run

    return run(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
