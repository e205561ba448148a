"""Asynchronous First Finish Search: engines race on one prompt, each with its own seed; the first to end wins.

    with ExitStack() as stack:
        engines = [stack.enter_context(NativeEngine(model, threads=1)) for _ in range(2)]
        race = first_finish(engines, prompt)

The winner is the earliest in time, by the stamps of the engines' common clock. With unequal speeds or starts it need
not be the shortest (card `first_finish_search`, section 3). The others are cancelled, and the engines stay usable.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, cast

from suite.engines.base import Engine, Output, Prompt


@dataclass(frozen=True)
class Race:
    """`winner`: the engine whose text ended first, None where all ran out of tokens. What each had made by then."""

    winner: int | None
    outputs: tuple[Output, ...]
    seconds: float

    @property
    def generated(self) -> int:
        """Tokens of all engines, those of the cancelled ones included."""
        return sum(len(output.token_ids) for output in self.outputs)


def first_finish(engines: Sequence[Engine], prompt: Prompt) -> Race:
    """Runs the prompt on all engines at once, with seeds `prompt.seed`, + 1, ...; `ValueError` if it cannot end."""
    if not prompt.eos_ids:
        raise ValueError("a race needs a prompt with eos_ids: without an end token nobody finishes first")
    start_ns, over = time.perf_counter_ns(), threading.Event()
    outputs = [Output(start_ns) for _ in engines]
    with ThreadPoolExecutor(len(engines)) as pool:
        runs = [
            pool.submit(_run, engine, replace(prompt, seed=prompt.seed + number), outputs[number], over)
            for number, engine in enumerate(engines)
        ]
        for run in runs:
            run.result()
    ended = [number for number, output in enumerate(outputs) if _ended(output, prompt)]
    winner = min(ended, key=lambda number: outputs[number].token_ns[-1], default=None)
    stop_ns = max(output.token_ns[-1] for output in outputs) if winner is None else outputs[winner].token_ns[-1]
    return Race(winner, tuple(outputs), (stop_ns - start_ns) / 1e9)


def _run(engine: Engine, prompt: Prompt, output: Output, over: threading.Event) -> None:
    """One engine's part, until it is over for all: because it ended, because another did, or because one failed."""
    try:
        with closing(cast(Any, engine.stream([prompt]))) as chunks:
            for chunk in chunks:
                if over.is_set():
                    break
                output.token_ids += chunk.token_ids
                output.token_ns += [chunk.ns] * len(chunk.token_ids)
                if _ended(output, prompt):
                    over.set()
    except BaseException:
        over.set()
        raise


def _ended(output: Output, prompt: Prompt) -> bool:
    """A text that ran out of tokens has not."""
    return bool(output.token_ids) and output.token_ids[-1] in prompt.eos_ids
