"""Engines beside each other: turns, faults, first differences, and a table that hides nothing."""

from __future__ import annotations

import json
import os
import signal
import threading
from pathlib import Path
from typing import ClassVar

import psutil
import pytest
import torch

from analysis.summary import build_summary
from suite.cli import run
from suite.commands import engines_compare
from suite.commands.engine_models import engine_model
from suite.engines.base import EngineError, EngineModel, Limits, Output, Prompt
from suite.engines.comparison import Cell, Comparison, Difference, differences, first_difference
from suite.engines.load.null_server import null_server
from suite.engines.load.streams import Stream
from suite.engines.margins import logit_gap
from suite.engines.native import NativeEngine
from suite.harness.store import Store
from suite.models.attention import DenseAttention
from suite.models.loaders import load_model
from suite.models.loaders.lab import CHECKPOINTS

LAB = EngineModel("lab-recall", str(CHECKPOINTS / "lab-recall"), "fp32", 128)


@pytest.mark.parametrize(
    ("ours", "theirs", "position"),
    [([1, 2, 3], [1, 2, 3], None), ([1, 2, 3], [1, 9, 3], 1), ([1, 2, 3], [1, 2], 2), ([], [4], 0), ([], [], None)],
)
def test_the_first_difference(ours: list[int], theirs: list[int], position: int | None):
    assert first_difference(ours, theirs) == position


def cell(engine: str, seconds: dict[int, float], tokens: list[list[int]]) -> Cell:
    """A cell whose batch took so long in each round; every token but the first comes at the end."""
    made = Cell(engine, len(tokens))
    for number, s in seconds.items():
        stamps = [[int(0.25 * s * 1e9), *[int(s * 1e9)] * (len(ids) - 1)] for ids in tokens]
        made.outputs[number] = [Output(0, ids, ns) for ids, ns in zip(tokens, stamps, strict=True)]
    return made


def test_differences_name_round_request_position_and_both_tokens():
    native = cell("native", {1: 1.0, 2: 1.0}, [[5, 6, 7], [5, 6, 7]])
    other = cell("other", {1: 1.0, 2: 1.0}, [[5, 6, 7], [5, 8]])
    found = list(differences(native, other))
    assert found == [Difference(2, 1, 1, 1, (6, 8)), Difference(2, 2, 1, 1, (6, 8))]
    other.outputs[2][1].token_ids = [5, 6]
    assert list(differences(native, other))[-1] == Difference(2, 2, 1, 2, (7, None))


class Watching(NativeEngine):
    """Notes how the processes of another engine are while it computes."""

    name = "watching"
    other: NativeEngine
    seen: ClassVar[list[str]] = []

    def generate(self, prompts):
        outputs = super().generate(prompts)  # a signal takes a moment
        self.seen += [psutil.Process(pid).status() for pid in self.other.pids()]
        return outputs


def test_while_one_engine_is_timed_the_others_are_stopped():
    """And go on when it is their turn, as their answers show."""
    other, engine = NativeEngine(LAB, 1, Limits(60, 30)), Watching(LAB, 1, Limits(60, 30))
    engine.other = other
    prompts = [Prompt((1, 2, 3), 4)]
    cells = Comparison([other, engine], lambda batch, number: prompts, [1], 2, lambda progress: None).run()
    assert set(engine.seen) == {psutil.STATUS_STOPPED}
    assert [len(cell.outputs) for cell in cells] == [2, 2]
    assert cells[0].outputs[2][0].token_ids == cells[1].outputs[2][0].token_ids


def test_the_gap_between_two_tokens_is_that_of_their_logits():
    model = load_model("lab-recall", "fp32")
    ids = list(range(1, 20))
    with torch.inference_mode():
        attention = DenseAttention(model.config)
        cache = model.decoder.new_cache(1, attention.capacity(len(ids)))
        logits = model.decoder(torch.tensor([ids]), cache, attention)[0]
    for pair in ((5, 9), (9, 5)):
        expected = float(logits[pair[0]] - logits[pair[1]])
        assert logit_gap(model, ids, pair) == pytest.approx(expected, abs=1e-4)


def test_throughput_is_a_ratio_of_totals_and_latencies_are_of_requests():
    row = engines_compare._row(cell("vllm", {1: 1.0, 2: 3.0}, [[1, 2, 3]] * 2), None, 1)
    assert row["output_throughput"] == pytest.approx(12 / 4)  # the mean of rates would be 4
    assert row["median_ttft_ms"] == pytest.approx(500)
    assert row["samples"]["tpot_ms"] == pytest.approx([375, 375, 1125, 1125])
    assert row["native_ratio"] is None


def test_the_ratio_pairs_rounds_and_says_how_much_faster_native_is():
    native, other = cell("native", {1: 1.0, 2: 10.0}, [[1, 2]]), cell("vllm", {1: 2.0, 2: 20.0}, [[1, 2]])
    ratio = engines_compare._row(other, native, 1)["native_ratio"]
    assert (ratio["value"], ratio["n"]) == (pytest.approx(2.0), 2)
    assert ratio["low"] == pytest.approx(2.0)


class Mortal(NativeEngine):
    """Its process is killed while the requests of its second timed round are in flight."""

    name = "mortal"
    runs = 0

    def stream(self, prompts):
        self.runs += 1
        if self.runs == 2:  # the untimed round is no stream here
            self._send(signal.SIGSTOP)  # else a fast answer is whole, in the pipe, before the kill
            threading.Timer(0.5, self._send, [signal.SIGKILL]).start()
        yield from super().stream(prompts)

    def _send(self, number):
        for process in self._child.processes():
            os.kill(process.pid, number)


def test_engines_take_turns_and_one_that_dies_leaves_the_others_their_rows():
    seen: list[str] = []

    def prompts(batch: int, number: int) -> list[Prompt]:
        return [Prompt(tuple(range(1, 9 + number + i)), 100) for i in range(batch)]

    engines = [NativeEngine(LAB, 1, Limits(60, 60)), Mortal(LAB, 1, Limits(60, 60))]
    cells = Comparison(engines, prompts, [1, 2], 2, lambda moment: seen.append(moment.activity)).run()
    assert seen[2:6] == ["native, batch 1, warming up", "mortal, batch 1, warming up",
                         "mortal, batch 1, round 1", "native, batch 1, round 1"]  # fmt: skip
    assert [(c.engine, c.batch, sorted(c.outputs)) for c in cells] == [
        ("native", 1, [1, 2]), ("mortal", 1, [1]), ("native", 2, [1, 2]), ("mortal", 2, []),
    ]  # fmt: skip
    assert [c.fault and c.fault.kind for c in cells] == [None, "died", None, "died"]
    assert not any(engine.ready() for engine in engines)
    row = engines_compare._row(cells[1], cells[0], 1)
    assert row["status"] == "fault"
    assert "output_throughput" not in row
    assert engines_compare._row(cells[2], cells[0], 1)["output_throughput"] > 0


@pytest.fixture
def compare(capsys: pytest.CaptureFixture[str]):
    def call(engines: str, url: str, *more: str) -> tuple[int, str]:
        lab = ("--model", "lab-recall", "--dtype", "fp32", "--prompt-tokens", "16", "--new-tokens", "6")
        code = run(
            ("engines", "compare", *lab, "--engines", engines, "--base-url", url, "--batch", "1,2", "--rounds", "2",
             "--threads", "1", *more)
        )  # fmt: skip
        return code, capsys.readouterr().out

    return call


def test_the_document_of_a_running_server(compare):
    with null_server({"m": Stream()}) as (url, _):
        code, out = compare("openai", url, "--json")
    document = json.loads(out)
    assert code == 0
    assert [(row["engine"], row["batch"], row["rounds"]) for row in document["rows"]] == [
        ("openai", 1, 2), ("openai", 2, 2),
    ]  # fmt: skip
    row = document["rows"][1]
    assert row["token_source"] == "text"
    assert row["peak_memory_bytes"] is None
    assert row["total_output_tokens"] == 24
    assert row["output_throughput"] == pytest.approx(24 / sum(row["samples"]["seconds"]))
    assert len(row["samples"]["ttft_ms"]) == 4
    assert document["outputs"] == []


def test_a_faulted_engine_is_a_row_and_exit_code_3(compare):
    with null_server({"m": Stream(fail_after=4, drop=True)}) as (url, _):
        code, out = compare("native,openai", url)
    assert code == 3
    assert out.count("fault: died") == 2
    assert "openai, batch 1: openai died: the connection broke" in out
    assert "openai: 0 of 0 greedy answers" in out
    with Store() as store:
        (report,) = build_summary(store).engines
    assert {(row.engine, row.status == "fault") for row in report.rows} == {("native", False), ("openai", True)}
    assert [row.remark.partition(":")[0] for row in report.rows if row.engine == "openai"] == 2 * ["openai died"]
    assert report.agreements == (("openai", 0, 0),)


def test_the_sentence_on_a_difference_says_how_close_it_was():
    first = {"batch": 4, "round": 1, "request": 2, "position": 7, "native_token": 5, "token": 6, "fp32_gap": -0.031}
    found = {"engine": "vllm", "compared": 12, "equal": 11, "first_difference": first}
    said = engines_compare._sentence(found, "bf16")
    assert said.startswith("vllm: 11 of 12 greedy answers are native's; first difference at batch 4, round 1, ")
    assert "request 2, token 7: 6, natively 5; fp32 prefers the engine's token by 0.031" in said
    assert "ties are expected" in said
    assert "ties" not in engines_compare._sentence(found, "fp32")


def test_every_round_and_batch_size_has_prompts_of_its_own():
    options = engines_compare.CompareOptions("lab-recall", "", "1,4", 16, 4, 2, "fp32", 1, "")
    assert engine_model("lab-recall", "fp32", 20) == LAB
    words = engines_compare._prompts(options, _smollm(), [1, 4])
    found = [prompt.ids for batch in (1, 4) for number in range(3) for prompt in words(batch, number)]
    assert len(set(found)) == len(found) == 15
    assert {len(ids) for ids in found} == {16}


def _smollm() -> EngineModel:
    from suite.models.loaders import pinned

    return EngineModel(pinned.NAME, str(pinned.ensure()), "bf16", 2048)


def test_an_engine_out_of_memory_says_so(tmp_path: Path):
    """Its address space is limited to less than torch needs."""
    import sys

    class Small(NativeEngine):
        def python(self) -> Path:
            script = tmp_path / "python"
            script.write_text(f'#!/bin/sh\nulimit -v 600000\nexec {sys.executable} "$@"\n')
            script.chmod(0o755)
            return script

    with pytest.raises(EngineError) as caught, Small(LAB, 1, Limits(60)):
        pass
    assert caught.value.kind == "out of memory"


@pytest.mark.parametrize(
    ("reason", "kind"), [("", "out of memory"), (": Operation not permitted", "did not start")], ids=["room", "leave"]
)
def test_a_library_that_cannot_be_mapped(reason: str, kind: str, tmp_path: Path) -> None:
    """What CUDA's build of torch says without room; on a disk from which nothing may run it says that as well."""
    said = f"ImportError: libtorch_cuda.so: failed to map segment from shared object{reason}"

    class Unmapped(NativeEngine):
        def python(self) -> Path:
            script = tmp_path / "python"
            script.write_text(f'#!/bin/sh\necho "{said}" >&2\nexit 1\n')
            script.chmod(0o755)
            return script

    with pytest.raises(EngineError) as caught, Unmapped(LAB, 1, Limits(60)):
        pass
    assert caught.value.kind == kind
