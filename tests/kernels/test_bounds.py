"""No kernel touches memory behind its inputs, which poison cannot show where the value read is thrown away."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs mprotect")
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_nothing_behind_the_last_element_is_touched() -> None:
    command = [sys.executable, "-m", "tests.kernels.guarded_memory"]
    finished = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert finished.returncode == 0, f"exit status {finished.returncode}: {finished.stderr[-2000:]}"
