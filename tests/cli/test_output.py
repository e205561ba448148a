"""Tables where they do not fit."""

from __future__ import annotations

import pytest

from suite.commands.output import table

COLUMNS = ["method", *(f"figure {i}" for i in range(12))]


def test_a_row_keeps_its_name_and_its_numbers_are_folded(capsys: pytest.CaptureFixture[str]) -> None:
    table("wide", COLUMNS, [["lookahead", *["1.32 [0.641, 2.14]"] * 12]])
    said = capsys.readouterr().out
    assert "lookahead" in said
    assert "[0.641," in said


def test_a_sentence_is_folded_and_its_number_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    table("wide", ["claim", "measured"], [["many words " * 40, "1.32 [0.641, 2.14]"]])
    assert "1.32 [0.641, 2.14]" in capsys.readouterr().out
