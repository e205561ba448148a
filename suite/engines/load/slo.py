"""Service-level objectives: bounds on a request's latencies, given as `ttft=200ms`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from suite.errors import InputError

METRICS = ("ttft", "tpot", "e2el")
_BOUND = re.compile(r"(\w+)=(\d+(?:\.\d+)?)(ms|s)")


def parse(texts: Sequence[str]) -> dict[str, float]:
    """Bounds in milliseconds by metric; `InputError` for anything else than `ttft=200ms` or `e2el=2s`."""
    found: dict[str, float] = {}
    for text in texts:
        match = _BOUND.fullmatch(text)
        if match is None or match[1] not in METRICS:
            raise InputError(
                f"--slo {text!r} is no objective; write METRIC=TIME, as ttft=200ms ({', '.join(METRICS)})."
            )
        found[match[1]] = float(match[2]) * (1000 if match[3] == "s" else 1)
    return found


def meets(bounds: Mapping[str, float], values: Mapping[str, float | None]) -> bool:
    """Whether a request keeps all bounds (inclusive). One token has no TPOT and passes it, as in vLLM."""
    return all(_keeps(name, values[name], bound) for name, bound in bounds.items())


def _keeps(name: str, value: float | None, bound: float) -> bool:
    return name == "tpot" if value is None else value <= bound
