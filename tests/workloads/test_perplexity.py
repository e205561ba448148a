"""Sliding windows: the text is kept to the byte, and no word is scored twice."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workloads.support import SHARED, completion, take
from workloads.perplexity import Perplexity, PerplexityConfig
from workloads.schema import DataError

WIKITEXT = SHARED / "wikitext-2" / "test.txt"


def windows(path: Path, context: int, stride: int, limit: int = 1000) -> Perplexity:
    return Perplexity(PerplexityConfig(data=path, context_words=context, stride_words=stride))


@settings(max_examples=30)
@given(st.text(alphabet="ab \n", min_size=60, max_size=200), st.integers(1, 8), st.integers(1, 5))
def test_every_word_after_the_first_window_is_scored_once(
    tmp_path_factory: pytest.TempPathFactory, text: str, context: int, stride: int
) -> None:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(text)
    words = len(text.split())
    if words < context + stride:
        with pytest.raises(DataError, match=f"has {words} words"):
            windows(path, context, stride)
        return
    requests = sorted(take(windows(path, context, stride), "text", 1000), key=lambda r: r.metadata["first_word"])
    assert [r.metadata["first_word"] for r in requests] == list(range(0, words - context - stride + 1, stride))
    scored = requests[0].prompt + "".join(r.target or "" for r in requests)
    assert text.startswith(scored)
    assert len(text[len(scored) :].split()) < stride


def test_windows_come_in_a_seeded_order(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text(" ".join(str(i) for i in range(500)))
    orders = [[r.metadata["first_word"] for r in take(windows(path, 5, 5), "text", 20, seed)] for seed in (0, 1)]
    assert orders[0] != orders[1]
    assert orders[0] != sorted(orders[0])


def test_score_is_the_mean_negative_log_likelihood() -> None:
    workload = Perplexity()
    (request,) = take(workload, "text", 1)
    assert workload.score(completion(request, logprobs=(-1.0, -3.0)), request) == 2.0


def test_generated_text_has_the_window_asked_for() -> None:
    config = PerplexityConfig(context_words=50, stride_words=7)
    for request in take(Perplexity(config), "text", 3):
        assert request.target is not None
        assert (len(request.prompt.split()), len(request.target.split())) == (50, 7)
        assert request.target.startswith((" ", "\n"))
        assert not request.prompt.endswith(" ")


@pytest.mark.skipif(not WIKITEXT.is_file(), reason="WikiText-2 is not beside the checkout")
def test_wikitext_is_a_data_file() -> None:
    workload = windows(WIKITEXT, 300, 50)
    assert workload.source == str(WIKITEXT)
    text = WIKITEXT.read_text()
    assert all(request.prompt + (request.target or "") in text for request in take(workload, "text", 3))
