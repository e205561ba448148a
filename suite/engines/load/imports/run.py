"""One run of any load generator, in the metric names of `suite load`: ms, requests/s and tokens/s."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from suite.engines.load.names import BETWEEN, FROM_ARRIVAL, FROM_SENDING
from suite.errors import InputError

Document = dict[str, Any]
Figures = dict[str, float | None]

TOTALS = {
    "completed": "completed requests",
    "failed": "failed requests",
    "lost": "lost requests",
    "duration": "duration, s",
    "total_input_tokens": "input tokens",
    "total_output_tokens": "output tokens",
    "request_throughput": "completed, requests/s",
    "request_goodput": "goodput, requests/s",
    "output_throughput": "output, tokens/s",
    "total_token_throughput": "input and output, tokens/s",
}
LATENCIES = dict((*FROM_SENDING, *FROM_ARRIVAL, *BETWEEN))
"""`_send` counts from sending, as every other tool does; without it, from the due time."""
KINDS = ("mean", "median", "p90", "p95", "p99", "p99.9")
NAMES = (*TOTALS, *(f"{kind}_{name}_ms" for name in LATENCIES for kind in KINDS))


@dataclass(frozen=True)
class Run:
    """`metrics` has every name of `NAMES`; None is what the file does not hold. `duration` is in seconds."""

    file: str
    tool: str
    model: str | None
    load: str | None
    metrics: Figures
    remarks: tuple[str, ...] = ()


class Part(BaseModel):
    """The fields that are needed of a tool's document; others are ignored, wrong types are errors."""

    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)


Kind = TypeVar("Kind", bound=Part)


def parsed(kind: type[Kind], raw: object, place: str) -> Kind:
    """The document's part, or an `InputError` that says where it is damaged."""
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"])
        raise InputError(f"{place} is damaged at {where or 'its root'}: {first['msg']}.") from error


def complete(found: Mapping[str, float | None]) -> Figures:
    """Every name of `NAMES`, with None for those not found."""
    return {name: found.get(name) for name in NAMES}


def latency(name: str, values: Mapping[str, float | None], to_ms: float = 1.0) -> Figures:
    """The statistics of one latency in milliseconds. The tools write 0 where they measured none: that is no value."""
    return {f"{kind}_{name}_ms": value * to_ms if (value := values.get(kind)) else None for kind in KINDS}
