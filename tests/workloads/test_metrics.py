"""LongBench's metrics: golden values (`_workloads.md` sections 1 and 7) and what must hold for any text."""

from __future__ import annotations

import sys
from difflib import SequenceMatcher

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from workloads.metrics import (
    METRICS,
    classification,
    count,
    edit_similarity,
    f1,
    f1_zh,
    first_line,
    retrieval,
    rouge_l,
    rouge_l_parts,
    rouge_l_zh,
)

WORDS = st.lists(st.sampled_from(["cat", "dog", "the", "mat.", "12", "Paragraph", "段落", "猫", "."]), max_size=8)


def test_rouge_is_the_packages_summary_level_on_sets() -> None:
    parts = rouge_l_parts("the cat sat on the mat", "the cat is on the mat. it sat")
    assert [round(parts[key], 4) for key in ("r", "p", "f")] == [0.7143, 1.0, 0.8333]


@pytest.mark.parametrize("text", ["", " ", ".", "..."])
def test_rouge_of_an_empty_text_is_zero(text: str) -> None:
    assert rouge_l(text, "a reference") == 0.0
    assert rouge_l("a prediction", text) == 0.0


def test_rouge_of_a_text_longer_than_the_stack() -> None:
    long = " ".join(f"w{i}" for i in range(2 * sys.getrecursionlimit()))  # the package recurses once a word
    assert rouge_l(long, "another text") == 0.0


def test_rouge_zh_works_on_words_and_does_not_split_at_the_chinese_stop() -> None:
    assert rouge_l_zh("我爱北京。", "我爱上海。") == pytest.approx(3 / 4)  # 我 爱 。 of four words each
    assert rouge_l_zh("", "我爱上海") == 0.0


@pytest.mark.parametrize(
    ("prediction", "reference", "expected"),
    [
        ("The cat!", "cat", 1.0),
        ("a cat and the dog", "cat", 0.5),  # 1 of 3 words, articles gone: p 1/3, r 1
        ("cat cat", "cat", 2 / 3),
        ("theatre", "the theatre", 1.0),
        ("", "cat", 0.0),
    ],
)
def test_f1(prediction: str, reference: str, expected: float) -> None:
    assert f1(prediction, reference) == pytest.approx(expected)


def test_f1_zh_drops_punctuation_and_blanks() -> None:
    assert f1_zh("“北京”！ ", "北京") == 1.0
    assert f1_zh("北京大学", "北京") == 0.0  # one jieba word, another word
    assert f1_zh("北京 和 上海", "上海") == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("prediction", "expected"),
    [("Paragraph 12 or 3", 0.5), ("Paragraph 3", 1.0), ("3 3 4", 2 / 3), ("none", 0.0), ("Paragraph 33", 0.0)],
)
def test_retrieval(prediction: str, expected: float) -> None:
    assert retrieval(prediction, "Paragraph 3") == pytest.approx(expected)
    assert retrieval(prediction, "段落3") == pytest.approx(expected)


def test_count() -> None:
    assert count("There are 7 of 9.", "7") == 0.5
    assert count("seven", "7") == 0.0


def test_classification_shares_the_point_between_named_classes() -> None:
    classes = ["Food", "Animal", "Tool"]
    assert classification("Animal", "Animal", classes) == 1.0
    assert classification("Animal or Food", "Animal", classes) == 0.5
    assert classification("Food", "Animal", classes) == 0.0
    assert classification("", "Animal", classes) == 0.0


def test_classification_drops_names_inside_the_true_one() -> None:
    assert classification("Other location", "Other location", ["location", "Other location"]) == 1.0
    assert classification("location", "Other location", ["location", "Other location"]) == 0.0


def test_released_loop_skips_the_neighbour_of_a_dropped_name() -> None:
    classes = ["a", "ab", "abc"]
    assert classification("abc", "abc", classes) == 1.0
    assert classification("abc", "abc", classes, released_loop=True) == 0.5


@pytest.mark.parametrize(
    ("prediction", "line"),
    [
        ("\n\nx = 1\ny = 2", "x = 1"),
        ("```python\n# set x\n// set x\nx = 1", "x = 1"),
        ("# only a comment", ""),
    ],
)
def test_edit_similarity_scores_the_first_line_of_code(prediction: str, line: str) -> None:
    expected = round(100 * SequenceMatcher(None, line, "x = 10").ratio()) / 100
    assert edit_similarity(prediction, "x = 10") == expected


def test_edit_similarity_is_rounded_as_fuzzywuzzy_does() -> None:
    assert edit_similarity("abc", "abd") == 0.67


def test_first_line_rule() -> None:
    assert first_line("\n\nAnimal\nQuestion: more") == "Animal"
    assert first_line("") == ""


@settings(max_examples=60)
@given(WORDS, WORDS)
def test_every_metric_stays_between_0_and_1(prediction: list[str], reference: list[str]) -> None:
    for metric in METRICS.values():
        assert 0.0 <= metric(" ".join(prediction), " ".join(reference), ["cat", "dog"]) <= 1.0


@settings(max_examples=60)
@given(WORDS, WORDS)
def test_f1_is_symmetric(prediction: list[str], reference: list[str]) -> None:
    one, other = " ".join(prediction), " ".join(reference)
    assert f1(one, other) == pytest.approx(f1(other, one))
