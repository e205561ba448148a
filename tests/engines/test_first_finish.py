"""Processes that race on one prompt: the earliest wins, whoever was asked first, and nobody is left behind."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace

import psutil
import pytest

from suite.engines.base import Chunk, EngineError, Limits, Prompt
from suite.engines.first_finish import first_finish
from suite.engines.native import NativeEngine
from tests.engines.test_contract import LAB

ENDS = tuple(range(24))  # of the vocabulary's 150 words or so: a text drawn at this temperature ends soon
PROMPT = Prompt(tuple(range(30, 50)), 90, ENDS, temperature=2.0)


class Racer(NativeEngine):
    """A native worker that can be held back until another one's part is over."""

    behind: Racer | None = None

    def __init__(self) -> None:
        super().__init__(LAB, 1, Limits(generate_s=60))
        self.over = threading.Event()

    def stream(self, prompts: Sequence[Prompt]) -> Iterator[Chunk]:
        self.over.clear()
        if self.behind is not None:
            assert self.behind.over.wait(60)
        try:
            yield from super().stream(prompts)
        finally:
            self.over.set()


@pytest.fixture(scope="module")
def racers() -> Iterator[list[Racer]]:
    with ExitStack() as stack:
        started = [stack.enter_context(Racer()) for _ in range(2)]
        pids = [pid for racer in started for pid in racer.pids()]
        yield started
    assert not any(psutil.pid_exists(pid) for pid in pids)


@pytest.mark.parametrize("late", [0, 1])
def test_the_winner_is_the_earliest_and_not_the_first_asked(racers: list[Racer], late: int) -> None:
    early = 1 - late
    racers[early].behind, racers[late].behind = None, racers[early]
    race = first_finish(racers, PROMPT)
    assert race.winner == early
    alone = racers[early].generate([replace(PROMPT, seed=early)])[0]
    assert race.outputs[early].token_ids == alone.token_ids
    assert alone.token_ids[-1] in ENDS
    assert race.outputs[late].token_ids == []
    assert race.generated == len(alone.token_ids)


def test_the_seeds_differ_and_the_stamps_decide(racers: list[Racer]) -> None:
    racers[0].behind = racers[1].behind = None
    prompt = replace(PROMPT, eos_ids=ENDS[:3])
    race = first_finish(racers, prompt)
    assert race.winner is not None
    first, second = (output.token_ids for output in race.outputs)
    shared = min(len(first), len(second))
    assert shared < 2 or first[:shared] != second[:shared]
    stop = race.outputs[race.winner].token_ns[-1]
    assert race.seconds == pytest.approx((stop - race.outputs[0].start_ns) / 1e9)


def test_texts_that_run_out_of_tokens_have_not_finished(racers: list[Racer]) -> None:
    racers[0].behind = racers[1].behind = None
    race = first_finish(racers, replace(PROMPT, max_new_tokens=5, eos_ids=(10**6,)))
    assert race.winner is None
    assert [len(output.token_ids) for output in race.outputs] == [5, 5]


def test_a_race_without_an_end_is_refused(racers: list[Racer]) -> None:
    with pytest.raises(ValueError, match="eos_ids"):
        first_finish(racers, replace(PROMPT, eos_ids=()))


def test_one_that_dies_ends_the_race(racers: list[Racer]) -> None:
    dying = NativeEngine(LAB, 1, Limits(generate_s=60))
    with dying, pytest.raises(EngineError, match="died"):
        psutil.Process(dying.pids()[-1]).kill()
        first_finish([racers[0], dying], replace(PROMPT, max_new_tokens=90, eos_ids=(10**6,)))
