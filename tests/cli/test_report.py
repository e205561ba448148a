"""`suite report lrm-table`: measured rows and printed ones apart, and what cannot be asked for."""

from __future__ import annotations

import json

import pytest

from suite.cli import run
from suite.harness.store import Store
from tests.analysis.factory import MACHINE, sample, unit


@pytest.fixture
def answered(store: Store) -> Store:
    """Dense and another method on two problems, one of them wrong."""
    samples = [sample("a", score=100.0), sample("b", score=0.0)]
    store.add_units([unit(name, samples, workload="gsm8k") for name in ("dense", "ngram")], "s")
    store.add_machine(MACHINE, "{}")
    return store


def test_every_measured_row_names_its_units_and_no_printed_one_does(answered: Store, capsys) -> None:
    """Trap: literature numbers in the table as if measured."""
    assert run(["report", "lrm-table", "--workload", "gsm8k", "--hardware", "h100-sxm", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [row["keys"] for row in document["rows"]] == [[one.key] for one in answered.units()]
    assert all(row["predicted_ms"] > 0 and row["accuracy"]["n"] == 2 for row in document["rows"])
    assert all(row["source"] and "keys" not in row for row in document["printed"])
    assert "ngram" in document["coverage"]["further_improvement.agent_router"]


def test_printed_rows_stand_under_their_own_heading(answered: Store, capsys) -> None:
    assert run(["report", "lrm-table"]) == 0
    measured, heading, printed = capsys.readouterr().out.partition("NOT MEASURED HERE")
    assert heading
    assert "ngram" in measured
    assert "COCONUT" in printed
    assert "COCONUT" not in measured


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["lrm-tabel"], 2, "known: page, lrm-table"),
        (["lrm-table", "-o", "x.html"], 2, "-o is the page's"),
        (["lrm-table", "--workload", "longbench"], 2, "not about reasoning; known: aime, gpqa, gsm8k"),
        (["--workload", "gsm8k"], 2, "the page shows everything"),
        (["lrm-table", "--hardware", "h100_sxn"], 2, "did you mean"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_a_wish_that_cannot_be_met_is_one_sentence(arguments, code, told, answered: Store, capsys) -> None:
    assert run(["report", *arguments]) == code
    assert told in capsys.readouterr().err


def test_a_store_without_reasoning_says_what_to_run(store: Store, capsys) -> None:
    store.add_units([unit("dense", [sample()])], "s")
    assert run(["report", "lrm-table"]) == 4
    assert "run `python -m suite run --workload gsm8k` first" in capsys.readouterr().err
