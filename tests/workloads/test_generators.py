"""The embedded LongBench generator: official schema, honest answers, and no answer anywhere but in the evidence."""

from __future__ import annotations

import re
from typing import Any

import pytest

from workloads.generators.longbench import MAKERS, gen_longbench
from workloads.generators.passages import Draft
from workloads.generators.seeding import item_rng
from workloads.generators.world import World
from workloads.lengths import estimate_tokens
from workloads.longbench_tasks import TASKS

OFFICIAL_FIELDS = {"input", "context", "answers", "length", "dataset", "language", "all_classes", "_id"}
EXACT = [task for task in MAKERS if TASKS[task].metric in ("f1", "f1_zh", "edit_similarity")] + ["dureader", "samsum"]
"""Data sets whose answers may stand in the evidence only."""


def records(dataset: str, n: int = 8, tokens: int = 600, seed: int = 3) -> list[dict[str, Any]]:
    return list(gen_longbench(seed, dataset, n, tokens))


def outside_evidence(record: dict[str, Any]) -> str:
    text = record["context"]
    for start, end in reversed(record["evidence_spans"]):
        text = text[:start] + "\n" + text[end:]
    return f"{text}\n{record['input']}"


@pytest.mark.parametrize("dataset", MAKERS)
def test_record_has_the_official_schema_and_two_more_keys(dataset: str) -> None:
    (record,) = records(dataset, 1)
    assert set(record) == OFFICIAL_FIELDS | {"depth", "evidence_spans"}
    assert record["dataset"] == dataset
    chinese = record["language"] == "zh"
    assert record["length"] == (len(record["context"]) if chinese else len(record["context"].split()))
    assert 0.0 <= record["depth"] < 1.0


@pytest.mark.parametrize("dataset", MAKERS)
def test_data_sets_cover_21_tasks_and_their_languages(dataset: str) -> None:
    language = records(dataset, 1)[0]["language"]
    if TASKS[dataset].category == "code":
        assert language in ("python", "java", "c#")
    else:
        assert (language == "zh") == bool(re.search("[一-鿿]", records(dataset, 1)[0]["context"]))


@pytest.mark.parametrize("dataset", EXACT)
def test_answer_stands_in_the_evidence_only(dataset: str) -> None:
    for record in records(dataset):
        for answer in record["answers"]:
            assert answer.casefold() not in outside_evidence(record).casefold()


@pytest.mark.parametrize("dataset", [task for task in EXACT if task != "samsum"])
def test_answer_stands_in_the_evidence(dataset: str) -> None:
    for record in records(dataset):
        evidence = [record["context"][start:end] for start, end in record["evidence_spans"]]
        assert any(answer in text for answer in record["answers"] for text in evidence)


@pytest.mark.parametrize("dataset", ["gov_report", "qmsum", "multi_news", "vcsum"])
def test_reference_of_a_summary_is_its_key_sentences(dataset: str) -> None:
    for record in records(dataset):
        keys = [record["context"][start:end] for start, end in record["evidence_spans"]]
        assert len(keys) == 3
        assert record["answers"] == [("" if record["language"] == "zh" else " ").join(keys)]


@pytest.mark.parametrize("dataset", ["trec", "lsht"])
def test_class_follows_from_a_cue_word_shown_before(dataset: str) -> None:
    for record in records(dataset):
        assert 6 <= len(record["all_classes"]) <= 50
        assert record["answers"][0] in record["all_classes"]
        shown = [record["context"][start:end] for start, end in record["evidence_spans"]]
        assert all(text.endswith(record["answers"][0]) for text in shown)


def test_passage_count_is_exact() -> None:
    for record in records("passage_count", tokens=1500):
        texts = [text.split(": ", 1)[1] for text in record["context"].split("\n\n")]
        assert record["answers"] == [str(len(set(texts)))]


@pytest.mark.parametrize("dataset", ["passage_retrieval_en", "passage_retrieval_zh"])
def test_abstract_belongs_to_one_paragraph(dataset: str) -> None:
    for record in records(dataset, tokens=1200):
        holding = [text for text in record["context"].split("\n\n") if record["input"] in text]
        assert [text.split(":")[0] for text in holding] == record["answers"]


def test_english_retrieval_has_the_thirty_paragraphs_its_prompt_speaks_of() -> None:
    assert records("passage_retrieval_en", 1)[0]["context"].count("Paragraph ") == 30


@pytest.mark.parametrize("dataset", ["lcc", "repobench-p"])
def test_next_line_repeats_an_earlier_definition(dataset: str) -> None:
    for record in records(dataset):
        assert (record["context"] + record["input"]).endswith("\n")
        ((start, end),) = record["evidence_spans"]
        assert record["answers"][0] in record["context"][start:end].split("\n")


@pytest.mark.parametrize("dataset", MAKERS)
@pytest.mark.parametrize("tokens", [1100, 4000])
def test_length_is_about_the_target(dataset: str, tokens: int) -> None:
    (record,) = records(dataset, 1, tokens)
    made = estimate_tokens(record["context"] + record["input"])
    assert 0.85 * tokens <= made <= 1.4 * tokens


@pytest.mark.parametrize("dataset", MAKERS)
def test_very_long_items_still_have_one_answer(dataset: str) -> None:
    (record,) = records(dataset, 1, 30_000)
    if dataset in EXACT:
        assert all(answer not in outside_evidence(record) for answer in record["answers"])


def test_depths_spread_over_the_whole_context() -> None:
    depths = [record["depth"] for record in records("multifieldqa_en", 60)]
    assert min(depths) < 0.2
    assert max(depths) > 0.8


def test_a_leaking_draft_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    made = MAKERS["qasper"]
    calls = []

    def leaky(world: World, dataset: str, tokens: int) -> Draft:
        draft = made(world, dataset, tokens)
        calls.append(draft)
        return draft if len(calls) > 2 else Draft(draft.answers[0], draft.context, draft.answers, draft.evidence)

    monkeypatch.setitem(MAKERS, "qasper", leaky)
    (record,) = records("qasper", 1)
    assert len(calls) == 3
    assert record["input"] == calls[-1].input


def test_world_draws_no_entity_twice_and_none_that_is_kept() -> None:
    world = World(item_rng("test"), "en")
    kept = {world.draw("ware") for _ in range(5)}
    world.keep()
    rest = [world.draw("ware") for _ in range(20)]  # twelve wares in all: the list runs dry
    assert len(kept) == 5
    assert kept.isdisjoint(rest)
