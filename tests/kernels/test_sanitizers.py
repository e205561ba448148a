"""The C++ kernels under the address and undefined-behaviour sanitizers, over their whole contract."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from kernels import build

ROOT = Path(__file__).parents[2]
COMPILER = shutil.which("g++")

OUT_OF_BOUNDS = """
#include <cstdint>
extern "C" void broken(const float *x, int64_t n, float *out) { *out = x[n]; }
"""
CALL_IT = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
size, x, out = ctypes.c_int64(64), (ctypes.c_float * 64)(), (ctypes.c_float * 64)()
library.broken(x, size, out)
"""


def runtime() -> str:
    """The sanitizer's library, which has to be loaded before everything else; empty if the compiler has none."""
    if COMPILER is None:
        return ""
    found = subprocess.run([COMPILER, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    path = Path(found.stdout.strip())
    return str(path.resolve()) if path.is_absolute() else ""


def sanitized(*command: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "LD_PRELOAD": runtime(),
        "ASAN_OPTIONS": "detect_leaks=0",
        "PYTHONMALLOC": "malloc",  # else small objects share blocks that the sanitizer takes for one
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "SUITE_KERNEL_SANITIZE": "1",
    }
    return subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )


needs_sanitizers = pytest.mark.skipif(not runtime(), reason="the compiler has no address sanitizer")


LONGEST = "decode_layer"
"""Two minutes of compiling; its parts are those of other operations, and stand in those."""
Checks = dict[str, "Future[subprocess.CompletedProcess[str]]"]


@pytest.fixture(scope="module")
def checks() -> Iterator[Checks]:
    """The contract of every op but the longest, one process for each, as many at a time as there are cores."""
    pool = ThreadPoolExecutor(os.cpu_count())
    yield {op: pool.submit(checked, op) for op in build.OPS if op != LONGEST}
    pool.shutdown(cancel_futures=True)


def checked(op: str) -> subprocess.CompletedProcess[str]:
    level = build.level() if build.level() in ("amx", "avx512") else "portable"
    return sanitized("-m", "kernels.check", level, op)


@needs_sanitizers
@pytest.mark.parametrize(
    "op", [pytest.param(op, marks=[pytest.mark.slow] if op == LONGEST else []) for op in build.OPS]
)
def test_the_contract_holds_under_the_sanitizers(op: str, checks: Checks) -> None:
    done = checks[op].result() if op in checks else checked(op)
    assert done.returncode == 0, done.stderr[-3000:]
    findings = [json.loads(line) for line in done.stdout.splitlines()]
    assert findings
    assert not [finding for finding in findings if finding["complaints"]]


@needs_sanitizers
def test_an_out_of_bounds_read_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUITE_KERNEL_SANITIZE", "1")
    source, library = tmp_path / "broken.cpp", tmp_path / "broken.so"
    source.write_text(OUT_OF_BOUNDS)
    build._compile(source, library)
    done = sanitized("-c", CALL_IT, str(library))
    assert done.returncode != 0
    assert "AddressSanitizer" in done.stderr
