"""A calibrated roofline: a few effective rates and bandwidths, fitted to measured passes and operator classes.

In each phase a class of operators has an effective FLOP rate and an effective bandwidth, and its time is the sum of
both times: computing and moving overlap only in part. What a matrix product of few rows loses is its weights' traffic,
so its rate saturates with the rows. Sequences and calls cost a fixed time each. All of that is linear in the unknown
seconds per FLOP, byte, sequence and call: non-negative least squares on relative errors finds them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import optimize

from analysis.roofline.operators import Operator, Precision
from analysis.roofline.parts import class_of, part_operators
from analysis.roofline.shape import ModelShape
from suite.harness.measurement import PassTimes

Terms = Mapping[str, float]
"""How much there is of each unit of work: FLOPs, bytes, sequences, calls; or the seconds that one of each takes."""

CALLS = {"linear": 4, "attention": 1, "elementwise": 6}
"""Calls per layer where the operators run one by one; the head's two are not told from the reading of its weights."""
STREAMED_ROWS = 2
"""Up to so many rows our matrix-vector kernel streams the weights; more go through it in tiles (`kernels/gemv`)."""
UNITS = {"flop": "GFLOP/s", "byte": "GB/s"}
"""Of rates; all other terms are times in µs."""


@dataclass(frozen=True)
class Pricing:
    """What the terms of a part depend on besides the part. `cache_bytes`: what the last-level cache holds."""

    shape: ModelShape
    precision: Precision
    cache_bytes: float

    def terms(self, times: PassTimes) -> Terms:
        """The work of a timed part by term. A decode pass is one call, whose cost is not told from its weights'."""
        found: dict[str, float] = {}
        for operator in part_operators(self.shape, self.precision, times):
            for name, amount in self._of(operator, times):
                found[name] = found.get(name, 0.0) + amount
        if (times.phase, times.part) != ("decode", "pass"):
            passes = -(-times.tokens // times.new) if times.part == "pass" else 1
            for part in CALLS if times.part == "pass" else CALLS.keys() & {times.part}:
                found[f"{part} call"] = passes * CALLS[part] * self.shape.layers
        return {name: amount for name, amount in found.items() if amount}

    def _of(self, operator: Operator, times: PassTimes) -> list[tuple[str, float]]:
        """FLOPs and bytes of one operator, under the names of what they share a rate with."""
        kind, flops, moved = class_of(operator), float(operator.flops), float(operator.bytes)
        name = kind if kind == "head" else f"{times.phase} {kind}"
        if kind == "elementwise":
            far = moved > self.cache_bytes * float(operator.calls)
            return [(f"{name} {'memory' if far else 'cache'} byte", moved)]
        if name == "decode linear":
            streamed = times.batch * times.new <= STREAMED_ROWS
            return [(f"{name} flop", flops), (f"{name} {'streamed' if streamed else 'tiled'} byte", moved)]
        if name == "decode attention":
            return [(f"{name} byte", moved), (f"{name} sequence", times.batch * float(operator.calls))]
        return [(f"{name} flop", flops), (f"{name} byte", moved)]


@dataclass(frozen=True)
class Fitted:
    """Seconds per unit of each term."""

    seconds: Terms

    def predict(self, work: Terms) -> float:
        """Seconds of some work; a term that was never fitted counts nothing."""
        return sum(amount * self.seconds.get(name, 0.0) for name, amount in work.items())

    def described(self) -> list[tuple[str, float, str]]:
        """(term, value, unit): rates and bandwidths in 1e9 per second, all others in microseconds.

        A term that costs nothing is left out: its class is bound by its other one.
        """
        rows = []
        for name, value in self.seconds.items():
            if value > 0:
                unit = UNITS.get(name.rsplit(" ", 1)[-1])
                rows.append((name, 1e-9 / value, unit) if unit else (name, 1e6 * value, "µs"))
        return rows


def fit(work: Sequence[Terms], measured_s: Sequence[float]) -> Fitted:
    """Non-negative least squares of predicted / measured against 1."""
    names = list(dict.fromkeys(name for row in work for name in row))
    matrix = np.array([[row.get(name, 0.0) for name in names] for row in work]) / np.array(measured_s)[:, None]
    scale = np.linalg.norm(matrix, axis=0)
    solution, _ = optimize.nnls(matrix / scale, np.ones(len(work)))
    return Fitted(dict(zip(names, (solution / scale).tolist(), strict=True)))
