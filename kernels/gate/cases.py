"""The contract and the realistic shapes of gate."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from kernels.contract import Case, Outputs, Race, SpeedCase, Trial, poisoned, strided
from kernels.gate import gate, reference
from kernels.gate.cost import gate_cost


def gate_case(rows: int, intermediate: int, activation: str = "silu", size: float = 1.0) -> Case:
    def make(dtype: torch.dtype) -> Trial:
        given = (size * torch.randn(rows, 2 * intermediate)).to(dtype)

        def run() -> Outputs:
            return {"y": gate(strided(given), activation, out=strided(poisoned(rows, intermediate, dtype=dtype)))}

        return Trial(run, lambda: {"y": reference.gate(given.double(), activation)})

    large = "-large" if size > 1 else ""
    return Case("gate", f"{rows}x{intermediate}-{activation}{large}", make)


def guarded_calls(guarded: Callable[..., Tensor], dtype: torch.dtype) -> None:
    """33 results: two whole vectors and one more, the last of memory."""
    gate(guarded(3, 66, dtype=dtype), "silu", out=guarded(3, 33, dtype=dtype))


def gate_race(rows: int, intermediate: int, dtype: torch.dtype) -> Race:
    """A piece of a prompt behind the first projection of its feed-forward network."""
    gate_up = torch.randn(rows, 2 * intermediate).to(dtype)
    out = gate_up.new_empty(rows, intermediate)

    def peer() -> Tensor:
        gated, up = gate_up.chunk(2, dim=-1)
        return torch.mul(F.silu(gated), up, out=out)

    cost = gate_cost(rows, intermediate, dtype.itemsize)
    return Race(lambda: gate(gate_up, "silu", out=out), cost, {"torch silu, mul": peer})


CASES = [
    gate_case(1, 1536),
    gate_case(3, 63),
    gate_case(200, 100),
    gate_case(7, 100, "gelu_tanh"),
    gate_case(4, 1025, "gelu_tanh"),
    gate_case(5, 33, size=100),
    gate_case(5, 33, "gelu_tanh", size=100),
]
TEAM_CASES = [gate_case(300, 577)]
SMALL_CASES = [gate_case(2, 63), gate_case(3, 100, "gelu_tanh")]
SPEED_CASES = [
    SpeedCase("gate", "512x1536", lambda dtype: gate_race(512, 1536, dtype)),
    SpeedCase("gate", "8192x1536", lambda dtype: gate_race(8192, 1536, dtype)),
]
