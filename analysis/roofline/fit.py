"""A calibrated roofline: a few effective rates and bandwidths, fitted to measured passes and operator classes.

In each phase a class of operators has an effective FLOP rate and an effective bandwidth, and its time is the sum of both
times: computing and moving overlap only in part, and what a matrix product of few rows loses is its weights' traffic,
so the rate saturates with the rows. Calls and passes cost a fixed time each. All of that is linear in the unknown
seconds per FLOP, byte, call and pass, so non-negative least squares on relative errors finds them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize

from analysis.roofline.operators import Precision
from analysis.roofline.parts import CLASSES, class_of, part_operators
from analysis.roofline.shape import ModelShape
from suite.harness.measurement import PassTimes

Terms = Mapping[str, float]
"""How much there is of each unit of work: FLOPs, bytes, calls, passes; or the seconds that one of each takes."""

CALLS = {"linear": 4, "attention": 1, "elementwise": 6}
"""Calls per layer where the operators run one by one."""


def terms(times: PassTimes, shape: ModelShape, precision: Precision) -> Terms:
    """The work of a timed part by term. A decode pass is one call, however many operators it has."""
    found: dict[str, float] = {}

    def add(name: str, amount: float) -> None:
        found[name] = found.get(name, 0.0) + amount

    for operator in part_operators(shape, precision, times):
        add(f"{times.phase} {class_of(operator)} flop", float(operator.flops))
        add(f"{times.phase} {class_of(operator)} byte", float(operator.bytes))
    passes = -(-times.tokens // times.new) if times.phase == "prefill" and times.part == "pass" else 1
    if times.part == "pass":
        add(f"{times.phase} pass", passes)
    if (times.phase, times.part) != ("decode", "pass"):
        parts = CLASSES if times.part == "pass" else (times.part,)
        add("call", passes * sum(CALLS[part] * shape.layers if part in CALLS else 2 for part in parts))
    return {name: amount for name, amount in found.items() if amount}


@dataclass(frozen=True)
class Fitted:
    """Seconds per unit of each term."""

    seconds: Terms

    def predict(self, work: Terms) -> float:
        """Seconds of some work; what was never fitted counts nothing."""
        return sum(amount * self.seconds.get(name, 0.0) for name, amount in work.items())

    def described(self) -> list[tuple[str, float, str]]:
        """(term, value, unit): rates and bandwidths in 1e9 per second, calls and passes in microseconds.

        A term that costs nothing is left out: its class is bound by the other one.
        """
        rows = []
        for name, value in self.seconds.items():
            if value > 0:
                kind = name.rsplit(" ", 1)[-1]
                unit = {"flop": "GFLOP/s", "byte": "GB/s"}.get(kind, "µs")
                rows.append((name, 1e6 * value if unit == "µs" else 1e-9 / value, unit))
        return rows


def fit(work: Sequence[Terms], measured_s: Sequence[float]) -> Fitted:
    """Non-negative least squares of predicted / measured against 1."""
    names = list(dict.fromkeys(name for row in work for name in row))
    matrix = np.array([[row.get(name, 0.0) for name in names] for row in work]) / np.array(measured_s)[:, None]
    scale = np.linalg.norm(matrix, axis=0)
    solution, _ = optimize.nnls(matrix / scale, np.ones(len(work)))
    return Fitted(dict(zip(names, (solution / scale).tolist(), strict=True)))
