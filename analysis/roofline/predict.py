"""Around the analytic roofline: a datasheet's machine, rows of a table, the modelled work of a counting pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import Any

from analysis.hardware import Dtype, Hardware
from analysis.roofline.model import (
    Execution,
    Machine,
    OperatorTime,
    forward,
    total_bytes,
    total_flops,
)
from analysis.roofline.operators import Precision
from analysis.roofline.shape import ModelShape
from suite.cost import DENSE, MethodCost
from suite.errors import InputError
from suite.harness.measurement import KVSample, Phase


def datasheet_machine(hardware: Hardware, precision: Precision, clock_ghz: float | None = None) -> Machine:
    """The theoretical ceilings of a device for operands of this precision; launches are not on a datasheet.

    Operands of 8 bits need both weights and activations that narrow: weight-only quantisation computes in bf16. A
    device without a rate for narrow operands widens them, and has the rate of the next wider type.
    """
    dtypes = _compute_dtypes(max(precision.weight, precision.activation))
    rates = ((dtype, hardware.peak_tflops(dtype, clock_ghz)) for dtype in dtypes)
    for dtype, peak in rates:
        if peak is not None:
            link = hardware.link_gb_per_s
            return Machine(
                f"{hardware.title}, {dtype}",
                peak * 1e12,
                hardware.memory_gb_per_s * 1e9,
                link_bytes_per_s=None if link is None else link * 1e9,
                link_latency_s=(hardware.link_latency_us or 0.0) * 1e-6,
            )
    need = "give its clock in GHz" if hardware.cores else "choose another device or other bits"
    raise InputError(f"{hardware.name} lists no {dtypes[-1]} rate; {need}.")


def _compute_dtypes(operand_bytes: float) -> tuple[Dtype, ...]:
    """Types that can multiply operands of this width, the fastest first."""
    if operand_bytes > 2:
        return ("fp32",)
    if operand_bytes > 1:
        return ("bf16",)
    eight: tuple[Dtype, ...] = ("fp8", "int8", "bf16")
    return eight if operand_bytes > 0.5 else ("fp4", "int4", *eight)


def prediction_rows(times: Iterable[OperatorTime]) -> list[dict[str, Any]]:
    """One row per operator for a table or JSON; times in milliseconds."""
    return [
        {
            "operator": time.operator.name,
            "calls": time.operator.calls,
            "flops": float(time.operator.flops),
            "bytes": float(time.operator.bytes),
            "weight_bytes": float(time.operator.weight_bytes),
            "activation_bytes": float(time.operator.activation_bytes),
            "kv_bytes": float(time.operator.kv_bytes),
            "link_bytes": float(time.operator.link_bytes),
            "intensity": float(time.operator.intensity),
            "bound": time.bound,
            "compute_ms": 1e3 * float(time.compute_s),
            "memory_ms": 1e3 * float(time.memory_s),
            "launch_ms": 1e3 * time.launch_s,
            "link_ms": 1e3 * float(time.link_s),
            "ms": 1e3 * float(time.seconds),
        }
        for time in times
    ]


Steps = Sequence[tuple[int, int]]
"""Forward passes: (new tokens, tokens in the cache after)."""


def model_cost(
    shape: ModelShape, precision: Precision
) -> Callable[[Phase, Steps, Sequence[KVSample]], tuple[float, float]]:
    """The harness's `ModelCost`: (phase, its passes, what the counted requests kept and read) -> FLOPs and bytes.

    Decode reads what the method selected, and its index; prefill is taken as dense.
    """

    def cost(phase: Phase, steps: Steps, kv: Sequence[KVSample]) -> tuple[float, float]:
        is_decode, execution = phase == "decode", Execution(method=_read(kv))
        operators = [
            operator
            for index, (new, context) in enumerate(steps)
            for operator in forward(
                shape,
                precision,
                batch=1,
                new=new,
                prefix=context - new,
                logit_rows=1 if is_decode or _ends_prompt(steps, index) else 0,
                decoding=is_decode,
                execution=execution,
            )
        ]
        return float(total_flops(operators)), float(total_bytes(operators))

    return cost


def _read(kv: Sequence[KVSample]) -> MethodCost:
    """What the counted requests read on average: a share of the keys, and the whole index at every step."""
    if not kv:
        return DENSE
    return MethodCost(
        kept=fmean(sample.selected_retention for sample in kv), index_bytes=fmean(sample.index_bytes for sample in kv)
    )


def _ends_prompt(steps: Steps, index: int) -> bool:
    """The last pass of a chunked prefill: the next one, if any, starts from an empty cache."""
    return index + 1 == len(steps) or steps[index + 1][0] == steps[index + 1][1]
