"""Backends of the kernels, as a fixture.

The Triton kernels run where there is a GPU (`-m gpu`), and in a process started with TRITON_INTERPRET=1, which
interprets them on the CPU and tests nothing else.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator

import pytest
import torch

from kernels import arguments, build
from kernels.flash_decode import _flash_decode
from kernels.gemv import _gated, _gemv
from kernels.rms_norm import _rms_norm
from kernels.rope import _rope

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
GPU = pytest.param("triton", marks=pytest.mark.gpu)
FUNCTIONS = (_gemv, _gated, _rms_norm, _rope, _flash_decode)


def forget() -> None:
    """Makes every op look its C functions up again."""
    build.load.cache_clear()
    for functions in FUNCTIONS:
        functions.clear()


def use(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve the kernels from `cpu` (this machine's best), `portable` (no AVX-512), the `reference` or `triton`."""
    forget()
    if name == "triton" and INTERPRETED:
        monkeypatch.setattr(arguments, "on_gpu", lambda x: True)
        monkeypatch.setattr(build, "load", lambda op: None)
        return
    if name == "triton":
        if not torch.cuda.is_available():
            pytest.skip("no GPU")
        torch.set_default_device("cuda")
        return
    if name == "reference":
        monkeypatch.setattr(build, "load", lambda op: None)
        return
    if shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    if name == "portable":
        if platform.machine() != "x86_64":
            pytest.skip("the native kernels are the portable ones here")
        monkeypatch.setattr(build, "MARCH", "x86-64-v3")
    assert all(functions[key] is not None for functions in FUNCTIONS for key in functions.names)


@pytest.fixture(params=["triton"] if INTERPRETED else ["cpu", "portable", "reference", GPU])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    use(request.param, monkeypatch)
    yield request.param
    torch.set_default_device(None)
    monkeypatch.undo()
    forget()


@pytest.fixture(autouse=True)
def _seeded_on_one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
