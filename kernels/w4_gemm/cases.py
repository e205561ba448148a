"""The contract and the realistic shapes of w4_gemm."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kernels.contract import Case, Outputs, Race, SpeedCase, Trial, poisoned, strided
from kernels.w4_gemm import GROUP, dequantise, pack, reference, w4_gemm
from kernels.w4_gemm.cost import w4_gemm_cost


def random_scales(outputs: int, features: int, kind: str = "") -> Tensor:
    """fp16, one per group, of either sign; with "zeros" among them, or the "largest" and the smallest fp16 has."""
    scales = torch.randn(outputs, -(-features // GROUP)).half()
    if kind == "zeros":
        scales[::2] = 0
    elif kind == "largest":
        scales = torch.where(scales > 0, 65504.0, 2.0**-24).half()
    return scales


def w4_case(rows: int, features: int, outputs: int, scales: str = "", size: float = 1) -> Case:
    def make(dtype: torch.dtype) -> Trial:
        x = strided(size * torch.randn(rows, features).to(dtype))
        packed = pack(torch.randint(-8, 8, (outputs, features)))
        scale = random_scales(outputs, features, scales)

        def run() -> Outputs:
            return {"y": w4_gemm(x, packed, scale, out=strided(poisoned(rows, outputs, dtype=dtype)))}

        return Trial(run, lambda: {"y": reference.w4_gemm(x.double(), packed, scale)})

    flags = (f"-scales {scales}" if scales else "") + ("-large" if size > 1 else "")
    return Case("w4_gemm", f"{rows}x{features}x{outputs}{flags}", make)


def speed_case(rows: int, features: int, outputs: int) -> SpeedCase:
    def make(dtype: torch.dtype) -> Race:
        x, scales = torch.randn(rows, features).to(dtype), random_scales(outputs, features)
        packed = torch.randint(-(2**15), 2**15, (outputs, -(-features // 4)), dtype=torch.int16)
        weight = torch.full((outputs, features), 0.5, dtype=dtype)
        peers: dict[str, Callable[[], object]] = {
            "torch bf16 matmul": lambda: x @ weight.T,
            "dequantise, then matmul": lambda: x @ dequantise(packed, scales, features, dtype).T,
        }
        if x.is_cpu:
            codes = torch.randint(0, 16, (outputs, features), dtype=torch.int32)
            tiles = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 2)
            scales_and_zeros = torch.ones(features // GROUP, outputs, 2, dtype=dtype)
            peers["torch int4"] = lambda: torch.ops.aten._weight_int4pack_mm_for_cpu(x, tiles, GROUP, scales_and_zeros)
        return Race(lambda: w4_gemm(x, packed, scales), w4_gemm_cost(rows, features, outputs, x.element_size()), peers)

    return SpeedCase("w4_gemm", f"{rows} x {features} -> {outputs}", make)


def guarded_calls(guarded: Callable[..., Tensor], dtype: torch.dtype) -> None:
    """A narrow last group, alone in a row and behind whole ones."""
    for features in (65, 301):
        packed = guarded(19, -(-features // 4), dtype=torch.int16).copy_(pack(torch.randint(-8, 8, (19, features))))
        scales = guarded(19, -(-features // GROUP), dtype=torch.float16)
        for rows in (1, 3, 20):
            x, out = guarded(rows, features, dtype=dtype), guarded(rows, 19, dtype=dtype)
            assert w4_gemm(x, packed, scales, out=out).isfinite().all()


CASES = [
    *(w4_case(*shape) for shape in ((1, 576, 576), (1, 63, 49), (1, 500, 17), (1, 1, 1), (1, 2049, 20))),
    *(w4_case(rows, 500, 40) for rows in (2, 3, 4, 5, 7, 8, 9, 16, 17, 33, 49)),
    *(w4_case(63, features, 47) for features in (127, 128, 129, 300)),
    *(w4_case(rows, 384, 30) for rows in (64, 65, 100)),
    *(w4_case(rows, 70_000, 3) for rows in (1, 5)),
    *(w4_case(rows, 300, 33, scales) for rows in (1, 5, 20) for scales in ("zeros", "largest")),
    *(w4_case(rows, 100, 63, size=1e15) for rows in (3, 20)),
    w4_case(0, 100, 5),
]
TEAM_CASES = [w4_case(1, 577, 577), w4_case(3, 300, 300), w4_case(33, 600, 200)]
SMALL_CASES = [
    w4_case(1, 300, 17),
    w4_case(3, 65, 20),
    w4_case(5, 128, 70),
    w4_case(40, 129, 5),
    w4_case(1, 300, 5, "zeros"),
]
SPEED_CASES = [speed_case(rows, 4096, 4096) for rows in (1, 4, 16, 64)]
