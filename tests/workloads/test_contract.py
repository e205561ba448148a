"""The contract every registered workload keeps; a new entry of the registry is tested without a line added here."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from suite.registry import WORKLOADS
from tests.workloads.support import RECORDS, completion, data_path, perfect, take
from workloads.schema import DataError, Workload

NAMES = sorted(WORKLOADS)
TASKS = [pytest.param(name, task, id=f"{name}-{task}") for name in NAMES for task in WORKLOADS.load(name).tasks]
WITH_RECORDS = sorted(RECORDS)
LIMIT = 3

FINGERPRINTS = """
import json
from suite.registry import WORKLOADS
from tests.workloads.test_contract import fingerprint
made = {name: WORKLOADS.load(name)() for name in WORKLOADS}
print(json.dumps({f"{name}-{task}": fingerprint(made[name], task) for name in made for task in made[name].tasks}))
"""


def fingerprint(workload: Workload, task: str) -> str:
    text = "\n".join(request.model_dump_json() for request in workload.requests(task, LIMIT, 7))
    return hashlib.sha256(f"{workload.revision(7)}\n{text}".encode()).hexdigest()


def make(name: str, **options: object) -> Workload:
    kind = WORKLOADS.load(name)
    made: Workload = kind(kind.Config(**options))
    return made


@pytest.fixture(scope="module")
def elsewhere() -> dict[str, str]:
    """Fingerprints made by a process with another hash seed."""
    result = subprocess.run(
        [sys.executable, "-c", FINGERPRINTS],
        env={**os.environ, "PYTHONHASHSEED": "12345"},
        cwd=Path(__file__).resolve().parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    found: dict[str, str] = json.loads(result.stdout)
    return found


@pytest.mark.parametrize(("name", "task"), TASKS)
def test_same_seed_same_bytes_in_two_processes(name: str, task: str, elsewhere: dict[str, str]) -> None:
    assert fingerprint(make(name), task) == elsewhere[f"{name}-{task}"]


@pytest.mark.parametrize(("name", "task"), TASKS)
def test_first_items_are_the_same_for_every_limit(name: str, task: str) -> None:
    workload = make(name)
    many = take(workload, task, LIMIT + 2)
    assert len(many) == LIMIT + 2
    for limit in range(LIMIT + 2):
        assert take(workload, task, limit) == many[:limit]


@pytest.mark.parametrize(("name", "task"), TASKS)
def test_seeds_make_different_items(name: str, task: str) -> None:
    workload = make(name)
    first, second = take(workload, task, LIMIT, seed=0), take(workload, task, LIMIT, seed=1)
    assert {request.prompt for request in first}.isdisjoint(request.prompt for request in second)
    assert workload.revision(0) != workload.revision(1)


@pytest.mark.parametrize(("name", "task"), TASKS)
def test_requests_are_complete(name: str, task: str) -> None:
    requests = take(make(name), task, LIMIT)
    assert len({request.id for request in requests}) == LIMIT
    for request in requests:
        assert request.task == task
        assert request.prompt
        assert request.references or request.target
        json.dumps(request.metadata, allow_nan=False)


@pytest.mark.parametrize(("name", "task"), TASKS)
def test_perfect_answer_is_the_best_score(name: str, task: str) -> None:
    workload = make(name)
    best = 100.0 if workload.higher_is_better else 0.0
    for request in take(workload, task, LIMIT):
        assert workload.score(perfect(request), request) == pytest.approx(best, abs=1e-5)


@pytest.mark.parametrize(("name", "task"), TASKS)
def test_empty_answer_is_the_worst_score(name: str, task: str) -> None:
    workload = make(name)
    for request in take(workload, task, LIMIT):
        if request.target is not None:
            with pytest.raises(DataError, match="not scored"):
                workload.score(completion(request), request)
        else:
            assert workload.score(completion(request), request) == 0.0


@pytest.mark.parametrize("name", NAMES)
def test_revision_follows_the_options(name: str) -> None:
    options = {
        "aime": {"new_tokens": 50},
        "chat-open": {"new_tokens": 5},
        "gpqa": {"shuffle_seed": 1},
        "gsm8k": {"shots": 2},
        "humaneval-infill": {"new_tokens": 20},
        "lab-longbench": {"facts": 5},
        "longbench": {"target_tokens": 500},
        "math500": {"new_tokens": 50},
        "needle": {"depths": 3},
        "passkey": {"lengths": (300,)},
        "perplexity": {"stride_words": 9},
        "rag-copy": {"facts": 5},
        "recall": {"pairs": 5},
        "ruler": {"length": 1500},
        "serving": {"input_words": 50},
        "spec-bench": {"new_tokens": 50},
    }
    assert make(name).revision(0) != make(name, **options[name]).revision(0)


@pytest.mark.parametrize("name", NAMES)
def test_unknown_task_is_an_error(name: str) -> None:
    with pytest.raises(DataError, match=f"{name} has no task 'nonsense'"):
        take(make(name), "nonsense", 1)


@pytest.mark.parametrize("name", WITH_RECORDS)
def test_users_data_is_read(name: str, tmp_path: Path) -> None:
    _, record, _ = RECORDS[name]
    workload = make(name, data=data_path(name, tmp_path, [record, record]))
    assert workload.source == str(workload.config.data)
    requests = [request for task in workload.tasks for request in take(workload, task, 5)]
    assert len({request.id for request in requests}) == 2
    assert all(workload.score(perfect(request), request) == pytest.approx(100.0) for request in requests)


@pytest.mark.parametrize("name", WITH_RECORDS)
def test_revision_follows_the_datas_bytes_not_its_place(name: str, tmp_path: Path) -> None:
    _, record, _ = RECORDS[name]
    places = [tmp_path / "a", tmp_path / "b", tmp_path / "c"]
    for place in places:
        place.mkdir()
    same, copy = (make(name, data=data_path(name, place, [record])) for place in places[:2])
    other = make(name, data=data_path(name, places[2], [record, record]))
    assert same.revision(0) == copy.revision(0)
    assert same.revision(0) not in (other.revision(0), make(name).revision(0))


def _use(name: str, data: Path) -> None:
    """Makes the workload and asks for its requests, as the harness does before it loads a model."""
    workload = make(name, data=data)
    for task in workload.tasks:
        take(workload, task, 1)


@pytest.mark.parametrize("name", WITH_RECORDS)
def test_line_that_is_not_json(name: str, tmp_path: Path) -> None:
    file, record, _ = RECORDS[name]
    data = data_path(name, tmp_path, [record])
    (tmp_path / file).write_text(json.dumps(record) + "\n{broken\n")
    with pytest.raises(DataError, match=rf"{file}, line 2: not JSON"):
        _use(name, data)


@pytest.mark.parametrize("name", WITH_RECORDS)
def test_line_without_a_field(name: str, tmp_path: Path) -> None:
    file, record, field = RECORDS[name]
    short = {key: value for key, value in record.items() if key != field}
    with pytest.raises(DataError, match=rf"{file}, line 2: field '{field}'"):
        _use(name, data_path(name, tmp_path, [record, short]))


@pytest.mark.parametrize("name", WITH_RECORDS)
def test_line_that_is_no_object(name: str, tmp_path: Path) -> None:
    file, record, _ = RECORDS[name]
    with pytest.raises(DataError, match=rf"{file}, line 2: is a JSON list"):
        _use(name, data_path(name, tmp_path, [record, [1, 2]]))


@pytest.mark.parametrize("name", WITH_RECORDS)
def test_empty_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=RECORDS[name][0]):
        _use(name, data_path(name, tmp_path, []))


@pytest.mark.parametrize("name", NAMES)
def test_missing_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.jsonl"):
        make(name, data=tmp_path / "absent.jsonl")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("chat-open", {"new_tokens": 0}),
        ("aime", {"hub": True, "data": "x"}),
        ("gpqa", {"shuffle_seed": -1}),
        ("gsm8k", {"shots": -1}),
        ("gsm8k", {"extraction": "loose"}),
        ("humaneval-infill", {"new_tokens": 0}),
        ("humaneval-infill", {"template": "{suffix}"}),
        ("lab-longbench", {"facts": 0}),
        ("lab-longbench", {"facts": 33}),
        ("longbench", {"target_tokens": 5}),
        ("longbench", {"hub": True, "data": "x"}),
        ("math500", {"new_tokens": 0}),
        ("needle", {"min_length": 10}),
        ("needle", {"min_length": 900, "max_length": 800}),
        ("needle", {"needles_per_cell": 0}),
        ("passkey", {"lengths": ()}),
        ("passkey", {"lengths": "256,many"}),
        ("passkey", {"lengths": (1,)}),
        ("perplexity", {"stride_words": 0}),
        ("perplexity", {"context_words": -1}),
        ("rag-copy", {"facts": 3}),
        ("recall", {"pairs": 0}),
        ("recall", {"pairs": 33}),
        ("recall", {"nonsense": 1}),
        ("ruler", {"length": 1000}),
        ("ruler", {"length": 2_000_000}),
        ("serving", {"input_words": 0}),
        ("serving", {"lengths": "normal"}),
        ("serving", {"spread": 0}),
        ("serving", {"lengths": "uniform", "spread": 2}),
        ("spec-bench", {"new_tokens": 0}),
        ("spec-bench", {"target_tokens": 10}),
    ],
)
def test_options_out_of_range(name: str, options: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        make(name, **options)
