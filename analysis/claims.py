"""The claims ledger: rules that turn a measured ratio into a verdict, and the rows of `suite reproduce`.

A verdict compares a measured estimate with the paper's target. `null` is the value that means "no effect" (1 for a
ratio, 0 for a difference).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from analysis.statistics import Estimate
from suite.harness.measurement import Finding

Verdict = Literal["reproduced", "partly", "not reproduced", "not measurable here"]
Direction = Literal["at least", "at most"]


def judge(
    estimate: Estimate | None, target: float | None, *, direction: Direction = "at least", null: float = 1.0
) -> Verdict:
    """The verdict on one claim; without an estimate it is "not measurable here", and the caller owes the reason.

    reproduced: the effect is there (the interval excludes `null`) and the interval reaches the target.
    partly: the effect is there but below the target, or one sample reaches it and there is no interval to trust.
    """
    if estimate is None:
        return "not measurable here"
    if not effect_is_there(estimate, direction, null):
        return "not reproduced"
    if estimate.low is None or not reaches_target(estimate, target, direction):
        return "partly"
    return "reproduced"


def effect_is_there(estimate: Estimate, direction: Direction, null: float) -> bool:
    """The whole interval (the value, where there is none) lies on the claimed side of `null`."""
    if direction == "at least":
        return (estimate.value if estimate.low is None else estimate.low) > null
    return (estimate.value if estimate.high is None else estimate.high) < null


def reaches_target(estimate: Estimate, target: float | None, direction: Direction) -> bool:
    """The interval touches the target or passes it; a claim without a target claims a direction only."""
    if target is None:
        return True
    if direction == "at least":
        return (estimate.value if estimate.high is None else estimate.high) >= target
    return (estimate.value if estimate.low is None else estimate.low) <= target


def reproduce_document(findings: Iterable[Finding]) -> list[dict[str, Any]]:
    """The JSON document of `suite reproduce`: one row per claim, in the order given."""
    fields = ("slug", "claim", "paper", "conditions", "measured", "low", "high", "unit", "verdict", "reason", "command")
    return [{name: getattr(finding, name) for name in fields} for finding in findings]
