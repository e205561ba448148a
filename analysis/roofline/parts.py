"""The work of what a validation times: a pass, or one class of its operators; and the least time it can take here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from analysis.roofline.ceilings import Ceilings
from analysis.roofline.model import chunked_prefill, forward, verify
from analysis.roofline.operators import Operator, Precision
from analysis.roofline.shape import ModelShape
from suite.harness.measurement import PassTimes

OperatorClass = Literal["linear", "attention", "elementwise", "head"]
CLASSES: tuple[OperatorClass, ...] = get_args(OperatorClass)
Level = Literal["compute", "memory", "cache"]
"""What bounds an operator: its FLOPs, its weights, keys and values, or its activations, which a cache may hold."""

_ELEMENTWISE = ("embedding", "rms_norm", "residual_rms_norm", "rope", "kv_append", "swiglu", "activation")
_CLASS_OF: dict[str, OperatorClass] = {"lm_head": "head", "attention": "attention"}
_CLASS_OF |= dict.fromkeys(_ELEMENTWISE, "elementwise")


def class_of(operator: Operator) -> OperatorClass:
    """Every matrix product but the head's is "linear"."""
    return _CLASS_OF.get(operator.name, "linear")


def pass_operators(shape: ModelShape, precision: Precision, times: PassTimes) -> list[Operator]:
    """All operators of the pass, or of all passes of the prompt, that a record was timed in."""
    batch, tokens, new = times.batch, times.tokens, times.new
    if times.phase == "decode":
        return verify(shape, precision, batch=batch, context=tokens - new + 1, drafted=new - 1)
    if times.part == "pass":
        return chunked_prefill(shape, precision, batch=batch, tokens=tokens, chunk=new)
    return forward(shape, precision, batch=batch, new=new, prefix=tokens - new)


def part_operators(shape: ModelShape, precision: Precision, times: PassTimes) -> list[Operator]:
    """Those of them that ran."""
    found = pass_operators(shape, precision, times)
    return [one for one in found if times.part in ("pass", class_of(one))]


@dataclass(frozen=True)
class Bound:
    """The least seconds of some operators, one after the other, by what bounds each of them."""

    compute: float = 0.0
    memory: float = 0.0
    cache: float = 0.0

    @property
    def seconds(self) -> float:
        """Of all of them."""
        return self.compute + self.memory + self.cache

    @property
    def level(self) -> Level:
        """What bounds the largest part of the time."""
        times: dict[Level, float] = {"compute": self.compute, "memory": self.memory, "cache": self.cache}
        return max(times, key=lambda level: times[level])


def bound(
    operators: Sequence[Operator], resident_bytes: float, ceilings: Ceilings, dtype: str, threads: int
) -> Bound | None:
    """Sum of max(FLOPs / peak, weights and KV / bandwidth, activations / bandwidth); None where a ceiling is missing.

    Weights, keys and values come from wherever a pass's `resident_bytes` of them fit, activations from wherever those
    of one call fit. Launches are left out, as a fused pass has none.
    """
    held = ceilings.machine(dtype, threads, resident_bytes)
    if held is None:
        return None
    found = dict.fromkeys(get_args(Level), 0.0)
    for one in operators:
        near = ceilings.read(threads, float(one.activation_bytes) / max(1.0, float(one.calls)))
        assert near is not None  # as `held` is not
        times: dict[Level, float] = {
            "compute": float(one.flops) / held.flops_per_s,
            "memory": float(one.weight_bytes + one.kv_bytes) / held.bytes_per_s,
            "cache": float(one.activation_bytes) / (near.value * 1e9),
        }
        level = max(times, key=lambda name: times[name])
        found[level] += times[level]
    return Bound(**found)


def resident(operators: Iterable[Operator]) -> float:
    """Bytes of weights, keys and values that a pass reads or writes."""
    return float(sum(one.weight_bytes + one.kv_bytes for one in operators))
