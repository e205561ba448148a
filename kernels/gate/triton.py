"""The gate of a feed-forward network on the GPU: one program per row and block of columns."""

# No `from __future__ import annotations`: Triton reads the annotations.
import triton
import triton.language as tl
from torch import Tensor

from kernels.jit import Variant, jit, variant

BLOCK = 1024


@jit
def gate_kernel(
    gate_up: tl.tensor,
    stride: tl.tensor,
    out: tl.tensor,
    out_stride: tl.tensor,
    intermediate: tl.tensor,
    SILU: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    """BLOCK results of row n."""
    n = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    valid = i < intermediate
    row = gate_up + n * stride + i
    gate = tl.load(row, valid, 0.0).to(tl.float32)
    up = tl.load(row + intermediate, valid, 0.0).to(tl.float32)
    if SILU:
        active = gate * tl.sigmoid(gate)
    else:  # gelu(x) with the tanh approximation is x sigmoid(2 t)
        active = gate * tl.sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))
    tl.store(out + n * out_stride + i, (active * up).to(out.dtype.element_ty), valid)


def gate(gate_up: Tensor, activation: str, out: Tensor) -> Tensor:
    """The contract of `kernels.gate.gate`, into `out`."""
    rows, intermediate = out.shape
    gate_kernel[(rows, triton.cdiv(intermediate, BLOCK))](
        gate_up,
        gate_up.stride(0),
        out,
        out.stride(0),
        intermediate,
        SILU=activation == "silu",
        BLOCK=BLOCK,
        num_warps=4,
    )
    return out


def variants() -> list[Variant]:
    """What ahead-of-time compilation should cover: bf16 and both activations."""
    types = "*bf16 i32 *bf16 i32 i32"
    return [
        variant("gate-silu", gate_kernel, types, SILU=1, BLOCK=BLOCK, num_warps=4),
        variant("gate-gelu", gate_kernel, types, SILU=0, BLOCK=BLOCK, num_warps=4),
    ]
