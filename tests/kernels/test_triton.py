"""The Triton kernels without a GPU: interpreted for correctness, compiled for the machine code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

from kernels.build import OPS
from kernels.compile import TARGETS, compile_variant, variants_of
from kernels.jit import Variant
from tests.kernels.conftest import INTERPRETED

VARIANTS = [(op, variant) for op in OPS for variant in variants_of(op)]
pytestmark = pytest.mark.skipif(INTERPRETED, reason="this is the interpreting process")


def test_interpreted_kernels_pass_the_contract_suite() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "tests/kernels/test_contract.py", "-k", "agrees and triton"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    finished = subprocess.run(
        command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stdout[-4000:]
    assert " passed" in finished.stdout


@pytest.mark.parametrize(("op", "variant"), VARIANTS, ids=lambda value: getattr(value, "name", value))
def test_compiles_ahead_of_time(op: str, variant: Variant) -> None:
    assert compile_variant(op, variant, "sm_90").problems == ()


@pytest.mark.slow
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(("op", "variant"), VARIANTS, ids=lambda value: getattr(value, "name", value))
def test_compiles_for_every_target(op: str, variant: Variant, target: str) -> None:
    assert compile_variant(op, variant, target).problems == ()
