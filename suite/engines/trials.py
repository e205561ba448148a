"""A live engine under one configuration: what a repeat gives, and several configurations racing each other."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np

from suite.engines.base import Engine, Prompt


@dataclass(frozen=True)
class Repeat:
    """One call with all prompts at once. Times are from handing the prompts over.

    `largest_batch` is the number of prompts that really got a token in one step: a long list of prompts is no large
    batch where the engine's own limit caps it.
    """

    tokens: int
    seconds: float
    ttft_ms: tuple[float, ...]
    tpot_ms: tuple[float, ...]
    largest_batch: int

    @property
    def output_throughput(self) -> float:
        """Generated tokens per second."""
        return self.tokens / self.seconds

    def p95_ms(self) -> dict[str, float]:
        """95th percentiles of the latencies, by metric; of one-token answers there is no tpot."""
        known = {"ttft": self.ttft_ms, "tpot": self.tpot_ms}
        return {name: float(np.percentile(values, 95)) for name, values in known.items() if values}


@dataclass(frozen=True)
class Slices:
    """Prompts that come in slices of `size`: every repeat gets one that nobody has seen, so no cache knows it."""

    prompts: Sequence[Prompt]
    size: int

    def __getitem__(self, number: int) -> Sequence[Prompt]:
        return self.prompts[number * self.size : (number + 1) * self.size]

    def __len__(self) -> int:
        return len(self.prompts) // self.size


def measure(engine: Engine, prompts: Sequence[Prompt]) -> Repeat:
    """Runs the prompts together once."""
    outputs = engine.generate(prompts)
    start = outputs[0].start_ns
    steps = Counter(ns for output in outputs for ns in set(output.token_ns))
    return Repeat(
        tokens=sum(len(output.token_ids) for output in outputs),
        seconds=(max(output.token_ns[-1] for output in outputs) - start) / 1e9,
        ttft_ms=tuple(output.ttft_ms for output in outputs),
        tpot_ms=tuple(output.tpot_ms for output in outputs if output.tpot_ms is not None),
        largest_batch=max(steps.values()),
    )


def race(
    engines: Mapping[str, Engine], slices: Slices, first: int, rounds: int, tell: Callable[[str], None]
) -> dict[str, list[Repeat]]:
    """All engines running, one computing at a time, in interleaved rounds; the order turns round by round."""
    found: dict[str, list[Repeat]] = {name: [] for name in engines}
    with ExitStack() as stack:
        for name, engine in engines.items():
            tell(f"starting {name}")
            stack.enter_context(engine)
            engine.generate(slices[0])
        for number in range(rounds):
            tell(f"race, round {number + 1} of {rounds}")
            names = [*engines]
            for name in names[number % len(names) :] + names[: number % len(names)]:
                found[name].append(measure(engines[name], slices[first + number]))
    return found
