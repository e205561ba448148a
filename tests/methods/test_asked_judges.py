"""Language models as judges: what they are asked, what their verdicts are, and what the ledger says of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from suite.harness.meter import RequestMeter
from suite.methods.search import sampler
from suite.methods.search.asks import Scoring
from suite.methods.search.best_of_n import BestOfN
from suite.methods.search.judges.asked import PROMPTS, YES_NO, verdict
from suite.methods.search.ledger import Ledger
from suite.methods.search.sampler import NativeSampler
from suite.methods.search.trace import Problem, Trace
from suite.methods.search.verifier import make_judge
from tests.methods.support import CONFIG, tiny_model
from workloads.schema import Request

LONG = replace(CONFIG, window=4096)


@pytest.fixture(scope="module")
def model():
    return tiny_model(LONG)


def solution(text: str, number: int = 0) -> Trace:
    root = Trace(Problem(f"p{number}", "How many?", (1, 2), 64))
    return Trace(root.problem, root, tuple(text.encode()), text)


def judged(model, name: str, traces: list[Trace]):
    judge, ledger = make_judge(name), Ledger()
    assert judge.refusal(model) is None
    judge.prepare(model)
    judge.begin(model)
    judge.lend(NativeSampler(model, RequestMeter()))
    return judge.score([Scoring(traces, ledger)])[0], ledger


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("It is right.\nSure", 1.0),
        ("It is wrong.\nVerdict: Impossible.", 0.0),
        ("Sure, the first step holds, and it is likely.\nLikely", 0.5),
        ("Sure\nThen again, no.\n**Impossible**", 0.0),
        ("I am sure that this is impossible.", None),
        ("Surely\n", None),
    ],
)
def test_a_verdict_is_the_last_line_that_is_one(text, value):
    """Words inside the reasoning are none: the official parser counts them."""
    assert verdict(text) == value


def test_yes_or_no_is_a_prefill_and_nothing_is_written(model):
    """By hand: the logits behind the prompt, softmax over the tokens that stand for either word."""
    ((score,),), ledger = judged(model, "llm_judge", [solution("7\n#### 7")])
    ids = model.tokenizer.encode(YES_NO.format(question="How many?", solution="7\n#### 7"))
    cache = model.decoder.new_cache(1, len(ids))
    from suite.models.attention import DenseAttention

    with torch.inference_mode():
        said = model.decoder(torch.tensor([ids]), cache, DenseAttention(model.config))[0].softmax(dim=-1)
    yes, no = (sum(said[ord(letter)] for letter in letters) for letters in ("Yy", "Nn"))
    assert score == pytest.approx(float(yes / (yes + no)), abs=1e-4)
    assert (ledger.judge_calls, ledger.verifier_tokens, ledger.generated) == (1, len(ids), 0)
    assert ledger.verifier_flops == model.config.flops(len(ids), 0)


def test_the_same_solution_is_asked_about_once(model):
    scores, ledger = judged(model, "llm_judge", [solution("7"), solution("7"), solution("8"), solution("7", 1)])
    assert ledger.judge_calls == 3
    assert scores[0] == scores[1] != scores[2]


def _says(monkeypatch, *texts: str) -> None:
    """Rows of one draw write these texts in turn, again and again."""

    def choose(logits, rows):
        said = [(texts[i % len(texts)] + "\0").encode() for i in range(len(rows))]
        return torch.tensor([text[len(row.ids)] for text, row in zip(said, rows, strict=True)], dtype=torch.int32)

    monkeypatch.setattr(sampler, "_choose", choose)


def test_an_evaluation_is_the_mean_of_its_outputs_verdicts(monkeypatch):
    """Of those that have one; what was written is in the ledger of the judge, and no sample of the search."""
    model = tiny_model(replace(LONG, eos_ids=(0,)))
    _says(monkeypatch, "so\nSure", "so\nLike", "so\nSure")
    found, ledger = judged(model, "self_process_value:outputs=3:tokens=20", [solution("7\n#### 7")])
    assert found == [(1.0,)]
    asked = len(model.tokenizer.encode(PROMPTS["process/1"].format(question="How many?", solution="7\n#### 7")))
    assert (ledger.judge_calls, ledger.verifier_tokens, ledger.generated) == (3, asked + 3 * 8, 0)
    flops = model.config.flops
    assert ledger.verifier_flops == flops(asked - 1, 0) + 3 * (flops(asked - 1 + 8, 0) - flops(asked - 1, 0))
    _says(monkeypatch, "who knows")
    assert judged(model, "self_process_value:tokens=20", [solution("7")])[0] == [(0.0,)]


def test_a_result_is_judged_without_its_solution(monkeypatch):
    model = tiny_model(replace(LONG, eos_ids=(0,)))
    _says(monkeypatch, "Likely")
    seen = []
    feed = type(model.tokenizer).prompt
    monkeypatch.setattr(
        type(model.tokenizer), "prompt", lambda self, text, chat: seen.append(text) or feed(self, text, chat)
    )
    traces = [solution("by guessing\n#### 7"), solution("nothing at all")]
    found, ledger = judged(model, "self_result_value:outputs=2", traces)
    assert found == [(0.5,), (0.0,)]
    assert ledger.judge_calls == 2
    assert "7" in seen[0]
    assert "guessing" not in "".join(seen)


def test_a_judge_never_sees_a_reference(model, monkeypatch):
    """A request's reference stands in none of the texts that a judge reads."""
    seen = []
    encode = type(model.tokenizer).encode
    monkeypatch.setattr(type(model.tokenizer), "encode", lambda self, text: seen.append(text) or encode(self, text))
    request = Request(
        id="a", task="", prompt="How many?", references=("SECRET",), metric="", max_new_tokens=8, metadata={}
    )
    method, config = BestOfN(), BestOfN.Config(samples=2, verifier="llm_judge")
    method.prepare(model, config)
    with method.attach(model, config) as generator:
        (done,) = generator.generate([request], RequestMeter())
    assert done.search.judge_calls == done.search.verifier_passes == 2
    assert any("proposed solution" in text for text in seen)
    assert "SECRET" not in "".join(seen)


def test_a_model_without_the_words_is_refused_as_a_judge():
    class Numbers:
        def encode(self, text):
            return [5]

    model = replace(tiny_model(), tokenizer=Numbers())
    assert "no tokens for Yes and No" in make_judge("llm_judge").refusal(model)
