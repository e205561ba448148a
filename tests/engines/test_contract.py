"""What every engine does, asked of real child processes.

The model is the committed lab model, except for vLLM: its CPU attention has no kernel for heads of 16. It gets SmolLM2.
vLLM takes long to start, so one server is started, and engine `openai` is tested against it too. Otherwise that one
talks to a small server of this process (`serving.py`). Without vLLM's environment its tests are skipped.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from suite.engines import vllm, vllm_environment
from suite.engines.base import COUNTERS, GAUGES, Engine, EngineError, EngineModel, Limits, Prompt
from suite.engines.native import NativeEngine
from suite.engines.searching import EngineSampler
from suite.engines.vllm_server import VllmServerEngine
from suite.harness.meter import RequestMeter
from suite.methods.search.asks import Sampler, run
from suite.methods.search.base import Desk
from suite.methods.search.ledger import Ledger
from suite.methods.search.policy import Policy
from suite.methods.search.sampler import NativeSampler
from suite.methods.search.trace import Problem, Trace
from suite.models.loaders import load_model, load_served, pinned
from suite.models.loaders.lab import CHECKPOINTS
from suite.models.tokenizer import HFTokenizer
from suite.registry import ENGINES
from suite.spec import ModelSpec
from tests.engines.serving import serving

LAB = EngineModel("lab-recall", str(CHECKPOINTS / "lab-recall"), "fp32", 128)
PROMPTS = [Prompt(tuple(range(1, 20)), 8), Prompt(tuple(range(3, 10)), 6)]
LIMITS = Limits(generate_s=60)
PARENT = """
import sys, time
from suite.engines.native import NativeEngine
from tests.engines.test_contract import LAB
engine = NativeEngine(LAB, 1)
engine.start()
print(*[process.pid for process in engine._child.processes()], flush=True)
time.sleep(60)
"""


def _model(engine: str) -> EngineModel:
    if "vllm" not in engine:
        return LAB
    return EngineModel(pinned.NAME, str(pinned.ensure()), "fp32", 2048)


def _parameter(name: str):
    absent = pytest.mark.skipif(
        not vllm_environment.installed(), reason="no vLLM (python -m suite engines install vllm)"
    )
    return pytest.param(name, marks=[pytest.mark.model, absent] if "vllm" in name else [])


@pytest.fixture(scope="module")
def vllm_server() -> Iterator[VllmServerEngine]:
    with VllmServerEngine(_model("vllm-server"), 1, LIMITS) as server:
        yield server


@pytest.fixture(scope="module")
def lab_native() -> Iterator[NativeEngine]:
    with NativeEngine(LAB, 1, LIMITS) as native:
        yield native


@pytest.fixture(scope="module")
def small_server(lab_native: NativeEngine) -> Iterator[str]:
    with serving(lab_native) as url:
        yield url


@pytest.fixture(scope="module", params=[_parameter(name) for name in [*ENGINES, "openai at vllm-server"]])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    name = request.param
    if name == "vllm-server":
        yield request.getfixturevalue("vllm_server")
        return
    more = {}
    if "openai" in name:
        server = request.getfixturevalue("vllm_server").base_url if "vllm" in name else None
        more = {"base_url": server or request.getfixturevalue("small_server")}
    with ENGINES.load(name.split()[0])(_model(name), 1, LIMITS, **more) as started:
        yield started


@pytest.fixture(scope="module")
def expected(engine: Engine, lab_native: NativeEngine) -> list[list[int]]:
    if engine.model is LAB:
        return [output.token_ids for output in lab_native.generate(PROMPTS)]
    with NativeEngine(engine.model, 1, LIMITS) as native:
        return [output.token_ids for output in native.generate(PROMPTS)]


def test_greedy_tokens_are_those_of_the_native_decoder(engine: Engine, expected: list[list[int]]) -> None:
    assert [output.token_ids for output in engine.generate(PROMPTS)] == expected


def test_every_token_has_a_time_after_the_start(engine: Engine) -> None:
    before = time.perf_counter_ns()
    for output in engine.generate([replace(prompt, max_new_tokens=40) for prompt in PROMPTS]):
        stamps = [before, output.start_ns, *output.token_ns, time.perf_counter_ns()]
        assert stamps == sorted(stamps)
        assert len(output.token_ns) == len(output.token_ids)
        assert output.token_ns[-1] > output.token_ns[0]


def test_an_end_token_ends_its_prompt_and_no_other(engine: Engine, expected: list[list[int]]) -> None:
    end = expected[0][1]
    first, second = engine.generate([Prompt(prompt.ids, prompt.max_new_tokens, (end,)) for prompt in PROMPTS])
    assert first.token_ids == expected[0][:2]
    stop = expected[1].index(end) + 1 if end in expected[1] else len(expected[1])
    assert second.token_ids == expected[1][:stop]


def test_a_stream_that_is_closed_early_is_cancelled(engine: Engine, expected: list[list[int]]) -> None:
    """The next call gets its own tokens, and does not wait for the old ones."""
    stream = engine.stream([replace(prompt, max_new_tokens=90) for prompt in PROMPTS])
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert [output.token_ids for output in engine.generate(PROMPTS)] == expected


def test_a_stop_text_ends_its_prompt_with_the_token_that_completes_it(
    engine: Engine, expected: list[list[int]]
) -> None:
    if not engine.draws:
        pytest.skip("its generate has none for one prompt of a batch")
    decode = HFTokenizer.from_directory(Path(engine.model.directory)).decode
    place = next(i for i in range(1, 8) if decode(expected[0][i : i + 1]).strip())
    stop = decode(expected[0][: place + 1])[-3:]
    first, second = engine.generate([replace(PROMPTS[0], stop=(stop, "\x00")), PROMPTS[1]])
    assert first.token_ids == next(ids for i in range(8) if stop in decode(ids := expected[0][: i + 1]))
    assert second.token_ids == expected[1]


def test_log_probabilities_are_the_models_own(engine: Engine) -> None:
    """Whatever the temperature: what is drawn does not change what the model thinks of it."""
    if not engine.draws:
        pytest.skip("its generate has none")
    warm = replace(PROMPTS[0], temperature=2.0, seed=3, logprobs=True)
    chunks = list(engine.stream([replace(PROMPTS[0], logprobs=True), warm, PROMPTS[1]]))
    first, second, third = ([c for c in chunks if c.index == index] for index in range(3))
    assert all(len(chunk.logprobs) == len(chunk.token_ids) for chunk in first + second)
    assert not any(chunk.logprobs for chunk in third)
    assert all(value <= 1e-3 for chunk in first + second for value in chunk.logprobs)
    ids = tuple(token for chunk in second for token in chunk.token_ids)
    (again,) = engine.stream([replace(warm, ids=(*warm.ids, *ids[:3]), max_new_tokens=1, temperature=0.0)])
    if again.token_ids[0] == ids[3]:
        assert again.logprobs[0] == pytest.approx(sum((c.logprobs for c in second), ())[3], abs=1e-2)


def test_one_prompt_is_called_off_and_the_others_go_on(engine: Engine, expected: list[list[int]]) -> None:
    if not engine.draws:
        pytest.skip("its generate cannot")
    long, short = replace(PROMPTS[0], max_new_tokens=100), PROMPTS[1]
    made: list[list[int]] = [[], []]
    for chunk in engine.stream([long, short]):
        if chunk.index == 0 and not made[0]:
            engine.cancel(0)
        made[chunk.index] += chunk.token_ids
    assert 0 < len(made[0]) < 100
    assert made[1] == expected[1]
    assert [output.token_ids for output in engine.generate(PROMPTS)] == expected


@pytest.mark.parametrize("name", [_parameter("vllm-server")])
def test_a_search_through_vllm_is_the_native_one(name: str, vllm_server: VllmServerEngine) -> None:
    """Without chance: pieces, ends, texts and ledger. A model that is loaded here draws the same tokens there."""
    model = load_model(pinned.NAME, "fp32")

    async def pieces(policy: Policy) -> list[Trace]:
        chains = await policy.finish([policy.root] * 2, most=3)
        written = await policy.write(chains[0], " and")
        return await policy.first([written, chains[1]], 2, until=".")

    def searched(sampler: Sampler) -> tuple[list[tuple[int, ...]], list[str], Ledger]:
        policy = Policy(
            Problem("p", "", tuple(model.tokenizer.encode("The river is wide"))[:20], 24), 0.0, 1.0, Ledger()
        )
        sampler.prefill([policy.root])
        ((_, found),) = run([pieces(policy)], Desk(sampler, None).serve)
        sampler.settle([policy.root], [policy.ledger])
        return [trace.all_ids for trace in found], [trace.text for trace in found], policy.ledger

    ids, texts, ledger = searched(EngineSampler(vllm_server, load_served(ModelSpec(name=pinned.NAME, dtype="fp32"))))
    expected_ids, expected_texts, expected = searched(NativeSampler(model, RequestMeter()))
    assert (ids, texts) == (expected_ids, expected_texts)
    assert replace(ledger, prefilled=0, flops=0) == replace(expected, prefilled=0, flops=0)
    assert ledger.flops > expected.flops
    assert ledger.prefilled == ledger.prompt_logical  # this server has no prefix cache, and says so


def test_it_is_ready_and_its_memory_is_its_own(engine: Engine) -> None:
    assert engine.ready()
    memory, used = engine.peak_memory_bytes(), engine.cpu_seconds()
    if engine.name == "openai":
        assert (memory, used) == (None, 0.0)
    else:
        assert memory is not None
        assert memory > 50e6
        assert used > 0.1


def test_it_computes_on_as_many_cores_as_it_was_given(engine: Engine) -> None:
    """One here. vLLM's server has processes beside the one that computes, which look for work without a pause."""
    if engine.name == "vllm-server":
        pytest.skip("its other processes are busy even when nothing is asked")
    used, start = engine.cpu_seconds(), time.perf_counter()
    engine.generate([replace(prompt, max_new_tokens=90) for prompt in PROMPTS])
    assert engine.cpu_seconds() - used < 1.4 * (time.perf_counter() - start)


def test_its_own_metrics_have_the_names_of_vllm(engine: Engine) -> None:
    seen = engine.watched([replace(prompt, max_new_tokens=120) for prompt in PROMPTS])  # looked at many times
    if engine.name in ("native", "transformers"):
        assert seen == {}
        return
    assert set(seen) >= {*GAUGES, *COUNTERS}
    assert 0 < seen["kv_cache_usage_perc"] < 1
    assert seen["num_requests_running"] == len(PROMPTS)
    assert seen["num_preemptions"] == seen["prefix_cache_hits"] == 0


@pytest.mark.parametrize("name", [_parameter("native"), _parameter("vllm")])
def test_a_hung_engine_is_ended_within_its_limit_and_5_s(name: str) -> None:
    engine = ENGINES.load(name)(_model(name), 1, Limits(generate_s=1))
    engine.start()
    pids = _pids(engine)
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    start = time.monotonic()
    with pytest.raises(EngineError, match="timed out") as caught:
        engine.generate(PROMPTS)
    assert caught.value.kind == "timed out"
    assert time.monotonic() - start < 1 + 5
    assert not any(map(_runs, pids))


@pytest.mark.parametrize("name", [_parameter("native"), _parameter("vllm-server")])
def test_a_killed_engine_has_died(name: str, request: pytest.FixtureRequest) -> None:
    """vLLM's server is the one of the tests before: nothing here needs it any more."""
    engine = request.getfixturevalue("vllm_server") if name == "vllm-server" else NativeEngine(LAB, 1, LIMITS)
    if not engine.ready():
        engine.start()
    for pid in _pids(engine):
        os.kill(pid, signal.SIGKILL)
    with pytest.raises(EngineError) as caught:
        engine.generate(PROMPTS)
    assert caught.value.kind == "died"
    assert not engine.ready()


@pytest.mark.parametrize("name", [_parameter("vllm")])
def test_a_cache_that_memory_cannot_hold_is_out_of_memory(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm, "KV_CACHE_GIB", 1 << 20)
    with pytest.raises(EngineError) as caught, ENGINES.load(name)(_model(name), 1, LIMITS):
        pass
    assert caught.value.kind == "out of memory"


def test_an_engine_that_cannot_start_says_why() -> None:
    engine = NativeEngine(EngineModel("no-such-model", "", "fp32", 128), 1, LIMITS)
    with pytest.raises(EngineError, match="unknown model") as caught, engine:
        pass
    assert caught.value.kind == "did not start"


def test_too_few_tokens_are_wrong_output() -> None:
    class Lazy(NativeEngine):
        def stream(self, prompts):  # the real stream, one token short
            return iter(list(super().stream(prompts))[:-1])

    with Lazy(LAB, 1, LIMITS) as engine, pytest.raises(EngineError) as caught:
        engine.generate(PROMPTS)
    assert caught.value.kind == "wrong output"


def test_even_a_hung_engine_ends_when_its_parent_is_killed() -> None:
    parent = subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pids = [int(word) for word in parent.stdout.readline().split()]
    for pid in pids:  # one that runs would see its socket close; only the guard ends one that hangs
        os.kill(pid, signal.SIGSTOP)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert pids
    deadline = time.monotonic() + 5
    while any(map(_runs, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(_runs, pids))


def _runs(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _pids(engine: NativeEngine | VllmServerEngine) -> list[int]:
    assert engine._child is not None
    return [process.pid for process in engine._child.processes()]
