"""One set of records in four formats, and the sentence a bad file gets."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pandas as pd
import pytest
from pydantic import BaseModel

from tests.workloads.support import write_jsonl
from workloads.loading import read_records
from workloads.schema import DataError


class Item(BaseModel):
    name: str
    count: int


RECORDS = [{"name": "猫", "count": 1}, {"name": 'a "quoted",\ntext', "count": 2}]


def _write(path: Path) -> Path:
    if path.suffix == ".jsonl":
        return write_jsonl(path, RECORDS)
    if path.suffix == ".json":
        path.write_text(json.dumps(RECORDS), encoding="utf-8")
    elif path.suffix == ".csv":
        pd.DataFrame(RECORDS).to_csv(path, index=False)
    else:
        pd.DataFrame(RECORDS).to_parquet(path)
    return path


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_formats_hold_the_same_records(suffix: str, tmp_path: Path) -> None:
    found = read_records(_write(tmp_path / f"items{suffix}"), Item)
    assert [item.model_dump() for item in found] == RECORDS


def test_member_of_an_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("data/items.jsonl", json.dumps(RECORDS[0]))
    assert read_records(zipfile.Path(tmp_path / "data.zip", "data/items.jsonl"), Item)[0].name == "猫"


def test_byte_order_mark_and_blank_lines(tmp_path: Path) -> None:
    path = tmp_path / "items.jsonl"
    path.write_text('\ufeff{"name": "x", "count": 1}\n\n', encoding="utf-8")
    assert len(read_records(path, Item)) == 1


def test_a_line_separator_inside_a_text_does_not_end_the_line(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "items.jsonl", [{"name": "a\u2028b\x85c", "count": 1}])
    assert read_records(path, Item)[0].name == "a\u2028b\x85c"


@pytest.mark.parametrize(
    ("file", "content", "sentence"),
    [
        ("a.jsonl", b'{"name": "x", "count": 1}\n{"name": "y"}\n', r"a\.jsonl, line 2: field 'count': Field required"),
        ("a.jsonl", b'{"name": "x", "count": "many"}\n', r"a\.jsonl, line 1: field 'count': .*integer"),
        ("a.jsonl", b"\xff\xfe", r"a\.jsonl: byte 0 is not UTF-8"),
        ("a.jsonl", b"", r"a\.jsonl: holds no records"),
        ("a.json", b'{"name": "x"}', r"a\.json: is a JSON dict; expected an array"),
        ("a.json", b"[1,\n2,", r"a\.json, line 2: not JSON"),
        ("a.json", b'[{"name": "x", "count": 1}, 5]', r"a\.json, record 2: is a JSON int"),
        ("a.csv", b"name,count\nx\n", r"a\.csv, line 2: .*header"),
        ("a.csv", b"name,count\nx,y\n", r"a\.csv, line 2: field 'count'"),
        ("a.parquet", b"not parquet", r"a\.parquet: not a parquet file"),
        ("a.xml", b"<x/>", r"a\.xml: unknown format '\.xml'; expected one of \.jsonl"),
    ],
)
def test_bad_file_is_one_sentence(file: str, content: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / file).write_bytes(content)
    with pytest.raises(DataError, match=sentence) as caught:
        read_records(tmp_path / file, Item)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".parquet"])
def test_missing_file(suffix: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such file"):
        read_records(tmp_path / f"absent{suffix}", Item)
