"""Reads a user's own copy of a data set: JSONL, a JSON array, CSV or parquet, checked record by record.

A record that does not fit its schema is a `DataError` that names the file, the line (or the record's number) and the
field, so that one look at the file is enough to mend it.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar
from zipfile import Path as ZipPath

import pyarrow.parquet
from pydantic import BaseModel, ValidationError

from workloads.schema import DataError

Record = TypeVar("Record", bound=BaseModel)
Source = Path | ZipPath
"""A file, or a member of a zip archive."""
SUFFIXES = (".jsonl", ".json", ".csv", ".parquet")


def data_file(data: Path, names: Sequence[str]) -> Path | None:
    """`data` itself, or if it is a directory the first file in it with one of `names` and a known suffix."""
    if not data.is_dir():
        return data
    paths = (data / f"{name}{suffix}" for name in names for suffix in SUFFIXES)
    return next((path for path in paths if path.is_file()), None)


def fetch_from_hub(hub_id: str, file: str) -> Path:
    """One file of a data set on the hub, or from the hub's cache on this machine; `DataError` where it is in neither.

    Files are read directly: loading scripts no longer run in `datasets` 4 and would be remote code.
    """
    try:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
    except ImportError:
        raise DataError(
            "the option 'hub' needs the extra 'hub': pip install 'inference-suite[hub]', or give --data PATH."
        ) from None
    try:
        return Path(hf_hub_download(hub_id, file, repo_type="dataset"))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{hub_id} cannot be fetched from the hub ({reason}); give --data PATH instead.") from None


def read_text(path: Source) -> str:
    """The file's text (UTF-8, with or without a byte-order mark)."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; give the path of an existing one.") from None
    except IsADirectoryError:
        raise DataError(f"{path}: is a directory; give the path of a file.") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8; save the file as UTF-8 text.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); give a readable file.") from None


def read_json(path: Source) -> Any:
    """The file's single JSON document."""
    try:
        return json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}: not JSON ({error.msg}); expected one JSON document.") from None


def read_records(path: Source, schema: type[Record]) -> list[Record]:
    """All records of `path`, each validated by `schema`; `DataError` for an unreadable, wrong or empty file."""
    readers = {".jsonl": _jsonl, ".json": _json_array, ".csv": _csv, ".parquet": _parquet}
    if path.suffix not in readers:
        raise DataError(f"{path}: unknown format {path.suffix!r}; expected one of {', '.join(SUFFIXES)}.")
    records = [_checked(raw, schema, f"{path}, {place}") for place, raw in readers[path.suffix](path)]
    if not records:
        raise DataError(f"{path}: holds no records; expected at least one.")
    return records


def _checked(raw: object, schema: type[Record], place: str) -> Record:
    if not isinstance(raw, dict):
        raise DataError(f"{place}: is a JSON {type(raw).__name__}; expected an object with one record's fields.")
    try:
        return schema.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the record"
        raise DataError(f"{place}: field {field!r}: {first['msg']}.") from None


def _jsonl(path: Source) -> Iterator[tuple[str, object]]:
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            yield f"line {number}", json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}, line {number}: not JSON ({error.msg}); expected one object a line.") from None


def _json_array(path: Source) -> Iterator[tuple[str, object]]:
    document = read_json(path)
    if not isinstance(document, list):
        raise DataError(f"{path}: is a JSON {type(document).__name__}; expected an array of records.")
    yield from ((f"record {number}", raw) for number, raw in enumerate(document, start=1))


def _csv(path: Source) -> Iterator[tuple[str, object]]:
    reader = csv.DictReader(read_text(path).splitlines(keepends=True))
    for raw in reader:
        if None in raw or None in raw.values():
            raise DataError(f"{path}, line {reader.line_num}: {len(raw)} cells do not match the header's columns.")
        yield f"line {reader.line_num}", raw


def _parquet(path: Source) -> Iterator[tuple[str, object]]:
    try:
        with path.open("rb") as file:
            table = pyarrow.parquet.read_table(file)
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; give the path of an existing one.") from None
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a parquet file ({error}).") from None
    yield from ((f"record {number}", raw) for number, raw in enumerate(table.to_pylist(), start=1))
