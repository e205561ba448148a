"""Runs the contract of kernels on one backend: `python -m kernels.check BACKEND OP ...` prints one JSON line per case.

A process of its own is needed for the interpreter of the Triton kernels (TRITON_INTERPRET=1 before triton is imported).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import torch

from kernels import build
from kernels.backends import BACKENDS, serving
from kernels.contract import INTERPRETER_TOLERANCE, TOLERANCE, case_book, verdict

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Finding:
    """One case on one backend; it is green when there are no complaints."""

    op: str
    case: str
    dtype: str
    backend: str
    complaints: list[str]


def check(op: str, backend: str) -> Iterator[Finding]:
    """The contract of one op, case by case, in fp32 and bf16."""
    interpreted = backend == "triton" and not torch.cuda.is_available()
    book = case_book(op)
    if backend in build.LEVELS:
        with serving(backend):
            build.build(op)  # raises where it does not compile: the reference, which would serve, agrees with itself
    for case in book.small if interpreted else [*book.cases, *book.team]:
        for name, dtype in DTYPES.items():
            with serving(backend):
                found = verdict(case, dtype, INTERPRETER_TOLERANCE if interpreted else TOLERANCE)
            yield Finding(op, case.name, name, backend, found)


def main(arguments: Sequence[str]) -> None:
    """Checks the ops named behind the backend."""
    backend, *ops = arguments
    if backend not in BACKENDS:
        print(f"there is no backend {backend!r}; known: {', '.join(BACKENDS)}", file=sys.stderr)
        sys.exit(2)
    if backend == "triton" and torch.cuda.is_available():
        torch.set_default_device("cuda")
    for op in ops:
        for finding in check(op, backend):
            print(json.dumps(asdict(finding)), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
