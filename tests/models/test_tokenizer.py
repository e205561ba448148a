"""`HFTokenizer` gives what `transformers` gives, and says in one sentence what is wrong with a tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers

from suite.errors import InputError
from suite.models.language_model import LanguageModel
from suite.models.tokenizer import HFTokenizer
from tests.models.small import TEMPLATE, tiny_tokenizer

TEXTS = ["the quick brown fox", "", " leading and trailing ", "many\n\nlines\n", "naïve 日本語 🙂", "<|end|> inside"]


@pytest.fixture(scope="module")
def reference(checkpoint: Path) -> transformers.PreTrainedTokenizerBase:
    return transformers.AutoTokenizer.from_pretrained(checkpoint)


@pytest.mark.parametrize("text", TEXTS)
def test_ids_equal_those_of_transformers(
    text: str, tiny: LanguageModel, reference: transformers.PreTrainedTokenizerBase
) -> None:
    assert tiny.tokenizer.encode(text) == reference.encode(text, add_special_tokens=False)
    assert tiny.tokenizer.prompt(text, chat=False) == reference.encode(text)
    chat = reference.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True)
    assert tiny.tokenizer.prompt(text, chat=True) == chat["input_ids"]


@pytest.mark.parametrize("text", TEXTS[:5])
def test_decode_undoes_encode(text: str, tiny: LanguageModel) -> None:
    assert tiny.tokenizer.decode(tiny.tokenizer.encode(text)) == text


def test_special_tokens_leave_no_trace_in_text(tiny: LanguageModel) -> None:
    ids = tiny.tokenizer.prompt("the fox", chat=False)
    assert ids[0] == 0
    assert tiny.tokenizer.decode([*ids, 1]) == "the fox"


def test_without_a_template_chat_is_the_plain_prompt() -> None:
    tokenizer = HFTokenizer(tiny_tokenizer().backend, None, {})
    assert tokenizer.prompt("the fox", chat=True) == tokenizer.prompt("the fox", chat=False)


def test_the_template_may_be_in_tokenizer_config(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.save(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    for template in (TEMPLATE, [{"name": "tools", "template": "x"}, {"name": "default", "template": TEMPLATE}]):
        end = {"content": "<|end|>", "special": True}
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": template, "eos_token": end}))
        loaded = HFTokenizer.from_directory(tmp_path)
        assert loaded.special == {"eos_token": "<|end|>"}
        assert loaded.prompt("the fox", chat=True) == tokenizer.prompt("the fox", chat=True)


def test_a_tokenizer_that_truncates_or_pads_is_stopped_from_it(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.backend.enable_truncation(3)
    tokenizer.backend.enable_padding(length=100)
    tokenizer.backend.save(str(tmp_path / "tokenizer.json"))
    loaded = HFTokenizer.from_directory(tmp_path)
    assert loaded.decode(loaded.encode("the quick brown fox")) == "the quick brown fox"
    assert len(loaded.encode("the quick brown fox")) < 20


def rendered(template: str) -> str:
    tokenizer = HFTokenizer(tiny_tokenizer().backend, template, {"bos_token": "B"})
    return tokenizer.decode(tokenizer.prompt("it's <b>", chat=True))


def test_template_features_of_real_models() -> None:
    assert rendered("{{ messages[0] | tojson }}") == """{"role": "user", "content": "it's <b>"}"""
    assert rendered("{% for m in messages %}{% break %}{% endfor %}{{ bos_token }}") == "B"
    assert rendered("  {% if true %}\nx{% endif %}\n") == "x"
    assert rendered("{% generation %}{{ messages[0].content }}{% endgeneration %}") == "it's <b>"
    assert rendered("{{ strftime_now('%Y') if strftime_now is defined else 'undated' }}") == "undated"


BAD_TEMPLATES = {
    "syntax": ("{% for %}", "cannot be parsed"),
    "refuses": ("{{ raise_exception('no system turn') }}", "cannot be rendered: no system turn"),
    "escapes the sandbox": ("{{ messages.__class__.__mro__ }}", "cannot be rendered"),
    "changes its input": ("{{ messages.append(1) }}", "cannot be rendered"),
}


@pytest.mark.parametrize("name", BAD_TEMPLATES)
def test_bad_template_is_one_sentence(name: str) -> None:
    template, message = BAD_TEMPLATES[name]
    with pytest.raises(InputError, match=message):
        rendered(template)


def test_missing_and_broken_files_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no tokenizer: tokenizer\.json is missing"):
        HFTokenizer.from_directory(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0"')
    with pytest.raises(InputError, match=r"tokenizer\.json is not a readable tokenizer"):
        HFTokenizer.from_directory(tmp_path)
    tiny_tokenizer().save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(InputError, match=r"tokenizer_config\.json is not valid JSON"):
        HFTokenizer.from_directory(tmp_path)
