"""Ahead-of-time compilation: what is read from the machine code, the arithmetic of occupancy, and what is refused."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("triton")

import triton.language as tl

from kernels.compile import TARGETS, amd_usage, compile_variant, nvidia_usage, occupancy, variants_of
from kernels.jit import jit, variant
from suite.cli import run
from tests.kernels.conftest import INTERPRETED

pytestmark = pytest.mark.skipif(INTERPRETED, reason="this is the interpreting process")

PTXAS = """
ptxas info    : Compiling entry function 'k' for 'sm_90a'
ptxas info    : Function properties for k
    16 bytes stack frame, 24 bytes spill stores, 40 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 16 bytes cumulative stack size
"""
AMD = """
    .private_segment_fixed_size: 8
    .sgpr_spill_count: 2
    .vgpr_count:     96
    .vgpr_spill_count: 5
"""


@jit
def greedy_kernel(x: tl.tensor, out: tl.tensor, ROWS: tl.constexpr, COLUMNS: tl.constexpr) -> None:
    """Keeps a whole tile in registers, several times."""
    r, c = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    tile = tl.load(x + r[:, None] * COLUMNS + c[None, :])
    sums = tl.cumsum(tile, 0) * tl.sum(tile, 1)[:, None] + tl.cumsum(tile, 1) * tl.sum(tile, 0)[None, :]
    tl.store(out + r[:, None] * COLUMNS + c[None, :], sums * tile + tl.cumsum(sums, 0))


@jit
def scalar_dot_kernel(x: tl.tensor, out: tl.tensor, SIZE: tl.constexpr) -> None:
    """An exact fp32 product, which tensor cores do not have."""
    i = tl.arange(0, SIZE)
    tile = tl.load(x + i[:, None] * SIZE + i[None, :])
    tl.store(out + i[:, None] * SIZE + i[None, :], tl.dot(tile, tile, input_precision="ieee"))


def test_reports_are_read() -> None:
    assert nvidia_usage(PTXAS) == (255, 64)
    assert amd_usage(AMD) == (96, 13)


def test_occupancy_by_hand() -> None:
    sm_80, gfx942 = TARGETS["sm_80"], TARGETS["gfx942"]
    assert occupancy(sm_80, 32, 0, 128) == (1.0, "threads")
    assert occupancy(sm_80, 250, 0, 128) == (2 * 128 / 2048, "registers")  # 256 each: 65536 / (256 * 128) = 2
    assert occupancy(sm_80, 32, 81 << 10, 128) == (2 * 128 / 2048, "shared memory")
    assert occupancy(sm_80, 16, 0, 32) == (32 * 32 / 2048, "blocks")
    assert occupancy(gfx942, 128, 0, 256) == (4 * 256 / 2048, "registers")  # 512 / 128 = 4 waves of a SIMD's 8


def test_a_spill_is_a_problem() -> None:
    greedy = variant("greedy", greedy_kernel, "*fp32 *fp32", num_warps=1, ROWS=128, COLUMNS=128)
    found = compile_variant("none", greedy, "sm_90")
    assert found.spills > 0
    assert any(problem.startswith("spills") for problem in found.problems)


def test_a_product_without_tensor_cores_is_a_problem() -> None:
    found = compile_variant("none", variant("scalar", scalar_dot_kernel, "*fp32 *fp32", SIZE=32), "sm_80")
    assert (found.dot, found.tensor_core) == (True, False)
    assert found.problems == ("multiplies matrices without tensor-core instructions",)


@pytest.mark.parametrize("target", TARGETS)
def test_flash_decode_uses_tensor_cores_and_does_not_spill(target: str) -> None:
    found = compile_variant("flash_decode", variants_of("flash_decode")[0], target)
    assert found.problems == ()
    assert found.tensor_core
    assert 0 < found.registers <= 255
    assert 0 < found.occupancy <= 1


def test_the_command_prints_the_documented_fields(capsys) -> None:
    assert run(["kernels", "compile", "--op", "rms_norm", "--target", "sm_90", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["kernel"] for row in rows] == ["rms_norm-residual", "rms_norm-steering"]
    for row in rows:
        assert {"op", "kernel", "target", "registers", "spills", "shared_bytes", "tensor_core"} <= row.keys()


def test_an_unknown_target_is_one_sentence(capsys) -> None:
    assert run(["kernels", "compile", "--target", "sm_9"]) == 2
    assert "there is no target 'sm_9'; known: sm_80, sm_90, sm_100, gfx942." in capsys.readouterr().err
