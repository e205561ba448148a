"""The store's units and samples as files other programs read: parquet, CSV, JSON. pandas is imported when used."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from suite.errors import InputError
from suite.harness.measurement import UnitResult

if TYPE_CHECKING:
    import pandas

FORMATS = ("parquet", "csv", "json")


def unit_rows(units: Sequence[UnitResult]) -> list[dict[str, Any]]:
    """One flat row per unit, nested names joined by dots; samples, counts, KV records and gates stay out."""
    nested = {"samples", "counts", "kv", "gates", "gpus"}
    return [
        {
            **_flat(unit.model_dump(mode="json", exclude=nested)),
            "samples": len(unit.samples),
            "gates_failed": ", ".join(gate.name for gate in unit.gates if not gate.passed),
        }
        for unit in units
    ]


def sample_rows(units: Sequence[UnitResult]) -> list[dict[str, Any]]:
    """One row per timed request, with the key and names of its unit; lists and dictionaries as JSON text."""
    return [
        {
            "key": unit.key,
            "workload": unit.spec.workload.name,
            "method": unit.spec.method.name,
            "model": unit.spec.model.name,
            "status": unit.status,
            **{name: _cell(value) for name, value in sample.model_dump(mode="json").items()},
        }
        for unit in units
        for sample in unit.samples
    ]


def _flat(document: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    row: dict[str, Any] = {}
    for name, value in document.items():
        free_form = name in ("options", "metadata")  # these differ from row to row, so they stay one column
        if isinstance(value, dict) and not free_form:
            row |= _flat(value, f"{prefix}{name}.")
        else:
            row[prefix + name] = _cell(value)
    return row


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False) if isinstance(value, dict | list) else value


def export(units: Sequence[UnitResult], folder: Path, form: str) -> list[Path]:
    """Writes `units.<form>` and `samples.<form>` into `folder` and returns their paths."""
    import pandas

    if form not in FORMATS:
        raise InputError(f"unknown export format {form!r}; known: {', '.join(FORMATS)}.")
    tables = {"units": unit_rows(units), "samples": sample_rows(units)}
    paths = [folder / f"{name}.{form}" for name in tables]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, rows in zip(paths, tables.values(), strict=True):
            _writer(pandas.DataFrame(rows), form)(path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"cannot write the export into {folder} ({reason}); give a writable directory.") from error
    return paths


def _writer(frame: pandas.DataFrame, form: str) -> Callable[[Path], Any]:
    writers: dict[str, Callable[[Path], Any]] = {
        "parquet": lambda path: frame.to_parquet(path, index=False),
        "csv": lambda path: frame.to_csv(path, index=False),
        "json": lambda path: frame.to_json(path, orient="records", force_ascii=False, indent=1),
    }
    return writers[form]
