"""LongBench: prompts, limits and chat handling as in the official release, data sources, and the sums."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from tests.workloads.support import SHARED, completion, longbench_record, take, write_jsonl
from workloads.longbench import LongBench, LongBenchConfig, aggregate, by_length
from workloads.longbench_data import OWN_PROMPTS
from workloads.longbench_tasks import TASKS, length_bin
from workloads.schema import DataError

RAW = {"trec", "triviaqa", "samsum", "lsht", "lcc", "repobench-p"}
OFFICIAL = SHARED / "longbench"
needs_official = pytest.mark.skipif(
    not OFFICIAL.is_dir(), reason="the official template files are not beside the checkout"
)


def test_there_are_21_tasks_in_six_categories() -> None:
    assert len(TASKS) == 21
    assert len({task.category for task in TASKS.values()}) == 6


@pytest.mark.parametrize("task", TASKS)
def test_chat_template_is_off_on_the_six_raw_sets(task: str) -> None:
    (request,) = take(LongBench(), task, 1)
    assert request.chat == (task not in RAW)
    assert request.stop == (("\n",) if task == "samsum" else ())
    assert request.truncation == "middle"


@needs_official
@pytest.mark.parametrize("task", TASKS)
def test_official_templates_and_limits_load(task: str) -> None:
    config = LongBenchConfig(templates=OFFICIAL / "dataset2prompt.json", limits=OFFICIAL / "dataset2maxlen.json")
    (official,), (own,) = take(LongBench(config), task, 1), take(LongBench(), task, 1)
    template = json.loads((OFFICIAL / "dataset2prompt.json").read_text())[task]
    assert official.prompt.startswith(template.split("{context}")[0])
    assert official.max_new_tokens == own.max_new_tokens  # the built-in limits are the official ones
    assert official.prompt != own.prompt
    assert LongBench(config).revision(0) != LongBench().revision(0)


def test_revision_follows_the_templates_bytes_not_their_place(tmp_path: Path) -> None:
    revisions = []
    for name, template in (("a", "{context}"), ("b", "{context}"), ("c", "{context}\n")):
        path = tmp_path / f"{name}.json"
        path.write_text(json.dumps(dict.fromkeys(TASKS, template)))
        revisions.append(LongBench(LongBenchConfig(templates=path)).revision(0))
    assert revisions[0] == revisions[1] != revisions[2]


@needs_official
def test_own_wording_is_not_the_official_one() -> None:
    official = json.loads((OFFICIAL / "dataset2prompt.json").read_text())
    own = json.loads(OWN_PROMPTS.read_text())
    for task, template in own.items():
        lines = {line for line in template.split("\n") if len(line) > 25}
        assert lines.isdisjoint(official[task].split("\n")), task


@pytest.mark.parametrize("task", TASKS)
def test_evidence_spans_point_into_the_prompt(task: str) -> None:
    for request in take(LongBench(), task, 3):
        spans = request.metadata["evidence_spans"]
        assert spans
        assert all(0 <= low < high <= len(request.prompt) for low, high in spans)
        if TASKS[task].metric in ("f1", "f1_zh"):
            evidence = " ".join(request.prompt[low:high] for low, high in spans)
            assert any(answer in evidence for answer in request.references)


def _directory(tmp_path: Path, *names: str) -> LongBench:
    for name in names:
        write_jsonl(tmp_path / f"{name}.jsonl", [longbench_record(_id=name, input=f"from {name}")])
    return LongBench(LongBenchConfig(data=tmp_path))


def test_tasks_are_those_the_directory_holds(tmp_path: Path) -> None:
    assert _directory(tmp_path, "qasper", "musique_e").tasks == ("qasper", "musique")


def test_plain_file_goes_before_the_longbench_e_one(tmp_path: Path) -> None:
    (request,) = take(_directory(tmp_path, "qasper_e", "qasper"), "qasper", 5)
    assert request.metadata["record"] == "qasper"


def test_longbench_e_file_alone_is_accepted(tmp_path: Path) -> None:
    (request,) = take(_directory(tmp_path, "qasper_e"), "qasper", 5)
    assert "from qasper_e" in request.prompt
    assert request.metadata["length_bin"] == "0-4k"


def test_directory_without_data_sets(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no LongBench data set; expected files such as qasper\.jsonl"):
        LongBench(LongBenchConfig(data=tmp_path))


def test_file_instead_of_a_directory(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "qasper.jsonl", [longbench_record()])
    with pytest.raises(DataError, match="is not a directory"):
        LongBench(LongBenchConfig(data=path))


def test_score_is_the_best_over_the_references(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "qasper.jsonl", [longbench_record(answers=["red fox", "fox"])])
    workload = LongBench(LongBenchConfig(data=tmp_path))
    (request,) = take(workload, "qasper", 1)
    assert workload.score(completion(request, "Fox."), request) == 100.0


def test_only_the_first_line_of_few_shot_answers_is_scored() -> None:
    workload = LongBench()
    (few_shot,), (other,) = take(workload, "triviaqa", 1), take(workload, "multifieldqa_en", 1)
    for request, expected in ((few_shot, 100.0), (other, pytest.approx(100 * 2 * 0.5 / 1.5))):
        words = len([word for word in request.references[0].split() if word != "a"])
        text = f"\n{request.references[0]}\n" + " ".join(["more"] * words)
        assert workload.score(completion(request, text), request) == pytest.approx(expected)


def test_classes_are_those_of_the_last_record(tmp_path: Path) -> None:
    first = longbench_record(answers=["Food"], all_classes=["Food", "Tool"])
    write_jsonl(tmp_path / "trec.jsonl", [first, longbench_record(answers=["Tool"], all_classes=["Food"])])
    workload = LongBench(LongBenchConfig(data=tmp_path))
    request, _ = take(workload, "trec", 2)
    assert workload.score(completion(request, "Food or Tool"), request) == 100.0


def test_released_classification_is_an_option(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "trec.jsonl", [longbench_record(answers=["abc"], all_classes=["a", "ab", "abc"])])
    scores = []
    for released in (False, True):
        workload = LongBench(LongBenchConfig(data=tmp_path, released_classification=released))
        (request,) = take(workload, "trec", 1)
        scores.append(workload.score(completion(request, "abc"), request))
    assert scores == [100.0, 50.0]


def test_classification_without_classes_is_a_data_error(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "trec.jsonl", [longbench_record()])
    with pytest.raises(DataError, match=r"trec\.jsonl, line 1: field 'all_classes' is empty"):
        take(LongBench(LongBenchConfig(data=tmp_path)), "trec", 1)


@pytest.mark.parametrize(
    ("document", "sentence"),
    [
        ("[]", "is a JSON list; expected an object"),
        ('{"qasper": "{context}"}', "has no entry for narrativeqa"),
        ("{", "line 1: not JSON"),
    ],
)
def test_bad_template_file(document: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "prompts.json").write_text(document)
    with pytest.raises(DataError, match=rf"prompts\.json.*{sentence}"):
        LongBench(LongBenchConfig(templates=tmp_path / "prompts.json"))


@pytest.mark.parametrize("template", [5, "no slot", "{context} {question}", "{context} {"])
def test_bad_template(template: object, tmp_path: Path) -> None:
    (tmp_path / "prompts.json").write_text(json.dumps(dict.fromkeys(TASKS, "{context}") | {"qasper": template}))
    with pytest.raises(DataError, match=r"prompts\.json: the template of 'qasper'"):
        LongBench(LongBenchConfig(templates=tmp_path / "prompts.json"))


@pytest.mark.parametrize("limit", [0, "32", 1.5, True])
def test_bad_limit(limit: object, tmp_path: Path) -> None:
    (tmp_path / "limits.json").write_text(json.dumps(dict.fromkeys(TASKS, 32) | {"qasper": limit}))
    with pytest.raises(DataError, match=r"limits\.json: the limit of 'qasper'"):
        LongBench(LongBenchConfig(limits=tmp_path / "limits.json"))


def test_hub_archive_is_read_without_unpacking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("data/qasper.jsonl", json.dumps(longbench_record()))
        archive.writestr("data/qasper_e.jsonl", json.dumps(longbench_record()))
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *args, **kwargs: str(tmp_path / "data.zip"))
    workload = LongBench(LongBenchConfig(hub=True))
    assert workload.source == "THUDM/LongBench"
    assert workload.tasks == ("qasper",)
    assert len(take(workload, "qasper", 5)) == 1
    assert tmp_path / "data.zip" in workload.data_files()


def test_hub_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> str:
        raise ConnectionError("no route to host\nand more")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(DataError, match=r"cannot be fetched from the hub \(no route to host\); give --data PATH"):
        LongBench(LongBenchConfig(hub=True))


def test_hub_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(DataError, match=r"pip install 'inference-suite\[hub\]'"):
        LongBench(LongBenchConfig(hub=True))


def test_average_is_the_mean_of_category_means() -> None:
    summed = aggregate({"narrativeqa": 10.0, "qasper": 20.0, "lcc": 60.0})
    assert summed["single-document QA"] == 15.0
    assert summed["categories"] == 37.5
    assert summed["flat"] == 30.0


@pytest.mark.parametrize(("length", "expected"), [(0, "0-4k"), (3999, "0-4k"), (4000, "4-8k"), (8000, "8k+")])
def test_length_bins(length: int, expected: str) -> None:
    assert length_bin(length) == expected


def test_longbench_e_means() -> None:
    assert by_length([(100, 10.0), (200, 20.0), (9000, 50.0)]) == {"0-4k": 15.0, "8k+": 50.0}
