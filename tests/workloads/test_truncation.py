"""LongBench's middle truncation, and that the question survives it at every length."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workloads.generators.longbench import gen_longbench
from workloads.longbench import LongBench
from workloads.longbench_data import OWN_PROMPTS, load_templates
from workloads.longbench_tasks import TASKS
from workloads.schema import truncate_middle


class WordTokenizer:
    """One token a word with the blanks before it; decoding is exact."""

    def __init__(self) -> None:
        self._words: list[str] = []

    def encode(self, text: str) -> list[int]:
        words = re.findall(r"\s*\S+|\s+", text)
        self._words += words
        return list(range(len(self._words) - len(words), len(self._words)))

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(self._words[index] for index in ids)


class CharacterTokenizer:
    """One token a character, so that counts are exact."""

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))


@settings(max_examples=50)
@given(st.text(max_size=60), st.integers(min_value=2, max_value=70))
def test_keeps_both_ends_and_the_limit(text: str, limit: int) -> None:
    cut, before = truncate_middle(text, limit, CharacterTokenizer())
    assert before == len(text)
    assert len(cut) <= max(limit, min(before, limit))
    if before <= limit:
        assert cut == text
    else:
        half = limit // 2
        assert (cut[:half], cut[half:]) == (text[:half], text[len(text) - half :])


def test_retokenising_may_add_a_few_tokens_only() -> None:
    tokenizer = WordTokenizer()
    (request,) = LongBench().requests("qasper", 1, 0)
    for limit in range(100, 900, 50):
        cut, _ = truncate_middle(request.prompt, limit, tokenizer)
        assert len(tokenizer.encode(cut)) <= limit + 2


@pytest.mark.parametrize("task", TASKS)
def test_question_survives_at_every_length(task: str) -> None:
    (record,) = gen_longbench(0, task, 1, 1500)
    template = load_templates(OWN_PROMPTS, [task])[task]
    prompt = template.format(**record)
    ending = prompt[len(prompt) - len(template.split("{context}")[1].format(**record)) :]
    tokenizer: WordTokenizer | CharacterTokenizer = (
        CharacterTokenizer() if record["language"] == "zh" else WordTokenizer()
    )
    shortest = 2 * len(tokenizer.encode(ending)) + 2
    for limit in range(shortest, len(tokenizer.encode(prompt)) + 60, 60):
        cut, _ = truncate_middle(prompt, limit, tokenizer)
        assert cut.endswith(ending)
        assert record["input"] in cut


def test_right_truncation_would_drop_the_question() -> None:
    (request,) = LongBench().requests("qasper", 1, 0)
    tokenizer = WordTokenizer()
    ids = tokenizer.encode(request.prompt)
    question = request.prompt.rsplit("Question: ", 1)[1]
    assert question in truncate_middle(request.prompt, 300, tokenizer)[0]
    assert question not in tokenizer.decode(ids[:300])
