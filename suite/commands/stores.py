"""Which results file a command works on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from suite.harness import machine
from suite.harness.store import Store, default_path


def open_store(path: Path | None) -> Store:
    """The store that `--store` names, else that of $SUITE_STORE, else results/suite.sqlite in this directory."""
    return Store(path or default_path())


def keep_document(path: Path | None, kind: str, name: str, document: Mapping[str, Any]) -> None:
    """Writes what a command found into the store, for the report."""
    with open_store(path) as store:
        store.add_document(kind, name, machine.machine_id(), document)
        store.add_machine(machine.machine_id(), json.dumps(machine.fingerprint()))
