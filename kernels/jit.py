"""`triton.jit` with a type. Only the `triton.py` of an op imports this, and those only a call on a GPU imports."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import triton
import triton.language as tl


def jit(function: Callable[..., Any]) -> Any:
    """The function as a Triton kernel, launched as `kernel[grid](...)`."""
    return triton.jit(function)


INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@jit
def dot(a: tl.tensor, b: tl.tensor, sums: tl.tensor) -> tl.tensor:
    """sums + a b in fp32. The interpreter of Triton 3.9 multiplies bf16 as if its bits were integers, hence widened."""
    if INTERPRETED:
        a, b = a.to(tl.float32), b.to(tl.float32)
    return tl.dot(a, b, sums, input_precision="ieee")


@dataclass(frozen=True)
class Variant:
    """A kernel with argument types, constants and launch options, as ahead-of-time compilation wants it."""

    name: str
    kernel: Any
    signature: dict[str, str]
    constants: dict[str, int]
    num_warps: int = 4
    num_stages: int = 3


def variant(
    name: str, kernel: Any, types: str, *, num_warps: int = 4, num_stages: int = 3, **constants: int
) -> Variant:
    """Types are given in the order of the arguments; constants by name. E.g. `"*bf16 *fp32 i32"`."""
    arguments = [argument for argument in kernel.arg_names if argument not in constants]
    signature = dict(zip(arguments, types.split(), strict=True)) | dict.fromkeys(constants, "constexpr")
    return Variant(name, kernel, signature, constants, num_warps, num_stages)
