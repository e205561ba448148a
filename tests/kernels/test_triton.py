"""The Triton kernels without a GPU: interpreted for correctness, compiled for the machine code."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kernels.build import OPS
from kernels.jit import Variant
from tests.kernels.conftest import INTERPRETED

GPU_OPS = [op for op in OPS if importlib.util.find_spec(f"kernels.{op}.triton")]
VARIANTS = [variant for op in GPU_OPS for variant in importlib.import_module(f"kernels.{op}.triton").variants()]
pytestmark = pytest.mark.skipif(INTERPRETED, reason="this is the interpreting process")


def test_interpreted_kernels_pass_the_contract_suite() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "tests/kernels/test_contract.py", "-k", "agrees and triton"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    finished = subprocess.run(
        command, cwd=Path(__file__).parents[2], env=environment, capture_output=True, text=True, check=False
    )
    assert finished.returncode == 0, finished.stdout[-4000:]
    assert " passed" in finished.stdout


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.name)
def test_compiles_ahead_of_time(variant: Variant) -> None:
    source = ASTSource(variant.kernel, variant.signature, variant.constants)
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32))
    multiplies_tiles = variant.constants.get("ROWS", variant.constants.get("HEADS", 0)) == 16
    assert ("mma" in compiled.asm["ptx"]) == multiplies_tiles
