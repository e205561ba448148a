"""Token counts after the fact: a tokenizer of one token a word beside servers that count words, or do not count."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from suite.cli import run
from suite.engines.load import driver
from suite.engines.load.null_server import null_server
from suite.engines.load.plan import Item, Plan
from suite.engines.load.records import Record, read
from suite.engines.load.recount import recount
from suite.engines.load.streams import Stream
from suite.engines.load.summary import summarise
from suite.engines.load.target import Target
from suite.models.tokenizer import HFTokenizer

STREAMS = {
    "multi": Stream(tokens_per_event=3),
    "usageless": Stream(usage="none"),
    "near": Stream(words=(" a", " b", " c d")),
    "glued": Stream(words=(" a", " b", " c d e f")),
}
TEMPLATE = "{% for m in messages %}{{ m.role }} {{ m.content }} end {% endfor %}go"


@pytest.fixture(scope="module")
def server():
    with null_server(STREAMS) as (url, _):
        yield url


def words(template=None):
    """A tokenizer that counts words."""
    backend = Tokenizer(WordLevel({"?": 0}, unk_token="?"))
    backend.pre_tokenizer = WhitespaceSplit()
    return HFTokenizer(backend, template, {})


@pytest.fixture
def load(server, tmp_path, monkeypatch, capsys):
    """`suite load` of ten requests for six tokens each, with a tokenizer saved in the current directory."""
    monkeypatch.chdir(tmp_path)
    words(TEMPLATE).save(tmp_path)

    def call(model, *arguments):
        short = ["--set", "lengths=fixed", "--set", "input_words=5", "--set", "output_words=6"]
        head = ["load", "--base-url", server, "--served-model", model, "--rate", "100", "-n", "10", *short]
        code = run([*head, "--tokenizer", ".", *arguments])
        return code, *capsys.readouterr()

    return call


def test_counts_that_agree_are_said_to(load, tmp_path):
    code, out, err = load("multi", "--json")
    metrics = json.loads(out)["metrics"]
    assert code == 0, err
    agreed = {"checked": 10, "agree": 10, "share": 1.0, "largest_difference": 0}
    assert metrics["token_check"] == {"prompt": agreed, "completion": agreed}
    assert metrics["token_source"] == {"usage": 10}
    assert not any("differ" in remark for remark in json.loads(out)["remarks"])
    assert summarise(read(tmp_path / "load.records.jsonl"), 10) == metrics


def test_without_usage_the_tokenizer_counts_and_the_report_says_so(load, tmp_path):
    code, out, err = load("usageless", "--json", "--export", "vllm.json")
    found = json.loads(out)
    assert code == 0, err
    assert found["metrics"]["token_source"] == {"tokenizer": 10}
    assert (found["metrics"]["total_input_tokens"], found["metrics"]["total_output_tokens"]) == (50, 60)
    assert found["metrics"]["token_check"]["completion"]["checked"] == 0
    assert "the server sends no usage for 10 requests: their tokens are those of ." in found["remarks"]
    assert summarise(read(tmp_path / "load.records.jsonl"), 10) == found["metrics"]
    exported = json.loads((tmp_path / "vllm.json").read_text())
    assert (exported["tokenizer_id"], exported["output_lens"]) == (".", [6] * 10)


def test_counts_that_differ_are_a_warning_with_the_largest_difference(load):
    """Six tokens, two of them of four words each: the words are twelve."""
    code, out, _ = load("glued")
    text = " ".join(out.split())
    assert code == 0
    assert "completion tokens differ by up to 6 between the server and ." in text
    assert "0 of 10 (0.0%), off by 6 at most" in text
    assert "10 of 10 (100.0%), off by 0 at most" in text
    assert "prompt tokens differ" not in text


def test_an_answer_that_is_cut_a_little_otherwise_is_no_warning(load):
    found = json.loads(load("near", "--json")[1])
    assert found["metrics"]["token_check"]["completion"]["largest_difference"] == 2
    assert not any("differ" in remark for remark in found["remarks"])


def test_a_chat_prompt_is_counted_with_its_template(load):
    """The null server counts the five words of the message alone: the template's three are missing."""
    found = json.loads(load("multi", "--endpoint", "chat", "--json")[1])
    assert found["metrics"]["token_check"]["prompt"] == {
        "checked": 10, "agree": 0, "share": 0.0, "largest_difference": 3,
    }  # fmt: skip
    assert any(remark.startswith("prompt tokens differ by up to 3") for remark in found["remarks"])


@pytest.mark.parametrize("endpoint", ["completions", "chat"])
def test_a_later_turn_is_counted_with_the_turns_before_it(server, tmp_path, endpoint):
    items = [Item(i, "two words", 5, 0.01 if i == 0 else None, session="a", turn=i) for i in range(3)]
    plan, target = Plan(tuple(items), "turns"), Target(server, "multi", endpoint, (("include_usage", True),))
    done = driver.run(plan, target, tmp_path / "r.jsonl", timeout_s=10, workers=1).records
    plain = "{% for m in messages %}{{ m.content }} {% endfor %}"
    found = recount(plan, done, endpoint, words(plain))
    assert [r.n_tokenizer_in for r in found] == [r.n_in for r in done] == [2, 9, 16]


def test_an_answer_cut_otherwise_is_no_short_answer():
    record = Record(0, "measure", 0.0, 0.0, 1.0, (0.1,), n_in=4, n_out=6, source="usage", asked_out=6, text="a b c d e")
    plan = Plan((Item(0, "x y z w", 6, 0.0),), "one")
    (near,) = recount(plan, [record], "completions", words())
    (alone,) = recount(plan, [replace(record, n_in=None, n_out=None, source="unknown")], "completions", words())
    check = summarise([near], 1)["token_check"]["completion"]
    assert (check["agree"], check["largest_difference"]) == (0, 1)
    assert (alone.n_in, alone.n_out, alone.source) == (4, 5, "tokenizer")
    assert [summarise([r], 1)["short_answers"] for r in (near, alone)] == [0, 0]


def test_a_failed_request_is_left_as_it_is():
    record = Record(0, "measure", 0.0, 0.0, 1.0, (0.1,), error="timeout: x", text="a b")
    assert recount(Plan((Item(0, "x", 6, 0.0),), "one"), [record], "completions", words()) == [record]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--tokenizer", "nowhere"], "unknown model 'nowhere'"),
        (["--tokenizer", "empty"], "tokenizer.json is missing"),
        (["--endpoint", "chat", "--tokenizer", "bare"], "has no chat template"),
    ],
)
def test_a_tokenizer_that_cannot_count_is_one_sentence_before_anything_is_sent(load, tmp_path, arguments, told):
    for name in ("empty", "bare"):
        (tmp_path / name).mkdir()
    words().save(tmp_path / "bare")
    code, out, err = load("multi", *arguments)
    assert (code, out) == (2, "")
    assert told in err
    assert err.count("\n") == 1
    assert not (tmp_path / "load.records.jsonl").exists()
