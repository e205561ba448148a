"""The asynchronous step loop gives what the synchronous one gives, and really does not wait."""

from __future__ import annotations

import random
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel

from suite.engines.base import EngineError
from suite.engines.step_front import Detokeniser, Scheduler, Stream
from suite.engines.step_loop import Runner, asynchronous, synchronous
from suite.errors import UnitError
from suite.harness.meter import RequestMeter
from suite.models.attention import DenseAttention
from suite.models.generation import generate
from suite.models.loaders import load_model
from suite.models.tokenizer import HFTokenizer
from tests.methods.support import tiny_model
from workloads.recall import FILLERS, KEYS
from workloads.schema import Request

ROWS = 3
RELEASE_S = 5.0  # a loop that waits for a stopped detokeniser goes on after this, so that its test fails and ends
HELD = range(3, 12)  # the steps in which the detokeniser stands still


@pytest.fixture(scope="module")
def model():
    return load_model("lab-recall", "fp32")


def request(number: int, tokens: int, *, stop: tuple[str, ...] = ()) -> Request:
    draw = random.Random(number)
    prompt = " ".join(draw.choices(KEYS + FILLERS, k=draw.randint(5, 30)))
    return Request(id=str(number), task="t", metric="m", prompt=prompt, max_new_tokens=tokens, stop=stop)


def alone(model, one: Request):
    """What the suite's own generation loop makes of a request."""
    return next(iter(generate(model, DenseAttention(model.config), [one], RequestMeter())))


def spanning(model, number: int) -> Request:
    """A request that ends at a stop string of two tokens, the first pair from the fifth token on that is new then."""
    made = alone(model, request(number, 40)).token_ids
    for at in range(4, 10):
        stop = model.tokenizer.decode(made[at : at + 2])
        if stop not in model.tokenizer.decode(made[: at + 1]):
            return request(number, 40, stop=(stop,))
    raise AssertionError(f"request {number} only repeats itself")


def children(role: str) -> list[psutil.Process]:
    """The processes of that role under this one, without their guards."""
    found = []
    for process in psutil.Process().children(recursive=True):
        command = process.cmdline()
        if "suite.engines.step_front" in command and role in command and "guard.py" not in " ".join(command):
            found.append(process)
    return found


@contextmanager
def held_detokeniser() -> Iterator[None]:
    """It is stopped before step HELD[0], and goes on after HELD[-1] or some seconds later."""
    plain, timers = Runner.step, []

    def step(self):
        now = len(self.steps_ns)
        if now == HELD[0]:
            (detokeniser,) = children("detokeniser")
            detokeniser.suspend()
            timers.append(threading.Timer(RELEASE_S, detokeniser.resume))
            timers[0].start()
        tokens = plain(self)
        if now == HELD[-1]:
            timers[0].cancel()
            children("detokeniser")[0].resume()
        return tokens

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Runner, "step", step)
        yield
    timers[0].cancel()


def test_both_loops_give_the_tokens_and_texts_of_the_generation_loop(model):
    """Rows are refilled, and requests end by length and by stop strings."""
    requests = [request(n, 8 + 3 * n) for n in range(6)] + [spanning(model, n) for n in (10, 12, 14)]
    expected = [alone(model, one) for one in requests]
    assert [completion.stop_reason for completion in expected] == ["length"] * 6 + ["stop"] * 3
    assert all(" " in one.stop[0] for one in requests[6:])  # no token's text has a space: the string spans two
    for run in (synchronous(model, requests, ROWS), asynchronous(model, requests, ROWS)):
        assert [(o.token_ids, o.text, o.stop_reason) for o in run.outputs] == [
            (completion.token_ids, completion.text, completion.stop_reason) for completion in expected
        ]
        assert len(run.gaps_ns) == len(run.steps_ns) - 1 == len(run.known_ns) - 1
        assert min(run.gaps_ns) > 0
        assert 0 < run.idle_share < 1


def test_the_next_step_starts_before_the_text_of_the_last_is_known(model):
    """The detokeniser stands still for some steps: a runner that waited for it would start them afterwards."""
    with held_detokeniser():
        run = asynchronous(model, [request(n, 30) for n in range(ROWS)], ROWS)
    for step in HELD[:-1]:
        assert run.steps_ns[step + 1][0] < run.known_ns[step]


def test_a_row_that_ended_unnoticed_goes_on_and_its_tokens_are_discarded(model):
    """The stop string comes while the detokeniser stands still; in the end all is as if it had been seen at once."""
    requests = [spanning(model, 0), *(request(n, 30) for n in range(1, 5))]
    expected = synchronous(model, requests, ROWS)
    with held_detokeniser():
        run = asynchronous(model, requests, ROWS)
    assert expected.discarded == 0
    assert expected.outputs[0].stop_reason == "stop"
    last = len(expected.outputs[0].token_ids) - 1  # the step that ends it
    assert last in HELD[:-1]
    assert run.discarded >= HELD[-1] - last
    assert run.outputs == expected.outputs


def test_no_process_is_left_after_an_error(model, monkeypatch):
    plain, seen = Runner.step, []

    def failing(self):
        if len(self.steps_ns) == 3:
            seen.extend(children("detokeniser") + children("scheduler"))
            raise RuntimeError("the model failed")
        return plain(self)

    monkeypatch.setattr(Runner, "step", failing)
    with pytest.raises(RuntimeError, match="the model failed"):
        asynchronous(model, [request(n, 30) for n in range(ROWS)], ROWS)
    assert len(seen) == 2
    assert not any(process.is_running() for process in seen)


def test_a_process_that_dies_is_one_clear_error(model, monkeypatch):
    plain = Runner.step

    def step(self):
        if len(self.steps_ns) == 3:
            children("detokeniser")[0].send_signal(signal.SIGKILL)
        return plain(self)

    monkeypatch.setattr(Runner, "step", step)
    with pytest.raises(EngineError, match="its process ended"):
        asynchronous(model, [request(n, 60) for n in range(ROWS)], ROWS)
    assert not children("detokeniser") + children("scheduler")


def test_the_scheduler_gives_a_free_row_to_the_next_request(model):
    scheduler = Scheduler(model.tokenizer, [request(n, 5) for n in range(3)], 2)
    assert [(change.row, change.request) for change in scheduler.first] == [(0, 0), (1, 1)]
    assert [(change.row, change.request) for change in scheduler.plan([1])] == [(1, 2)]
    assert [(change.row, change.request) for change in scheduler.plan([0, 2])] == [(0, -1), (1, -1)]
    assert scheduler.done


def test_the_text_grows_to_what_decoding_everything_gives():
    """Every token is a byte here, so most characters have several."""
    backend = Tokenizer(BPE({symbol: number for number, symbol in enumerate(ByteLevel.alphabet())}, []))
    backend.pre_tokenizer, backend.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    tokenizer = HFTokenizer(backend, None, {})
    text = "Grüße, 世界! 🦙 and   spaces\n\n"
    stream, seen = Stream(tokenizer, request(0, 100), ()), []
    for token in tokenizer.encode(text):
        stream.add(token)
        seen.append(stream.text)
    assert stream.text == text
    assert all(text.startswith(part) for part in seen)


def test_the_end_token_ends_a_request_and_what_follows_is_discarded(model):
    (eos,) = model.config.eos_ids
    detokeniser = Detokeniser(model.tokenizer, [request(0, 9), request(1, 9)], (eos,))
    assert detokeniser.take([(0, 20), (1, eos)]) == [1]
    assert detokeniser.take([(0, 21), (1, 22)]) == []
    assert detokeniser.discarded == 1
    assert detokeniser.streams[1].stop_reason == "eos"
    assert detokeniser.streams[1].tokens == [eos]


def test_a_tokenizer_that_no_file_holds_is_refused():
    with pytest.raises(UnitError, match="tokenizer"):
        asynchronous(tiny_model(), [request(0, 4)], 1)
