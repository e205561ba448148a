"""The default model itself: the same logits, tokens and answers as `transformers`, and quick to load."""

from __future__ import annotations

import time

import pytest
import torch
import transformers

from suite.models.attention import DenseAttention
from suite.models.generation import generate
from suite.models.language_model import LanguageModel
from suite.models.loaders import load_model, pinned
from tests.models.small import RecordingMeter, equal_chunks, our_logits
from workloads.schema import Request

pytestmark = pytest.mark.model

TEXT = """The lighthouse on Gull Rock was built in 1868, after three ships were lost in a single winter. Its first
keeper, a retired sailor named Aldous Finch, kept a diary of the weather, the birds and the ships that
passed. "Wind south-west, force 7," he wrote on 3 March 1871; "two brigs and a steamer, all safe." The lamp
burned rape oil until 1902, when it was converted to paraffin, and electricity came only in 1957. Today the
tower is automatic: its light, visible for 22 miles, is watched from a control room 140 km away, and the
keeper's cottage is let to visitors from April to October. In summer some 4,000 people climb the 163 steps;
the view, they say, is worth every one of them. Finch's diaries are kept in the town's museum, where
children may turn the pages of a copy. The last entry reads: "Fog. Bell rung all night. Nobody came."
"""


@pytest.fixture(scope="module")
def model() -> LanguageModel:
    return load_model("smollm2-135m", "fp32")


@pytest.fixture(scope="module")
def reference() -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(pinned.ensure(), dtype=torch.float32).eval()


def test_tokens_equal_those_of_transformers(model: LanguageModel) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(pinned.ensure())
    for text in (TEXT, "x = 12345\n    return x   678", "naïve 日本語 🙂", ""):
        assert model.tokenizer.encode(text) == theirs.encode(text, add_special_tokens=False)
        assert model.tokenizer.decode(model.tokenizer.encode(text)) == text
        chat = theirs.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)
        assert model.tokenizer.prompt(text, chat=True) == chat["input_ids"]


def test_digits_are_split_as_in_the_original_tokenizer(model: LanguageModel) -> None:
    """SmolLM2's own tokenizer.json splits every digit off before the byte-level rule."""
    pieces = [model.tokenizer.decode([i]) for i in model.tokenizer.encode("in   1987")]
    assert pieces == ["in", "   ", "1", "9", "8", "7"]


def test_logits_on_real_text(model: LanguageModel, reference: transformers.PreTrainedModel) -> None:
    ids = torch.tensor(model.tokenizer.encode(TEXT))
    with torch.inference_mode():
        expected = reference(ids[None]).logits[0]
    for chunks in ([len(ids)], equal_chunks(len(ids), 64), [len(ids) - 20] + [1] * 20):
        assert (our_logits(model.decoder, ids, chunks) - expected).abs().max() < 1e-3


def test_greedy_continuation_of_64_tokens(model: LanguageModel, reference: transformers.PreTrainedModel) -> None:
    ids = torch.tensor([model.tokenizer.encode(TEXT)])
    theirs = reference.generate(ids, max_new_tokens=64, min_new_tokens=64, do_sample=False, pad_token_id=2)
    request = Request(id="r", task="t", metric="m", prompt=TEXT, max_new_tokens=64)
    (ours,) = generate(model, DenseAttention(model.config), [request], RecordingMeter())
    assert list(ours.token_ids) == theirs[0, ids.shape[1] :].tolist()


def test_bf16_agrees_on_most_tokens(model: LanguageModel) -> None:
    ids = torch.tensor(model.tokenizer.encode(TEXT))
    exact = our_logits(model.decoder, ids, [len(ids)])
    rounded = our_logits(load_model("smollm2-135m", "bf16").decoder, ids, [len(ids)])
    assert (rounded - exact).abs().mean() < 0.15
    assert (rounded.argmax(-1) == exact.argmax(-1)).float().mean() > 0.93


def test_it_answers_sensibly(model: LanguageModel) -> None:
    question = "What is the capital of France? Answer in one word."
    request = Request(id="r", task="t", metric="m", prompt=question, chat=True, max_new_tokens=24)
    (answer,) = generate(model, DenseAttention(model.config), [request], RecordingMeter())
    assert "Paris" in answer.text
    assert answer.stop_reason == "eos"


def test_a_later_load_is_quick() -> None:
    pinned.ensure()
    start = time.process_time()
    load_model("smollm2-135m", "bf16")
    assert time.process_time() - start < 2.0
