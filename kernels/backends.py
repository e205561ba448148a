"""Which backend serves the kernels: chosen by what the machine has, or forced for a check."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from kernels import arguments, build

BACKENDS = (*build.LEVELS, "reference", "triton")
"""C++ for three instruction sets, the naive reference, and the Triton kernels (interpreted if there is no GPU)."""


@contextmanager
def serving(backend: str) -> Iterator[None]:
    """Serve every kernel from one backend inside the block.

    "triton" on a machine without a GPU needs a process started with TRITON_INTERPRET=1.
    """
    before = build.forced, arguments.triton_serves_cpu
    build.forced = backend if backend in build.LEVELS else "off"
    arguments.triton_serves_cpu = backend == "triton"
    build.forget()
    try:
        yield
    finally:
        build.forced, arguments.triton_serves_cpu = before
        build.forget()
