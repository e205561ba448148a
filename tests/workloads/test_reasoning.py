"""math500, aime and gpqa: their records, prompts and scores, and generated problems checked by brute force."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from fractions import Fraction
from itertools import product
from pathlib import Path

import pytest

from tests.workloads.support import GPQA_RECORD, MATH_RECORD, completion, take, write_jsonl
from workloads import answers
from workloads.aime import Aime
from workloads.generators import contest_problems, math_problems, ontology
from workloads.generators.seeding import item_rng
from workloads.gpqa import Gpqa, GpqaConfig
from workloads.math500 import Math500
from workloads.reasoning import ReasoningConfig
from workloads.schema import DataError

TASK = "test"
WORKLOADS = (Math500, Aime, Gpqa)
BOXED = re.compile(r"boxed\{.*\}")


def rngs(count: int = 200) -> list[random.Random]:
    return [item_rng("test", index) for index in range(count)]


def numbers(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


@pytest.mark.parametrize("kind", WORKLOADS)
def test_a_request_says_how_it_is_answered_and_does_not_say_the_answer(kind: type[Math500 | Aime | Gpqa]) -> None:
    workload = kind()
    for request in take(workload, TASK, 20):
        assert request.metadata["answer"] == workload.kind in answers.KINDS
        assert request.metadata["step"] == "\n\n"
        assert request.chat
        assert request.prompt.endswith(r"\boxed{} at the end.")
        assert workload.score(completion(request, f"So.\n\n{request.references[0]}"), request) == 100.0
        assert workload.score(completion(request, request.references[0].removeprefix(r"\boxed")), request) == 0.0
        assert workload.score(completion(request, request.prompt), request) == 0.0


def test_math500_compares_expressions(tmp_path: Path) -> None:
    workload = Math500(ReasoningConfig(data=write_jsonl(tmp_path / "test.jsonl", [MATH_RECORD])))
    (request,) = take(workload, TASK, 9)
    assert request.metadata["level"] == 1
    scores = {text: workload.score(completion(request, text), request) for text in (r"\boxed{0.5}", r"\boxed{1/2}")}
    assert set(scores.values()) == {100.0}
    assert workload.score(completion(request, r"\boxed{50}"), request) == 0.0


@pytest.mark.parametrize(
    "record",
    [
        {"ID": "2024-I-4", "Problem": "How many?", "Solution": "...", "Answer": 24},
        {"id": 60, "problem": "How many?", "solution": "", "answer": "024", "url": "", "year": "2024"},
        {"question": "How many?", "answer": "24"},
    ],
    ids=["capitals", "2024", "question"],
)
def test_aime_reads_every_copy(record: dict[str, object], tmp_path: Path) -> None:
    workload = Aime(ReasoningConfig(data=write_jsonl(tmp_path / "any.jsonl", [record])))
    (request,) = take(workload, TASK, 9)
    assert request.question == "How many?"
    assert workload.score(completion(request, r"\boxed{24}"), request) == 100.0


def test_aime_zero_is_right_and_silence_is_not(tmp_path: Path) -> None:
    workload = Aime(ReasoningConfig(data=write_jsonl(tmp_path / "aime.jsonl", [{"problem": "p", "answer": 0}])))
    (request,) = take(workload, TASK, 1)
    assert workload.score(completion(request, r"\boxed{0}"), request) == 100.0
    assert workload.score(completion(request, "So I cannot"), request) == 0.0


@pytest.mark.parametrize("answer", ["1000", "-1", "x", "3.5"])
def test_an_answer_that_aime_cannot_have(answer: str, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "aime.jsonl", [{"problem": "p", "answer": answer}])
    with pytest.raises(DataError, match=r"line 1: field 'answer': .*a whole number from 0 to 999"):
        Aime(ReasoningConfig(data=data))


def test_gpqa_reads_the_official_csv(tmp_path: Path) -> None:
    cells = [f'"{value}"' for value in GPQA_RECORD.values()]
    text = ",".join(["Pre-Revision Question", *GPQA_RECORD]) + "\n" + ",".join(['"two\nlines"', *cells]) + "\n"
    (tmp_path / "gpqa_diamond.csv").write_text(text)
    (request,) = take(Gpqa(GpqaConfig(data=tmp_path)), TASK, 9)
    assert request.metadata["record_id"] == "rec1"
    letter = answers.extract("letter", request.references[0])
    assert f"({letter}) mercury" in request.prompt


def test_gpqa_options_are_shuffled_once(tmp_path: Path) -> None:
    """By the stored seed alone: another seed of the run leaves the letters as they are."""
    data = write_jsonl(tmp_path / "gpqa_diamond.jsonl", [GPQA_RECORD] * 400)
    first, again = (take(Gpqa(GpqaConfig(data=data)), TASK, 400, seed) for seed in (0, 1))
    assert [request.prompt for request in first] == [request.prompt for request in again]
    other = take(Gpqa(GpqaConfig(data=data, shuffle_seed=1)), TASK, 400)
    assert [request.prompt for request in first] != [request.prompt for request in other]
    assert min(Counter(request.references[0] for request in first).values()) > 70
    assert all(sorted(request.metadata["order"]) == [0, 1, 2, 3] for request in first)


@pytest.mark.parametrize(("kind", "file"), [(Math500, "test"), (Aime, "aime"), (Gpqa, "gpqa_diamond")])
def test_a_directory_without_the_file(kind: type[Math500 | Aime | Gpqa], file: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"holds no {kind.name} problems; expected {file}\.jsonl in it"):
        kind(kind.Config(data=tmp_path))


def test_from_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jsonl(tmp_path / "test.jsonl", [MATH_RECORD])
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *args, **kwargs: str(path))
    workload = Math500(ReasoningConfig(hub=True))
    assert workload.source == "HuggingFaceH4/MATH-500"
    assert list(workload.data_files()) == [path]
    assert len(take(workload, TASK, 5)) == 1


@pytest.mark.parametrize("subject", math_problems.SUBJECTS)
def test_math_problems_answer_their_solution_and_level_counts_steps(subject: str) -> None:
    made = [one for rng in rngs() if (one := math_problems.math_problem(rng))["subject"] == subject]
    assert len({one["problem"] for one in made}) > 20
    for one in made:
        *steps, last = str(one["solution"]).split("\n\n")
        assert len(steps) == one["level"] in math_problems.LEVELS
        assert answers.extract("math", last) == answers.normalise(str(one["answer"]))


def test_equations_hold_for_their_solution() -> None:
    """The linear ones as they are written: put into them, x gives the right side."""
    for rng in rngs(60):
        made = math_problems._linear(rng, rng.choice(math_problems.LEVELS))
        left, right = re.fullmatch(r"Solve for \$x\$: \$(.*) = (.*)\$\.", made.problem).groups()  # type: ignore[union-attr]
        put = left.replace("x", f"({made.answer})")
        assert answers.equivalent("math", put, right), made.problem


def test_quadratics_hold_for_their_solution() -> None:
    for rng in rngs(10):
        made = math_problems._quadratic(rng, 3)
        left = made.problem.split("$")[1].removesuffix(" = 0")
        assert answers.equivalent("math", left.replace("x", f"({made.answer})"), "0"), made.problem


def test_remainders_by_calculation() -> None:
    for rng in rngs(60):
        made = math_problems._remainder(rng, rng.choice(math_problems.LEVELS))
        text = made.problem.split("$")[1].replace(r"\cdot", "*").replace("^", "**")
        assert eval(text) % numbers(made.problem)[-1] == int(made.answer), made.problem


def test_probabilities_by_counting() -> None:
    for rng in rngs(20):
        made = math_problems._draws(rng, 2)
        red, blue = numbers(made.problem)[:2]
        balls = list(product(range(red + blue), repeat=2))
        pairs = [(a, b) for a, b in balls if a != b]
        share = Fraction(sum(a < red and b < red for a, b in pairs), len(pairs))
        assert made.answer == math_problems.fraction(share)


def test_points_are_moved_as_told() -> None:
    for rng in rngs(80):
        made = math_problems._moves(rng, rng.choice(math_problems.LEVELS))
        start, *_ = re.findall(r"\((-?\d+),(-?\d+)\)", made.problem)
        x, y = map(int, start)
        for told in made.problem.split(" is ", 1)[1].split(". ")[0].split(", then "):
            if "x$-axis" in told:
                y = -y
            elif "y = x" in told:
                x, y = y, x
            elif "rotated" in told:
                x, y = -y, x
            else:
                right, up = re.search(r"\((-?\d+),(-?\d+)\)", told).groups()  # type: ignore[union-attr]
                x, y = x + int(right), y + int(up)
        far = "How far" in made.problem
        assert answers.equivalent("math", made.answer, rf"\sqrt{{{x * x + y * y}}}" if far else f"({x},{y})")


@pytest.mark.parametrize("plot", contest_problems.PLOTS)
def test_contest_problems_by_brute_force(plot: object) -> None:
    for rng in rngs(25):
        made = plot(rng)  # type: ignore[operator]
        found = numbers(made.problem)
        answer = int(made.answer)
        assert 0 <= answer <= contest_problems.LARGEST
        if plot is contest_problems._power:
            assert answer == found[0] ** found[1] % 1000
        elif plot is contest_problems._lattice:
            square = found[-1]
            assert answer == sum(x * x + y * y <= square for x, y in product(range(-18, 19), repeat=2))
        elif plot is contest_problems._multiples:
            limit, a, b, c = found
            assert answer == sum((n % a == 0 or n % b == 0) and n % c != 0 for n in range(1, limit + 1))
        elif plot is contest_problems._dice:
            faces, least = found[1:3]
            share = Fraction(sum(x + y >= least for x, y in product(range(1, faces + 1), repeat=2)), faces**2)
            assert answer == share.numerator + share.denominator
        else:
            assert answer == paths(*found[2:6]) % 1000


def paths(width: int, height: int, x: int, y: int) -> int:
    """Ways to each point, from the ways to its two neighbours."""
    ways = {(0, 0): 1}
    for point in product(range(width + 1), range(height + 1)):
        if point != (0, 0):
            left, below = (point[0] - 1, point[1]), (point[0], point[1] - 1)
            ways[point] = 0 if point == (x, y) else ways.get(left, 0) + ways.get(below, 0)
    return ways[width, height]


def test_the_ontologys_question_is_answered_by_its_text_alone() -> None:
    for rng in rngs(50):
        made = ontology.ontology_question(rng)
        told, asked = made["Question"].split("\n\n")
        into = dict(re.findall(r"(\w+) into (\w+)\.", told))
        by = {before: tool for tool, before in re.findall(r"(\w+) \w+ (\w+) into", told)}
        substance = re.search(r"sample of (\w+)", asked)[1]  # type: ignore[index]
        tools = []
        while substance in into:
            tools.append(by[substance])
            substance = into[substance]
        assert substance == made["Correct Answer"]
        assert re.findall(r"\w+", asked.split(" to ")[1].split(", one after")[0].replace(" and ", " ")) == tools
        options = {made["Correct Answer"], *(made[f"Incorrect Answer {n}"] for n in (1, 2, 3))}
        assert len(options) == 4
        assert all(told.count(option) == 1 and option not in asked for option in options)


def test_records_are_json_of_the_official_fields() -> None:
    made = Math500().generated(0, 3)
    assert json.loads(made.model_dump_json()).keys() == MATH_RECORD.keys()
    written = Gpqa().generated(0, 3).model_dump(by_alias=True)
    assert written.keys() == GPQA_RECORD.keys()
