"""What the analytic roofline is asked for: a table for `suite roofline`, and the modelled work of a counting pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import Any

from analysis.hardware import Dtype, Hardware
from analysis.roofline.model import (
    DENSE,
    Machine,
    ModelShape,
    OperatorTime,
    Selection,
    decode,
    forward,
    operator_times,
    prefill,
    total_bytes,
    total_flops,
)
from analysis.roofline.operators import Precision
from suite.errors import InputError
from suite.harness.measurement import KVSample, Phase


def datasheet_machine(hardware: Hardware, precision: Precision, clock_ghz: float | None = None) -> Machine:
    """The theoretical ceilings of a device for operands of this precision; launches are not on a datasheet.

    Operands of 8 bits need both weights and activations that narrow: weight-only quantisation computes in bf16.
    """
    dtype = _compute_dtype(hardware, max(precision.weight, precision.activation))
    peak = hardware.peak_tflops(dtype, clock_ghz)
    if peak is None:
        need = "give its clock in GHz" if hardware.cores else "choose another device or other bits"
        raise InputError(f"{hardware.name} lists no {dtype} rate; {need}.")
    return Machine(f"{hardware.title}, {dtype}", peak * 1e12, hardware.memory_gb_per_s * 1e9)


def _compute_dtype(hardware: Hardware, operand_bytes: float) -> Dtype:
    if operand_bytes > 2:
        return "fp32"
    if operand_bytes > 1:
        return "bf16"
    return "fp8" if hardware.fp8_tflops is not None else "int8"


def predict(
    shape: ModelShape, machine: Machine, precision: Precision, *, batch: int, seqlen: int
) -> dict[Phase, list[OperatorTime]]:
    """Prefill of `seqlen` tokens, and one decode step that attends to `seqlen` tokens, on one machine."""
    return {
        "prefill": operator_times(prefill(shape, precision, batch=batch, tokens=seqlen), machine),
        "decode": operator_times(decode(shape, precision, batch=batch, context=seqlen), machine),
    }


def prediction_rows(times: Iterable[OperatorTime]) -> list[dict[str, Any]]:
    """One row per operator for a table or JSON; times in milliseconds."""
    return [
        {
            "operator": time.operator.name,
            "calls": time.operator.calls,
            "flops": time.operator.flops,
            "bytes": time.operator.bytes,
            "intensity": time.operator.intensity,
            "bound": time.bound,
            "compute_ms": 1e3 * time.compute_s,
            "memory_ms": 1e3 * time.memory_s,
            "launch_ms": 1e3 * time.launch_s,
            "ms": 1e3 * time.seconds,
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
        is_decode = phase == "decode"
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
                selection=_selection(kv) if is_decode else DENSE,
            )
        ]
        return total_flops(operators), total_bytes(operators)

    return cost


def _selection(kv: Sequence[KVSample]) -> Selection:
    """What the counted requests read on average: a share of the keys, and the whole index at every step."""
    if not kv:
        return DENSE
    return Selection(
        kept=fmean(sample.selected_retention for sample in kv), index_bytes=fmean(sample.index_bytes for sample in kv)
    )


def _ends_prompt(steps: Steps, index: int) -> bool:
    """The last pass of a chunked prefill: the next one, if any, starts from an empty cache."""
    return index + 1 == len(steps) or steps[index + 1][0] == steps[index + 1][1]
