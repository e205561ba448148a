"""Every method has a place, the places agree with the cards, and rows that may not be compared are told apart."""

from __future__ import annotations

import copy
import tomllib
from dataclasses import replace
from types import SimpleNamespace

import pytest

from analysis.comparison import compare
from analysis.taxonomy import (
    TAXONOMY_FILE,
    class_facts,
    class_of,
    place_of,
    read_taxonomy,
    rule_notes,
    taxonomy,
)
from suite.errors import InputError
from suite.experiments import EXPERIMENTS
from suite.place import Place
from suite.registry import METHODS, Entry
from tests.analysis.factory import longbench_units, sample, unit

BUILTIN = [name for name, entry in METHODS.items() if entry.family != "plug-in"]
CARD_NEEDS = {"adapter": {"TC", "FT", "2M"}, "calibration": {"CAL"}}


@pytest.mark.parametrize("name", BUILTIN)
def test_every_method_has_a_place_that_agrees_with_its_card(name):
    place, card = taxonomy().places[name], METHODS.load(name).card
    assert (place.exact == "L") == card.lossless
    for need in card.needs:
        assert CARD_NEEDS[need] & set(place.needs)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_system_of_the_ledger_has_a_place(name):
    assert place_of(name) is not None


def test_a_code_or_a_leaf_that_is_not_defined_is_refused():
    document = tomllib.loads(TAXONOMY_FILE.read_text())
    for field, value in (("where", ["KW"]), ("needs", ["XX"]), ("exact", "Q"), ("lrm", "explicit_compact_cot")):
        wrong = copy.deepcopy(document)
        wrong["places"]["asc"][field] = value
        with pytest.raises(InputError, match="the place of 'asc' has"):
            read_taxonomy(wrong)
    document["groups"][0]["members"].append("nobody")
    with pytest.raises(InputError, match="nobody"):
        read_taxonomy(document)


def test_the_survey_ticks_asc_as_training_the_card_does_not():
    assert "TF" in taxonomy().places["asc"].needs


def test_a_plug_in_brings_its_place_or_is_unplaced(monkeypatch):
    entries = {name: Entry(name, f"m:{name}", "plug-in", "") for name in ("placed", "bare")}
    own = Place(("KV",), ("TF",), "D", "outside")
    cards = {"placed": SimpleNamespace(place=own), "bare": SimpleNamespace()}
    monkeypatch.setattr(METHODS, "_plugins", entries)
    monkeypatch.setattr(METHODS, "load", lambda name: SimpleNamespace(card=cards[name]))
    assert (class_of("placed"), class_of("bare")) == ("KV · TF · D", "unplaced")
    assert class_facts("bare")[0][0] == "class"
    cards["placed"].place = replace(own, exact="X")
    with pytest.raises(InputError, match="the place of 'placed' has 'X'"):
        class_of("placed")


def test_a_combination_is_as_exact_as_its_least_exact_part():
    assert class_of("squeezellm+lookahead") == "W, DEC · CAL, GR, TF · D"


def test_a_lossy_method_without_a_score_is_not_compared_with_a_lossless_one():
    timed = [sample("a", score=None), sample("b", score=None)]
    rows = compare([unit("dense", timed), unit("longheads", timed, selected=0.4)])
    assert any("longheads: lossy, and without a score here" in note for note in rule_notes(rows))
    scored = [sample("a"), sample("b")]
    assert rule_notes(compare([unit("dense", scored), unit("longheads", scored, selected=0.4)])) == ()


def test_methods_of_a_group_are_ranked_at_equal_budgets_only():
    (note,) = rule_notes(compare(longbench_units()))
    assert "longheads 38%, streaming 21%" in note
    timed = [sample()]
    equal = [unit("dense", timed), unit("longheads", timed, selected=0.21), unit("dhsa", timed, selected=0.22)]
    assert rule_notes(compare(equal)) == ()


def test_an_unplaced_method_is_named():
    assert "newcomer: no place in the taxonomy" in rule_notes(compare([unit("newcomer", [sample()])]))[0]
