"""Arrival processes: when requests are due, in seconds after the start, fixed before the run (card section 4)."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

from suite.errors import InputError

Arrival = Literal["poisson", "gamma", "constant"]
ARRIVALS: tuple[Arrival, ...] = get_args(Arrival)
FloatArray = npt.NDArray[np.float64]


def gaps(arrival: Arrival, rate: float, count: int, seed: int, burstiness: float = 1.0) -> FloatArray:
    """`count` gaps in seconds with mean 1/rate. Gamma: coefficient of variation 1/sqrt(burstiness), 1 is Poisson."""
    check(arrival, rate, burstiness)
    rng = np.random.default_rng([seed, 0xA881])
    if arrival == "constant":
        return np.full(count, 1.0 / rate)
    shape = burstiness if arrival == "gamma" else 1.0
    return rng.gamma(shape, 1.0 / (rate * shape), count)


def due_times(
    arrival: Arrival, rate: float, count: int, seed: int, burstiness: float = 1.0, rescale: bool = True
) -> FloatArray:
    """When each request is due. The first one waits a gap too.

    As in `vllm bench serve`, `rescale` stretches all times so that the last is exactly count/rate: the rate asked for
    then has no sampling noise.
    """
    times = np.cumsum(gaps(arrival, rate, count, seed, burstiness))
    return times * (count / rate / times[-1]) if rescale and count else times


def check(arrival: str, rate: float, burstiness: float) -> None:
    """`InputError` for an unknown process or a parameter out of its range."""
    if arrival not in ARRIVALS:
        raise InputError(f"unknown arrival process {arrival!r}; known: {', '.join(ARRIVALS)}.")
    if not 0 < rate < float("inf"):
        raise InputError(f"a rate of {rate:g} requests/s is not possible; give a positive number.")
    if not 0 < burstiness < float("inf"):
        raise InputError(f"a burstiness of {burstiness:g} is not possible; give a positive number (1 is Poisson).")
