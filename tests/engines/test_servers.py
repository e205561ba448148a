"""Engines that are servers: answers without ids, and every way a server can fail. The servers are real processes."""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import pytest

from suite.engines import vllm, vllm_environment, vllm_server
from suite.engines.base import EngineError, EngineModel, Limits, Prompt
from suite.engines.load.null_server import null_server
from suite.engines.load.streams import Stream
from suite.engines.openai_server import OpenAIEngine, parsed
from suite.engines.vllm_server import VllmServerEngine
from suite.models.loaders import pinned
from suite.models.loaders.lab import CHECKPOINTS
from suite.models.tokenizer import HFTokenizer
from tests.engines.serving import METRICS

LAB = EngineModel("lab-recall", str(CHECKPOINTS / "lab-recall"), "fp32", 128)
PROMPTS = [Prompt((1, 2, 3), 8), Prompt((4, 5), 5)]
SPLIT = Stream(words=(" know", "ledge"), gap_s=0.002)


def serve(stream: Stream, model: EngineModel = LAB, limits: Limits | None = None):
    return null_server({"m": stream}), lambda url: OpenAIEngine(model, 1, limits or Limits(60, 30), url)


@pytest.mark.model
def test_an_answer_without_ids_is_tokenised_again_and_says_so():
    """Two pieces of the server's make one token of the tokenizer: events are not tokens, and nothing is made up."""
    server, engine = serve(SPLIT, EngineModel(pinned.NAME, str(pinned.ensure()), "bf16", 2048))
    with server as (url, _), engine(url) as started:
        first, second = started.generate(PROMPTS)
    tokenizer = HFTokenizer.from_directory(pinned.ensure())
    assert first.token_ids == tokenizer.encode(" knowledge" * 4)
    assert second.token_ids == tokenizer.encode(" knowledge" * 2 + " know")
    assert len(first.token_ids) < 8
    assert started.token_source == "text"
    stamps = [first.start_ns, *first.token_ns, time.perf_counter_ns()]
    assert stamps == sorted(stamps)
    assert len(set(first.token_ns)) == len(first.token_ns)


@pytest.mark.parametrize(
    ("stream", "kind", "told"),
    [
        (Stream(fail_after=4), "wrong output", "out of memory"),
        (Stream(fail_after=4, drop=True), "died", "connection broke"),
        (Stream(pauses=(0, 0, 0, 0, 30)), "timed out", "given up after 1 s"),
    ],
    ids=["says so", "hangs up", "hangs"],
)
def test_a_failing_server_is_a_fault(stream: Stream, kind: str, told: str):
    server, engine = serve(stream, limits=Limits(60, 1))
    with server as (url, _), engine(url) as started:
        start = time.monotonic()
        with pytest.raises(EngineError, match=told) as caught:
            started.generate(PROMPTS)
    assert caught.value.kind == kind
    assert time.monotonic() - start < 1 + 5


def test_a_server_killed_while_it_answers_has_died():
    server, engine = serve(Stream(gap_s=0.3))
    with server as (url, process), engine(url) as started:
        threading.Timer(0.5, process.kill).start()
        with pytest.raises(EngineError) as caught:
            started.generate(PROMPTS)
        assert not started.ready()
    assert caught.value.kind == "died"


@pytest.mark.parametrize("stream", [Stream(status=503), None], ids=["refuses", "is not there"])
def test_a_server_that_does_not_answer_did_not_start(stream: Stream | None):
    server, engine = serve(stream or Stream())
    with server as (url, process):
        if stream is None:
            process.kill()
            process.wait()
        with pytest.raises(EngineError) as caught, engine(url):
            pass
    assert caught.value.kind == "did not start"


def test_a_server_process_that_ends_at_once_did_not_start(monkeypatch: pytest.MonkeyPatch):
    """This interpreter has no vLLM: the process ends with the reason in its log."""
    monkeypatch.setattr(vllm_environment, "python", lambda: Path(sys.executable))
    with pytest.raises(EngineError, match="No module named 'vllm'") as caught, VllmServerEngine(LAB, 1, Limits(30)):
        pass
    assert caught.value.kind == "did not start"


def test_metrics_are_summed_over_labels_and_lose_their_prefix():
    text = METRICS.format(usage=0.25, running=3)
    other = 'vllm:num_preemptions_total{engine="1",model_name="m"} 5.0\n'
    text = text.replace("# TYPE vllm:num_preemptions_created", other + "# TYPE vllm:num_preemptions_created")
    found = parsed(text)
    assert found["num_preemptions"] == 12
    assert found["kv_cache_usage_perc"] == 0.25
    assert not any("created" in name or "python" in name for name in found)
    assert parsed("") == {}


@pytest.mark.parametrize(("threads", "cores", "computing"), [(1, 1, 1), (1, 2, 1), (2, 2, 1), (4, 4, 3), (4, 8, 4)])
def test_vllms_server_keeps_a_core_for_its_other_processes(monkeypatch, threads, cores, computing) -> None:
    started: list[dict[str, str]] = []

    class Ended:
        alive = False

        def __init__(self, name, command, environment) -> None:
            started.append(environment)

        def kill(self) -> None: ...

        def stop(self) -> None: ...

        def fault(self, kind, detail) -> EngineError:
            return EngineError(kind, "vllm-server", detail)

    monkeypatch.setattr(vllm_server, "Child", Ended)
    for module in (vllm, vllm_server):
        monkeypatch.setattr(module, "available_cpus", lambda: range(cores))
    monkeypatch.setattr(vllm_environment, "python", lambda: Path(sys.executable))
    with pytest.raises(EngineError), VllmServerEngine(LAB, threads, Limits(30)):
        pass
    assert [one["OMP_NUM_THREADS"] for one in started] == [str(computing)]
    assert len(started[0]["VLLM_CPU_OMP_THREADS_BIND"].split(",")) == computing
