"""A race of chains: they start together, and when enough are there the others are called off where they are."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from suite.methods.search.policy import Policy
from suite.methods.search.trace import Answer, Trace
from suite.methods.search.voting import Tie, vote


@dataclass(frozen=True)
class Arrival:
    """A chain that got there: as it was then, and with what it wrote afterwards."""

    there: Trace
    whole: Trace


@dataclass(frozen=True)
class Race:
    """Who arrived and counted, in order; where the chains stopped; and how many arrived that did not count."""

    found: list[Arrival]
    stopped: list[Trace]
    skipped: int = 0


def arrived(trace: Trace, until: str | None) -> bool:
    """Whether it ended by itself, or came to the text `until`. A chain that ran out of tokens did neither."""
    return trace.end in ("eos", "stop") or (until is not None and until in trace.text)


async def race(
    policy: Policy,
    rows: int,
    wanted: int,
    until: str | None,
    counts: Callable[[Trace], bool] | None = None,
    order: Callable[[Trace], float] | None = None,
) -> Race:
    """The first `wanted` of `rows` chains that reach `until`, or their ends; they then write what follows.

    Where one does not count, the next takes its place: chains that were called off go on. Chains that arrive in the
    same step come in ascending `order`, then by index. Fewer come back where the others run out of tokens.
    """
    running, found, skipped = [policy.root] * rows, list[Arrival](), 0
    while running and len(found) < wanted:
        drawn = await policy.first(running, wanted - len(found), until)
        queue = sorted(
            (trace for trace in drawn if arrived(trace, until)),
            key=lambda there: (there.length, order(there) if order else 0.0),
        )
        running = [trace for trace in drawn if not trace.finished and not arrived(trace, until)]
        while queue and len(found) < wanted:
            missing = wanted - len(found)
            now, queue = queue[:missing], queue[missing:]
            arrivals = [Arrival(*pair) for pair in zip(now, await policy.finish(now), strict=True)]
            usable = [arrival for arrival in arrivals if counts is None or counts(arrival.whole)]
            found, skipped = found + usable, skipped + len(arrivals) - len(usable)
    return Race(found, drawn, skipped)


def elected(policy: Policy, race: Race, tie: Tie) -> Answer:
    """The vote of those that arrived, ties by the length at which they did.

    Where nobody did there is no answer: the text is the first chain's as far as it came.
    """
    extra, lengths = policy.ledger.extra, [one.there.length for one in race.found]
    extra |= {"finished_only_tokens": float(sum(lengths)), "skipped": float(race.skipped)}
    if not race.found:
        return Answer(race.stopped[0], notes=("no chain finished within its tokens",))
    traces = [one.whole for one in race.found]
    ballot = vote(traces, tie=tie, lengths=lengths)
    extra["tied"] = float(ballot.tied)
    return Answer(traces[ballot.winner], tuple(traces))
