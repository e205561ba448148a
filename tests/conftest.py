"""Pins the OpenMP threads before any test imports torch, and gives every test a results store of its own."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest

from suite.harness import threads

if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ["OMP_PROC_BIND"] = "false"  # pinned, all workers would share the first core
threads.pin()
hypothesis.settings.register_profile("suite", deadline=None, max_examples=40)  # a first call may build a kernel
hypothesis.settings.load_profile("suite")

from suite.harness.store import STORE_VARIABLE, Store  # noqa: E402 - pinning comes before everything else


@pytest.fixture(autouse=True)
def _own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test writes into the results of the person who runs it."""
    monkeypatch.setenv(STORE_VARIABLE, str(tmp_path / "suite.sqlite"))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    """An empty results store."""
    with Store(tmp_path / "suite.sqlite") as opened:
        yield opened


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    root = hasattr(os, "geteuid") and os.geteuid() == 0
    if not root or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small file system needs the right to mount one")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Tests check values, not speed: one thread needs no partner that may be waiting for a core."""
    import torch

    torch.set_num_threads(1)
