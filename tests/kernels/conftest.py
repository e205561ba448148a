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

from kernels import build
from kernels.backends import serving

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
GPU = pytest.param("triton", marks=pytest.mark.gpu)


@pytest.fixture(params=["triton"] if INTERPRETED else [*build.LEVELS, "reference", GPU])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    name = request.param
    if name in build.LEVELS and shutil.which("g++") is None:
        pytest.skip("no C++ compiler")
    if name in build.LEVELS and not runs_here(name):
        pytest.skip(f"this processor has no {name}")
    if name == "triton" and not INTERPRETED:
        if not torch.cuda.is_available():
            pytest.skip("no GPU")
        torch.set_default_device("cuda")
    with serving(name):
        assert name not in build.LEVELS or all(build.load(op) is not None for op in build.OPS)
        yield name
    torch.set_default_device(None)


def runs_here(level: str) -> bool:
    best = build.level()
    if platform.machine() not in ("x86_64", "AMD64"):
        return level == best
    return list(build.LEVELS).index(level) >= list(build.LEVELS).index(best)


@pytest.fixture(autouse=True)
def _seeded_on_one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
