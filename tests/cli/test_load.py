"""`suite load` as a user calls it, against the bundled null server: runs, Ctrl-C, a killed server, mistakes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from suite.cli import run
from suite.engines.load.null_server import null_server
from suite.engines.load.records import read
from suite.engines.load.streams import Stream
from suite.engines.load.summary import summarise

STREAMS = {
    "plain": Stream(),
    "timed": Stream(pauses=(0.05,), gap_s=0.001),
    "broken": Stream(fail_after=1),
    "queue": Stream(pauses=(0.2,), slots=1),
    "narrow": Stream(pauses=(0.02,), slots=1),
}
SHORT = ["--set", "lengths=fixed", "--set", "input_words=6", "--set", "output_words=4"]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def server():
    with null_server(STREAMS) as (url, _):
        yield url


@pytest.fixture
def load(server, tmp_path, monkeypatch, capsys):
    """Runs the command in an empty directory; returns exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def call(model, *arguments, url=server):
        code = run(["load", "--base-url", url, "--served-model", model, *SHORT, *arguments])
        return code, *capsys.readouterr()

    return call


def wait_for_records(path, count):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if path.exists() and path.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.05)
    raise AssertionError(f"fewer than {count} records in {path}")


def hear_ctrl_c():
    """In the child: a shell's background jobs, and so the tests in one, ignore it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def wait_for_workers(pid):
    """The processes that a run has started: a worker, and the tracker `multiprocessing` starts before it."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        found = psutil.Process(pid).children(recursive=True)
        if any("spawn_main" in " ".join(child.cmdline()) for child in found):
            return found
        time.sleep(0.02)
    raise AssertionError("no worker was started")


def all_end(processes, seconds=5):
    """Whether they are gone soon: the tracker ends when it hears that those it served have."""
    deadline = time.monotonic() + seconds
    while any(alive(one) for one in processes):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def alive(process):
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_an_open_loop_is_reported_from_its_records(load, tmp_path):
    arguments = ["--rate", "100", "-n", "40", "--warmup", "5", "--cooldown", "3", "--slo", "ttft=5s", "--json"]
    code, out, err = load("timed", *arguments)
    found = json.loads(out)
    metrics = found["metrics"]
    assert code == 0, err
    assert found == json.loads((tmp_path / "load.json").read_text())
    assert (metrics["completed"], metrics["failed"], metrics["lost"]) == (40, 0, 0)
    assert (metrics["total_input_tokens"], metrics["total_output_tokens"]) == (240, 160)
    assert metrics["token_source"] == {"usage": 40}
    assert metrics["slo_attainment"] == 1.0
    records = read(tmp_path / "load.records.jsonl")
    assert [record.phase for record in records] == ["warmup"] * 5 + ["measure"] * 40 + ["cooldown"] * 3
    assert summarise(records, 40, {"ttft": 5000.0}) == metrics
    assert records[-1].t_sched == pytest.approx(48 / 100)
    assert metrics["median_ttft_send_ms"] >= 50
    assert "48/48 requests" in err


def test_the_table_says_what_a_person_must_know(load):
    code, out, _ = load("plain", "--rate", "200", "-n", "20", "--burstiness", "inf", "--slo", "ttft=9s")
    assert code == 0
    for part in ("constant arrivals, 200 requests/s", "client slip p99", "TTFT from sending", "100.0% of all due"):
        assert part in out
    assert "p99 of 20 requests is a guess" in out


def test_a_closed_loop_says_so_and_loses_nothing_on_more_workers_than_requests_in_flight(load):
    code, out, _ = load("plain", "--concurrency", "1", "--workers", "2", "-n", "10")
    assert code == 0
    assert "closed loop: nothing was sent while the server stalled" in out
    assert "scheduled arrival" not in out
    assert "client slip" not in out
    assert [line.split()[3] for line in out.splitlines() if "lost" in line] == ["0"]


def test_a_run_without_one_answer_is_reported_and_measured_nothing(load):
    code, out, err = load("broken", "--rate", "200", "-n", "10")
    assert code == 4
    assert "10 (server: 10)" in out
    assert "no request was answered in full" in err


def test_a_server_killed_in_the_middle_gives_one_report(load, tmp_path):
    with null_server(STREAMS) as (url, process):

        def kill():
            wait_for_records(tmp_path / "load.records.jsonl", 20)
            process.kill()

        killer = threading.Thread(target=kill)
        killer.start()
        arguments = ["--rate", "100", "-n", "200", "--slo", "ttft=20s", "--json"]
        code, out, err = load("plain", *arguments, url=url)
        killer.join()
    metrics = json.loads(out)["metrics"]
    assert code == 0, err
    assert metrics["completed"] >= 20
    assert metrics["failed"] > 0
    assert metrics["completed"] + metrics["failed"] == 200
    assert metrics["errors"] == {"connection": metrics["failed"]}
    assert metrics["slo_attainment"] == metrics["completed"] / 200
    assert "Traceback" not in err


def test_ctrl_c_ends_the_run_with_its_report(server, tmp_path):
    command = [sys.executable, "-m", "suite", "load", "--base-url", server, "--served-model", "plain", *SHORT]
    with subprocess.Popen(
        [*command, "--rate", "50", "-n", "3000", "--json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=hear_ctrl_c,
    ) as process:
        wait_for_records(tmp_path / "load.records.jsonl", 20)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
        out, err = process.communicate(timeout=60)
    found = json.loads(out)
    assert process.returncode == 130
    assert found["interrupted"]
    assert 20 <= found["metrics"]["completed"] < 3000
    assert found["metrics"]["lost"] == 0
    assert "Traceback" not in err


@pytest.mark.parametrize("early", ["before the first request", "with requests in flight"])
def test_an_early_ctrl_c_keeps_what_was_done_and_leaves_no_process(server, tmp_path, early):
    """One request at a time for 0.2 s, twenty a second: after the first answers most of what was sent is in flight.

    Ctrl-C reaches the driver alone: it is the driver that ends its workers.
    """
    command = [sys.executable, "-m", "suite", "load", "--base-url", server, "--served-model", "queue", *SHORT]
    with subprocess.Popen(
        [*command, "--rate", "20", "-n", "3000", "--json"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_ctrl_c,
    ) as process:
        started = wait_for_workers(process.pid)
        if early == "with requests in flight":
            wait_for_records(tmp_path / "load.records.jsonl", 2)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    found, records = json.loads(out), read(tmp_path / "load.records.jsonl")
    kept = [found["metrics"][kind] for kind in ("completed", "failed", "lost")]
    assert process.returncode == 130
    assert all_end(started)
    assert found["interrupted"]
    assert kept == [sum(r.ok for r in records), sum(r.error == "cancelled" for r in records), 0]
    if early == "with requests in flight":
        assert min(kept[:2]) >= 2
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "either --rate R (open loop) or --concurrency N"),
        (["--rate", "1", "--concurrency", "1"], "either --rate R (open loop) or --concurrency N"),
        (["--rate", "-1"], "a rate of -1 requests/s"),
        (["--rate", "1", "--burstiness", "0"], "a burstiness of 0"),
        (["--rate", "1", "--slo", "ttft=fast"], "METRIC=TIME"),
        (["--rate", "1", "--workload", "servng"], "did you mean 'serving'"),
        (["--rate", "1", "--set", "input_words=none"], "input_words"),
        (["--rate", "1", "--data", "nowhere.json"], "nowhere.json"),
        (["--rate", "1", "--endpoint", "batch"], "known: completions, chat"),
        (["--rate", "1", "--served-model", "gpt"], "no model 'gpt'; it serves: plain"),
        (["--rate", "1", "--base-url", "http://127.0.0.1:9"], "no OpenAI-compatible server answers"),
        (["--rate", "1", "--base-url", "127.0.0.1"], "no OpenAI-compatible server answers"),
        (["--rate", "1", "-n", "0"], "--requests"),
        (["--rate", "1", "-o", "/proc/load.json"], "-o"),
    ],
    ids=lambda value: " ".join(value[-2:]) if isinstance(value, list) else "",
)
def test_a_mistake_is_answered_by_one_sentence(load, arguments, told):
    code, out, err = load("plain", *arguments)
    assert code == 2
    assert told in err
    assert "Traceback" not in err
    assert out == ""


def test_a_sweep_finds_no_more_than_the_server_can_do(load, tmp_path):
    """One request at a time for 20 ms each: 50 requests/s, less on a busy machine, never more."""
    code, out, err = load("narrow", "--sweep", "--rate", "60", "--burstiness", "inf", "-n", "30", "--json")
    found = json.loads(out)
    assert code == 0, err
    assert found["sustained_rate"] <= 50 / 0.9  # 30 requests are few: growth is known to a few per cent
    assert found["too_much_rate"] <= 1.1 * found["sustained_rate"]
    assert "the queue grows" in found["points"][0]["failing"]
    assert len(list(tmp_path.glob("load.*rps.records.jsonl"))) == len(found["points"])


def test_a_sweep_chooses_its_rates_itself(load):
    assert "chooses the rates itself" in load("plain", "--sweep", "--concurrency", "2")[2]


BURSTGPT = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("t.csv", BURSTGPT + "5,ChatGPT,4,2,6,x\n6,ChatGPT,many,2,6,x\n", "t.csv, line 3: Request tokens is 'many'"),
        ("t.csv", BURSTGPT + "5,ChatGPT,4,2.5,6,x\n", "t.csv, line 2: Response tokens is '2.5'"),
        ("t.csv", BURSTGPT + "5,ChatGPT\n", "t.csv, line 2: Request tokens is nan"),
        ("t.csv", BURSTGPT + "5,ChatGPT,4,0,4,x\n", "no request of the trace has an answer"),
        ("t.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\nnoon,4,2\n", "t.csv, line 2: TIMESTAMP is 'noon'"),
        ("t.csv", "a,b\n1,2\n", "is no known trace"),
        ("t.csv", "a,b\n1,2,3,4\n1\n5,6,7,8,9\n", "t.csv"),
        ("t.jsonl", '{"timestamp": 0, "input_length": 4}\n', "t.jsonl, line 1: field 'output_length'"),
        ("absent.csv", None, "absent.csv"),
    ],
)
def test_a_bad_trace_is_answered_by_one_sentence(load, tmp_path, name, text, told):
    if text is not None:
        (tmp_path / name).write_text(text)
    code, out, err = load("plain", "--trace", name)
    assert code == 2
    assert told in err
    assert err.count("\n") == 1
    assert out == ""


def test_a_trace_is_not_replayed_in_a_closed_loop(load):
    assert "cannot follow it" in load("plain", "--trace", "t.csv", "--concurrency", "2")[2]


def test_a_trace_is_replayed_and_the_run_exported_as_vllm_would_write_it(load, tmp_path, capsys):
    (tmp_path / "t.csv").write_text(BURSTGPT + "90,a,3,5,8,x\n91,a,4,0,4,x\n10,b,6,1,7,x\n50,b,7,9,16,x\n")
    code, out, err = load("timed", "--trace", "t.csv", "--rate", "10", "--export", "vllm.json", "--json")
    assert code == 0, err
    assert "1 without an answer left out" in json.loads(out)["load"]
    records = read(tmp_path / "load.records.jsonl")
    assert [r.t_sched for r in records] == pytest.approx([0, 0.1, 0.2])  # 80 s for two gaps, at 10 requests/s
    assert [(r.n_in, r.n_out) for r in records] == [(6, 1), (7, 9), (3, 5)]
    found = json.loads((tmp_path / "vllm.json").read_text())
    assert (found["completed"], found["total_output_tokens"], found["output_lens"]) == (3, 15, [1, 9, 5])
    assert found["ttfts"] == pytest.approx([r.first - r.t_send for r in records])
    assert [len(gaps) for gaps in found["itls"]] == [0, 8, 4]
    assert found["mean_ttft_ms"] == pytest.approx(1e3 * sum(found["ttfts"]) / 3)
    assert found["duration"] == pytest.approx(max(r.t_done for r in records))
    assert run(["import", "load.json", "vllm.json", "--json"]) == 0
    ours, exported = (one["metrics"] for one in json.loads(capsys.readouterr().out)["runs"])
    assert exported["mean_ttft_send_ms"] == pytest.approx(ours["mean_ttft_send_ms"])
    assert (ours["completed"], exported["completed"], exported["mean_ttft_ms"]) == (3, 3, None)


def test_a_workload_that_scores_given_text_has_nothing_to_send(server, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["load", "--base-url", server, "--rate", "1", "--workload", "perplexity", "-n", "1"]) == 2
    assert "nothing to send" in capsys.readouterr().err


def test_a_file_with_too_few_requests_is_refused(server, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    talk = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    Path("talks.json").write_text(json.dumps([talk]))
    assert run(["load", "--base-url", server, "--rate", "1", "--data", "talks.json", "-n", "2"]) == 2
    assert "holds 1 requests, and 2 are wanted" in capsys.readouterr().err
