"""RULER: what every task is built of, that items fit their length, and what an answer is worth."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

import pytest

from tests.workloads.support import RULER_RECORD, completion, perfect, take, write_jsonl
from workloads.generators.ruler import SHORTEST, TASKS, gen_ruler
from workloads.generators.ruler_parts import DEPTHS, NOISE, lexicon
from workloads.generators.seeding import item_rng
from workloads.lengths import estimate_tokens
from workloads.loading import read_records
from workloads.ruler import Ruler, RulerConfig, RulerRecord
from workloads.schema import DataError, Request

UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}"
WORD, NUMBER = r"[a-z]+-[a-z]+", r"[1-9]\d{6}"
NEEDLE = re.compile(rf"Among the secret (numbers|uuids) for ({WORD}|{UUID}) there is ({NUMBER}|{UUID})\.")
NIAH = [task for task in TASKS if task.startswith("niah")]
ESSAYS = ["niah_single_2", "niah_single_3", "niah_multikey_1", "niah_multivalue", "niah_multiquery"]
LIMITS = dict.fromkeys(NIAH, 128) | {"vt": 30, "cwe": 120, "fwe": 50, "qa_1": 32, "qa_2": 32}


def requests(task: str, limit: int = 4, length: int = 2048, seed: int = 5) -> list[Request]:
    return take(Ruler(RulerConfig(length=length)), task, limit, seed)


def needles(request: Request) -> list[tuple[str, str, str]]:
    """Kind, key and value of every needle, in the order of the text."""
    return NEEDLE.findall(request.prompt)


def evidence(request: Request) -> list[str]:
    return [request.prompt[start:end] for start, end in request.metadata["evidence_spans"]]


def outside_evidence(request: Request) -> str:
    text = request.prompt
    for start, end in reversed(request.metadata["evidence_spans"]):
        text = text[:start] + "\n" + text[end:]
    return text


def entries(text: str) -> list[str]:
    return re.findall(r"\d+\. ([a-z-]+)", text)


@pytest.mark.parametrize("length", [SHORTEST, 4096, 16_384])
@pytest.mark.parametrize("task", TASKS)
def test_prompt_with_answer_prefix_and_new_tokens_fills_the_length(task: str, length: int) -> None:
    for request in requests(task, 6, length):
        used = estimate_tokens(request.prompt) + request.max_new_tokens
        assert used == request.metadata["length"]
        assert 0.85 * length <= used <= length
        assert request.max_new_tokens == LIMITS[task]


@pytest.mark.parametrize("task", TASKS)
def test_first_item_has_no_room_for_one_more_unit(task: str) -> None:
    """It is the one the size of the haystack was searched with."""
    (request,) = requests(task, 1)
    unit = {"qa_1": 100, "qa_2": 100, "niah_multikey_3": 130}.get(task, 30)
    assert request.metadata["length"] > 2048 - unit


@pytest.mark.parametrize("task", TASKS)
def test_shortest_length_has_room_for_every_seed(task: str) -> None:
    for seed in range(20):
        assert all(request.metadata["length"] <= SHORTEST for request in requests(task, 2, SHORTEST, seed))


@pytest.mark.parametrize("task", TASKS)
def test_prompt_is_raw_text_that_the_answer_prefix_ends(task: str) -> None:
    (record,) = gen_ruler(5, task, 1, 2048)
    (request,) = requests(task, 1)
    assert request.prompt == record["input"] + record["answer_prefix"]
    assert re.fullmatch(r" .*\S", record["answer_prefix"])
    assert not request.chat


@pytest.mark.parametrize("task", TASKS)
def test_answer_prefix_answers_nothing(task: str) -> None:
    (record,) = gen_ruler(5, task, 1, 2048)
    (request,) = requests(task, 1)
    assert Ruler().score(completion(request, record["answer_prefix"]), request) == 0.0


@pytest.mark.parametrize(
    ("task", "key", "value", "asked", "all_needles"),
    [
        ("niah_single_1", WORD, NUMBER, 1, 1),
        ("niah_single_2", WORD, NUMBER, 1, 1),
        ("niah_single_3", WORD, UUID, 1, 1),
        ("niah_multikey_1", WORD, NUMBER, 1, 4),
        ("niah_multikey_2", WORD, NUMBER, 1, None),
        ("niah_multikey_3", UUID, UUID, 1, None),
        ("niah_multivalue", WORD, NUMBER, 4, 4),
        ("niah_multiquery", WORD, NUMBER, 4, 4),
    ],
)
def test_needles_are_of_the_right_kind_and_number(
    task: str, key: str, value: str, asked: int, all_needles: int | None
) -> None:
    for request in requests(task):
        found = needles(request)
        assert len(found) == all_needles or (all_needles is None and len(found) > 10)
        assert all(re.fullmatch(key, name) and re.fullmatch(value, item) for _, name, item in found)
        assert {kind for kind, _, _ in found} == {"uuids" if value == UUID else "numbers"}
        assert len(request.references) == len(evidence(request)) == asked


@pytest.mark.parametrize("task", NIAH)
def test_evidence_is_the_needles_asked_for(task: str) -> None:
    for request in requests(task):
        shown = [NEEDLE.fullmatch(text) for text in evidence(request)]
        assert all(shown)
        assert sorted(match[3] for match in shown if match) == sorted(request.references)
        question = re.split(r"secret \w+ for | does the text", request.prompt.splitlines()[-1])[1]
        assert {match[2] for match in shown if match} == set(re.split(", and |, ", question))


@pytest.mark.parametrize("task", NIAH)
def test_values_stand_in_their_needle_only_and_keys_are_unique(task: str) -> None:
    for request in requests(task):
        found = needles(request)
        assert all(reference not in outside_evidence(request) for reference in request.references)
        assert len({value for _, _, value in found}) == len(found)
        assert len({key for _, key, _ in found}) == (1 if task == "niah_multivalue" else len(found))


def test_any_of_four_keys_may_be_asked_for_at_any_place() -> None:
    places = Counter(
        [value for _, _, value in needles(request)].index(request.references[0])
        for request in requests("niah_multikey_1", 60)
    )
    assert set(places) == {0, 1, 2, 3}


@pytest.mark.parametrize("task", ["niah_single_1", "niah_multikey_2", "niah_multikey_3"])
def test_lines_of_the_haystack(task: str) -> None:
    for request in requests(task):
        _, *lines, _ = request.prompt.splitlines()
        others = [line for line in lines if line not in evidence(request)]
        assert len(others) == len(lines) - 1
        assert all(line == NOISE if task == "niah_single_1" else NEEDLE.fullmatch(line) for line in others)


def test_a_line_of_noise_has_five_sentences() -> None:
    assert len(re.findall(r"[A-Z][^.]+\.", NOISE)) == 5


@pytest.mark.parametrize("task", ESSAYS)
def test_essay_needles_stand_at_sorted_depths_of_the_forty(task: str) -> None:
    assert len(DEPTHS) == 40
    for request in requests(task, 10):
        sentences = re.findall(r"[A-Z][^.]*\.", request.prompt.splitlines()[1])
        places = [place for place, text in enumerate(sentences) if NEEDLE.fullmatch(text)]
        total = len(sentences) - len(places)
        allowed = [total * depth // 100 for depth in DEPTHS]
        assert all(place - earlier in allowed for earlier, place in enumerate(places))
        assert request.metadata["depths"] == sorted(request.metadata["depths"])


@pytest.mark.parametrize("task", [task for task in TASKS if task not in ("cwe", "fwe")])
def test_depths_are_where_the_evidence_starts_and_spread(task: str) -> None:
    depths = []
    for request in requests(task, 40, SHORTEST):
        spans = request.metadata["evidence_spans"]
        steps = [later - earlier for (earlier, _), (later, _) in pairwise(spans)]
        given = [later - earlier for earlier, later in pairwise(request.metadata["depths"])]
        assert len(given) == len(steps)
        assert all(step / len(request.prompt) <= depth for step, depth in zip(steps, given, strict=True))
        depths += request.metadata["depths"]
    assert min(depths) < 0.1
    assert 0.8 < max(depths) < 1.0


@pytest.mark.parametrize("task", NIAH)
def test_one_answer_is_asked_for_in_the_singular(task: str) -> None:
    for request in requests(task, 1):
        first, *_, last = request.prompt.splitlines()
        one = len(request.references) == 1
        assert bool(re.search(r"^A secret (number|uuid) is hidden .* for it", first)) == one
        assert bool(re.search(r"^Some secret numbers are hidden .* for them", first)) == (not one)
        assert bool(re.search(r"^Which secret (number|uuid) for .* gives is$", last)) == one
        assert bool(re.search(r"^Which secret numbers for .* gives are$", last)) == (not one)


def chain(statements: Iterable[str]) -> tuple[str, list[str]]:
    """The value of a chain of assignments in the order of the text, and its variables."""
    (first, value), *rest = (re.fullmatch(r"VAR ([A-Z]+) = (.+)", text).groups() for text in statements)  # type: ignore[union-attr]
    names = [first, *(name for name, _ in rest)]
    assert [source for _, source in rest] == [f"VAR {name}" for name in names[:-1]]
    return value, names


def test_vt_tracks_one_chain_of_four_hops() -> None:
    for request in requests("vt", 10):
        value, names = chain(evidence(request))
        assert names == list(request.references)
        assert len(set(names)) == 5
        assert all(re.fullmatch("[A-Z]{5}", name) for name in names)
        question = request.prompt.splitlines()[-1]
        assert re.fullmatch(r"[1-9]\d{4}", value)
        assert f"have the value {value} in" in question
        assert f"5 variables have the value {value}." in question
        assert "VAR" not in outside_evidence(request).split("Below, ")[-1]


def test_vt_example_has_short_names_another_value_and_is_drawn_anew() -> None:
    drawn = set()
    for request in requests("vt", 10):
        example, answers = request.prompt.split("\n\nBelow, ")[0], re.compile("They are: (.*)")
        value, names = chain(line for line in example.splitlines() if line.startswith("VAR"))
        assert answers.findall(example) == [" ".join(names)]
        assert all(re.fullmatch("[A-Z]{3}", name) for name in names)
        assert value not in request.prompt.split("\n\nBelow, ")[1]
        drawn |= {value, names[0]}
    assert len(drawn) == 20


def test_vt_lines_are_noise_and_keep_assignments_apart() -> None:
    for request in requests("vt", 10, SHORTEST):
        for part in request.prompt.split("\n\nBelow, "):
            _, lines, _ = re.split(r"\n\n|\nQuestion", part)
            shapes = ["VAR" if line.startswith("VAR") else line for line in lines.splitlines()]
            assert set(shapes) == {"VAR", NOISE}
            assert ("VAR", "VAR") not in pairwise(shapes)


@pytest.mark.parametrize(
    ("length", "example_words", "example_counts", "counts"),
    [(2048, 20, {3: 10, 1: 10}, (6, 1)), (4095, 20, {3: 10, 1: 10}, (6, 1)), (4096, 40, {10: 10, 3: 30}, (30, 3))],
)
def test_cwe_has_ten_common_words(
    length: int, example_words: int, example_counts: dict[int, int], counts: tuple[int, int]
) -> None:
    for request in requests("cwe", 3, length):
        first, second = request.prompt.split("\n\n")
        (shown, answers), (listed, _) = (map(entries, text.split("\nQuestion: ")) for text in (first, second))
        example, counted = Counter(shown), Counter(listed)
        assert len(example) == example_words
        assert Counter(example.values()) == example_counts
        assert set(answers) == {word for word, n in example.items() if n == max(example_counts)}
        assert len(answers) == 10
        common = {word for word, n in counted.items() if n == counts[0]}
        assert common == set(request.references)
        assert len(request.references) == 10
        assert {n for word, n in counted.items() if word not in common} == {counts[1]}
        assert not example.keys() & counted.keys()


def test_cwe_list_is_numbered_and_shuffled() -> None:
    (request,) = requests("cwe", 1)
    text = request.prompt.split("\n\n")[1].split("\nQuestion: ")[0]
    numbers = [int(number) for number in re.findall(r"^(\d+)\.", text, re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
    first = [word for word in entries(text)[:60] if word in request.references]
    assert 0 < len(first) < 60


def test_cwe_takes_compounds_where_plain_words_run_out() -> None:
    assert {"-" in word for word in entries(requests("cwe", 1, 16_384)[0].prompt)} == {False}
    assert {"-" in word for word in entries(requests("cwe", 1, 65_536)[0].prompt)} == {True}


def test_no_word_of_the_lexicon_is_part_of_another() -> None:
    words = [word for part in lexicon() for word in part]
    assert len(set(words)) == len(words)
    whole = "\n".join(words)
    assert all(whole.count(word) == 1 for word in words)


@pytest.mark.parametrize("length", [2048, 8192])
def test_fwe_frequencies_follow_the_zeta_law(length: int) -> None:
    for request in requests("fwe", 3, length):
        text = request.prompt.split("\n\n")[1].splitlines()[0]
        ranked = Counter(text.split()).most_common()
        assert ranked[0][0] == "..."
        law = [ranked[0][1] / rank**2 for rank in range(1, len(ranked) + 1)]
        assert [n for _, n in ranked] == pytest.approx(law, abs=1)
        assert [word for word, _ in ranked[1:4]] == list(request.references)
        assert all(re.fullmatch("[a-z]{6}", word) for word, _ in ranked[1:])
        assert 4 < len(ranked) <= length // 50
        assert set(request.references) <= set(text.split()[: len(text.split()) // 2])


def test_fwe_vocabulary_is_a_fiftieth_of_the_length() -> None:
    """Seen only with more words than fit: otherwise the law gives the last ranks less than one place each."""
    made = TASKS["fwe"].make(item_rng("test"), 500, 10_000)
    assert len(set(made.context.text.split())) == 10


@pytest.mark.parametrize(("task", "hops"), [("qa_1", 1), ("qa_2", 2)])
def test_qa_facts_stand_in_documents_of_their_own_among_numbered_others(task: str, hops: int) -> None:
    for request in requests(task, 8):
        documents = re.split(r"\n\n(?=Document|Answer the)", request.prompt)[1:-1]
        assert [int(re.match(r"Document (\d+):\n", text)[1]) for text in documents] == list(  # type: ignore[index]
            range(1, len(documents) + 1)
        )
        facts = evidence(request)
        assert len(facts) == hops
        assert len({index for index, text in enumerate(documents) for fact in facts if fact in text}) == hops
        assert len(documents) > hops + 8


@pytest.mark.parametrize("task", ["qa_1", "qa_2"])
@pytest.mark.parametrize("length", [2048, 32_768])
def test_qa_answer_stands_in_the_evidence_only(task: str, length: int) -> None:
    for request in requests(task, 8, length):
        assert any(reference in text for reference in request.references for text in evidence(request))
        assert all(reference.lower() not in outside_evidence(request).lower() for reference in request.references)


def test_qa_other_documents_are_of_the_same_kind_first() -> None:
    """With room for a few documents only, all are about the question's matter."""
    for request in requests("qa_1", 12, SHORTEST):
        (fact,) = evidence(request)
        relation = max(("lawyer of", "mayor of", "famous for", "opened by"), key=lambda words: words in fact)
        documents = re.split(r"\n\n(?=Document|Answer the)", request.prompt)[1:-1]
        assert sum(relation in text for text in documents) >= min(len(documents), 9)


@pytest.mark.parametrize(
    ("count", "wanted"),
    [(4, 100.0), (3, 75.0), (2, 50.0), (0, 0.0)],
)
def test_score_is_the_share_of_values_found(count: int, wanted: float) -> None:
    for request in requests("niah_multivalue", 2):
        answer = " or ".join(request.references[:count])
        assert Ruler().score(completion(request, f"They are {answer}."), request) == wanted


def test_score_ignores_case_and_reads_control_characters_as_line_breaks() -> None:
    (request,) = requests("cwe", 1)
    workload = Ruler()
    loud = "\x00".join(request.references).upper()
    assert workload.score(completion(request, loud), request) == 100.0
    split = request.references[0][:2] + "\x07" + request.references[0][2:]
    assert workload.score(completion(request, split), request) == 0.0
    lines = request.model_copy(update={"references": ("a\nb",)})
    assert workload.score(completion(lines, "A\x0bb"), lines) == 100.0


def test_any_reference_will_do_in_qa() -> None:
    (request,) = requests("qa_1", 1)
    both = request.model_copy(update={"references": ("Ada Lang", "Lang")})
    assert Ruler().score(completion(both, "It was lang."), both) == 100.0
    assert Ruler().score(completion(both, "It was Beck."), both) == 0.0


def test_answer_prefix_is_no_part_of_the_answer(tmp_path: Path) -> None:
    record = {**RULER_RECORD, "answer_prefix": " One is A, the other is"}
    workload = Ruler(RulerConfig(data=write_jsonl(tmp_path / "vt.jsonl", [record])))
    (request,) = take(workload, "vt", 1)
    assert workload.score(completion(request, " B."), request) == 50.0


@pytest.mark.parametrize("place", ["vt.jsonl", "vt/validation.jsonl"])
def test_directory_and_file_of_official_records(place: str, tmp_path: Path) -> None:
    (tmp_path / place).parent.mkdir(exist_ok=True)
    official = {**RULER_RECORD, "token_position_answer": 3, "length_w_model_temp": 70}
    write_jsonl(tmp_path / place, [official])
    workload = Ruler(RulerConfig(data=tmp_path))
    assert workload.tasks == ("vt",)
    (request,) = take(workload, "vt", 5)
    assert request.prompt == "VAR A = 1, VAR B = VAR A. Which are 1? They are:"
    assert request.max_new_tokens == 30
    assert workload.score(perfect(request), request) == 100.0


def test_older_files_hold_the_prefix_in_their_input(tmp_path: Path) -> None:
    old = {key: value for key, value in RULER_RECORD.items() if key != "answer_prefix"}
    workload = Ruler(RulerConfig(data=write_jsonl(tmp_path / "qa_2.jsonl", [old])))
    assert take(workload, "qa_2", 1)[0].prompt == RULER_RECORD["input"]


def test_a_file_that_names_no_task(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"items\.jsonl: is no RULER data; expected .*vt\.jsonl"):
        Ruler(RulerConfig(data=write_jsonl(tmp_path / "items.jsonl", [RULER_RECORD])))
    with pytest.raises(DataError, match="is no RULER data"):
        Ruler(RulerConfig(data=tmp_path))


def test_generated_records_are_read_back_as_a_users_own(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "niah_multivalue.jsonl", gen_ruler(5, "niah_multivalue", 2, 2048))
    assert len(read_records(path, RulerRecord)) == 2
    again = take(Ruler(RulerConfig(data=path)), "niah_multivalue", 2, 5)
    assert again == requests("niah_multivalue", 2)
