"""The gate of a feed-forward network over many rows: activation(gate) * up in one pass (Shazeer, arXiv 2002.05202)."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import arguments, counting
from kernels.build import Functions
from kernels.gate import reference
from kernels.gate.cost import gate_cost

_gate = Functions("gate", "pipiiiii", {torch.float32: "gate_f32", torch.bfloat16: "gate_bf16"})


def gate(gate_up: Tensor, activation: str, *, out: Tensor | None = None) -> Tensor:
    """gate_up [N, 2 I], a row's gates first -> activation(gate) * up [N, I], rounded once.

    `activation`: "silu" or "gelu_tanh". Rows may be strided.
    """
    rows, intermediate = gate_up.shape[0], gate_up.shape[1] // 2
    if out is None:
        out = gate_up.new_empty(rows, intermediate)
    if counting.active is not None:
        counting.record("gate", gate_cost(rows, intermediate, gate_up.element_size()))
    function = _gate[gate_up.dtype] if gate_up.is_cpu else None
    matches = gate_up.stride(1) == out.stride(1) == 1
    if function is None or not matches:
        if matches and arguments.on_gpu(gate_up):
            from kernels.gate import triton as gpu

            return gpu.gate(gate_up, activation, out)
        return out.copy_(reference.gate(gate_up, activation))
    function(
        gate_up.data_ptr(),
        gate_up.stride(0),
        out.data_ptr(),
        out.stride(0),
        arguments.ACTIVATIONS.index(activation),
        rows,
        intermediate,
        torch.get_num_threads(),
    )
    return out
