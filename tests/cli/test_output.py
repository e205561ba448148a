"""Tables where they do not fit."""

from __future__ import annotations

import pytest

from suite.commands.output import NAME, table
from suite.commands.run_table import _name, _ratio, print_spec_bench

COLUMNS = ["method", *(f"figure {i}" for i in range(12))]


def test_a_row_keeps_its_name_and_its_numbers_are_folded(capsys: pytest.CaptureFixture[str]) -> None:
    table("wide", COLUMNS, [["lookahead", *["1.32 [0.641, 2.14]"] * 12]])
    said = capsys.readouterr().out
    assert "lookahead" in said
    assert "[0.641," in said


def test_a_sentence_is_folded_and_its_number_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    table("wide", ["claim", "measured"], [["many words " * 40, "1.32 [0.641, 2.14]"]])
    assert "1.32 [0.641, 2.14]" in capsys.readouterr().out


def test_the_spec_bench_table_says_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    shared = {"questions": 3, "tokens_per_s": 43.3, "accepted": 2.39}
    rows = [
        {**shared, "method": "lookahead", "category": "overall", "speedup": 1.857, "spread": 0.021},
        {**shared, "method": "lookahead", "category": "qa", "speedup": 2.0, "spread": None},
        {**shared, "method": "ngram", "category": "overall", "speedup": 1.0, "spread": None},
    ]
    print_spec_bench(rows)
    out = capsys.readouterr().out
    title = " ".join(out.partition("┏")[0].split())
    assert "mean speed over dense's mean speed, prefill included" in title
    assert "not paired" in title
    line = next(line for line in out.splitlines() if "lookahead" in line)
    assert [cell.strip() for cell in line.strip("│").split("│")] == ["lookahead", "43.3", "2.39", "1.86 ± 0.021", "2"]
    assert next(line for line in out.splitlines() if "ngram" in line).rstrip("│ ").endswith("-")


def test_a_combinations_options_stand_below_its_name_in_lines_that_are_not_folded() -> None:
    name, *options = _name("rtn+streaming+lookahead(lookahead.decoding_length=8, streaming.sinks=4, a=1)").splitlines()
    assert name == "rtn+streaming+lookahead"
    assert options == ["(lookahead.decoding_length=8,", "streaming.sinks=4, a=1)"]
    assert max(map(len, options)) <= NAME
    assert _name("dense") == "dense"


def test_a_ratio_that_is_missing_is_not_one() -> None:
    """The baseline is 1; a search has no time per token, and no speed-up of it."""
    assert _ratio({}, "tpot") == "1"
    assert _ratio({"ttft": {"value": 0.5, "low": 0.4, "high": 0.6}}, "tpot") == "-"
