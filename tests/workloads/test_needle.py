"""Needle in a haystack: the grid, the realised depth, and values that are unique."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.workloads.support import completion, take
from workloads.lengths import estimate_tokens
from workloads.needle import Needle, NeedleConfig, grid, keyword_recall
from workloads.schema import Request


def whole(**options: int) -> list[Request]:
    return take(Needle(NeedleConfig(**options)), "grid", 10_000)


def haystack(request: Request) -> tuple[str, str]:
    """The text before and after the needle."""
    (low, high), *_ = request.metadata["evidence_spans"]
    text = request.prompt.split("\n\n")[1]
    start = request.prompt.index(text)
    return request.prompt[start:low], request.prompt[high : start + len(text)]


def test_every_cell_gets_its_needles_and_no_value_comes_twice() -> None:
    requests = whole(lengths=3, depths=4, needles_per_cell=5, max_length=600)
    cells = Counter((r.metadata["context_length"], r.metadata["depth_percent"]) for r in requests)
    assert set(cells.values()) == {5}
    assert len(cells) == 12
    assert len({r.references[0] for r in requests}) == len(requests)


@given(st.integers(1, 12), st.integers(1, 12))
@settings(max_examples=40)
def test_grid_holds_every_cell_once_and_every_depth_early(lengths: int, depths: int) -> None:
    cells = grid(NeedleConfig(min_length=300, max_length=9000, lengths=lengths, depths=depths))
    assert len(set(cells)) == len(cells) == lengths * depths
    assert len({cell.depth for cell in cells[:depths]}) == depths
    assert len({cell.length for cell in cells[:lengths]}) == lengths


def test_needle_stands_right_after_a_full_stop_at_the_depth_it_reports() -> None:
    for request in whole(needles_per_cell=1):
        before, after = haystack(request)
        assert before == "" or before.endswith(". ")
        total = estimate_tokens(before) + estimate_tokens(after)
        assert request.metadata["realised_depth_percent"] == pytest.approx(
            100 * estimate_tokens(before) / total, abs=0.5
        )


def test_the_move_to_the_full_stop_is_backwards_and_less_than_a_sentence() -> None:
    for request in whole(needles_per_cell=2):
        moved = request.metadata["depth_percent"] - request.metadata["realised_depth_percent"]
        assert 0 <= moved < 100 * 25 / (request.metadata["context_length"] - 250)


def test_depths_0_and_100_are_the_very_ends() -> None:
    ends = {request.metadata["depth_percent"]: haystack(request) for request in whole(needles_per_cell=1, depths=2)}
    assert ends[0][0] == ""
    assert ends[100][1] == ""


def test_prompt_leaves_room_for_the_answer() -> None:
    for request in whole(needles_per_cell=1):
        assert 0.5 < estimate_tokens(request.prompt) / request.metadata["context_length"] < 1.0


def test_value_stands_once_in_the_prompt() -> None:
    assert all(request.prompt.count(request.references[0]) == 1 for request in whole(needles_per_cell=1))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It is {value}.", 100.0),
        ("{grouped}", 100.0),
        ("1{value}", 0.0),
        ("{value}0", 0.0),
        ("It is 42.", 0.0),
    ],
)
def test_score_wants_the_exact_value(text: str, expected: float) -> None:
    workload = Needle()
    (request,) = take(workload, "grid", 1)
    value = request.references[0]
    answer = text.format(value=value, grouped=f"{int(value):,}")
    assert workload.score(completion(request, answer), request) == expected


def test_keyword_recall_is_softer() -> None:
    (request,) = take(Needle(), "grid", 1)
    assert keyword_recall(completion(request, request.metadata["needle"]), request) == 100.0
    assert 0 < keyword_recall(completion(request, "The code word is 1."), request) < 100
    assert keyword_recall(completion(request, ""), request) == 0.0
