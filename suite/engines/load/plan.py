"""What will be sent and when: items with their due times, cut into shares for the worker processes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from suite.engines.load.records import Phase
from suite.errors import InputError
from workloads.schema import Request

Mode = Literal["open loop", "closed loop"]


@dataclass(frozen=True)
class Item:
    """One request to send. `due` (seconds) is None in a closed loop and for a turn that follows its predecessor."""

    index: int
    text: str
    max_tokens: int
    due: float | None = None
    phase: Phase = "measure"
    session: str = ""
    turn: int = 0
    seed: int = 0


@dataclass(frozen=True)
class Plan:
    """All items of a run. `concurrency` is how many requests a closed loop keeps in flight; None is an open loop."""

    items: tuple[Item, ...]
    label: str
    concurrency: int | None = None
    rate: float | None = None
    stop_s: float | None = None

    @property
    def mode(self) -> Mode:
        """Open or closed loop; a closed one does not send while the server stalls, so its latencies flatter."""
        return "open loop" if self.concurrency is None else "closed loop"

    def shares(self, workers: int) -> list[Plan]:
        """One plan per worker, sessions kept whole; a closed loop's concurrency is shared out too."""
        owner = {name: number for number, name in enumerate(dict.fromkeys(_session(item) for item in self.items))}
        shared = [[i for i in self.items if owner[_session(i)] % workers == w] for w in range(workers)]
        return [
            replace(self, items=tuple(items), concurrency=_share(self.concurrency, workers, w))
            for w, items in enumerate(shared)
        ]


def _share(concurrency: int | None, workers: int, worker: int) -> int | None:
    return None if concurrency is None else concurrency // workers + (worker < concurrency % workers)


def _session(item: Item) -> str:
    return item.session or f"#{item.index}"


def make_items(
    requests: Iterable[Request], due: Sequence[float] | None, warmup: int = 0, cooldown: int = 0
) -> tuple[Item, ...]:
    """Items of a workload's requests. The first `warmup` and the last `cooldown` are sent but not measured.

    A session's first turn takes the next due time; its later turns are due when the one before has been answered.
    """
    found: list[Item] = []
    times = iter(due) if due is not None else None
    for index, request in enumerate(requests):
        turn = int(request.metadata.get("turn", 0))
        at = next(times, None) if times is not None and turn == 0 else None
        if times is not None and turn == 0 and at is None:
            break
        session = str(request.metadata.get("session", ""))
        found.append(Item(index, request.prompt, request.max_new_tokens, at, "measure", session, turn, request.seed))
    if len(found) <= warmup + cooldown:
        raise InputError(
            f"{len(found)} requests leave none to measure after {warmup} warm-up and {cooldown} cool-down."
        )
    return tuple(replace(item, phase=_phase(item.index, len(found), warmup, cooldown)) for item in found)


def _phase(index: int, count: int, warmup: int, cooldown: int) -> Phase:
    if index < warmup:
        return "warmup"
    return "cooldown" if index >= count - cooldown else "measure"
