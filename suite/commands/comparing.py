"""`suite compare`: two sets of results, and what got worse between them."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from suite.commands import verdicts as said
from suite.commands.output import print_json
from suite.commands.stores import open_store
from suite.errors import InputError
from suite.harness.history import HISTORY_NAME, History, Observation
from suite.harness.store import Store

if TYPE_CHECKING:
    from suite.harness.measurement import UnitResult

SCHEMA = "inference-suite.compare/1"
_LEAST_NAME = 4  # characters of a hash that may name a result


def compare(
    base: str, new: str, min_effect: float, store_file: Path | None, markdown: Path | None, github: bool, as_json: bool
) -> int:
    """Exit code 1 on a regression, 4 when nothing could be judged."""
    from analysis import regression

    before, after = (_results(name, store_file) for name in (base, new))
    verdicts = regression.compare(before, after, min_effect)
    title = f"{new} against {base}"
    if markdown is not None:
        said.write_text(markdown, said.markdown(title, verdicts), "--markdown")
    if github:
        print("\n".join(said.github_lines(verdicts)), file=sys.stderr)  # the log of a step is both streams
    if as_json:
        counted = said.tally(verdicts)
        rows = [verdict.document() for verdict in verdicts]
        print_json({"schema": SCHEMA, "base": base, "new": new, "tally": counted, "verdicts": rows})
    else:
        said.print_verdicts(title, verdicts)
    return said.exit_code(verdicts)


def _results(name: str, store_file: Path | None) -> list[Observation]:
    """The results a name stands for: a store, a history's last night, or a sweep, code version, night or commit."""
    path = Path(name)
    if path.suffix == ".jsonl" and path.is_file():
        nights = _nights(path)
        return [one for one in nights if one.night == nights[-1].night]
    if path.is_file():
        with Store(path, create=False) as store:
            return observations(store, store.units())
    with open_store(store_file) as store:
        units = store.units(sweep=name) or [unit for unit in store.units() if _names(name, unit.code_version)]
        found = observations(store, units)
        history = store.path.with_name(HISTORY_NAME)
    if not found and history.is_file():
        found = [one for one in _nights(history) if _names(name, one.night) or _names(name, one.commit)]
    if not found:
        raise InputError(
            f"{name} names no results: give a store (.sqlite), a history of nights (.jsonl), or, of those in "
            f"{store.path}, a code version, a sweep's id, a night or a commit."
        )
    return found


def _names(name: str, version: str) -> bool:
    """True for the version `0.1.0+abcdef`, for its beginning, and for the beginning of its hash."""
    long_enough = len(name) >= _LEAST_NAME
    return bool(version) and long_enough and (version.startswith(name) or version.partition("+")[2].startswith(name))


def _nights(path: Path) -> list[Observation]:
    lines = [line for line in History(path).read() if isinstance(line, Observation)]
    if not lines:
        raise InputError(f"{path} holds no night; `python -m suite nightly` writes them.")
    return lines


def observations(store: Store, units: Sequence[UnitResult]) -> list[Observation]:
    """Stored units with the hardware they were measured on."""
    from analysis.observations import observe, place_of

    places = {name: place_of(json.loads(text)) for name, text in store.machines().items()}
    return [observe(unit, places.get(unit.machine_id, unit.machine_id)) for unit in units]
