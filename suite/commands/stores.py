"""Which results file a command works on."""

from __future__ import annotations

from pathlib import Path

from suite.harness.store import Store, default_path


def open_store(path: Path | None) -> Store:
    """The store that `--store` names, else that of $SUITE_STORE, else results/suite.sqlite in this directory."""
    return Store(path or default_path())
