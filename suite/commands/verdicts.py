"""What `suite compare` and `suite nightly` say about verdicts: a table, Markdown, GitHub annotations, an exit code."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from suite.commands.output import number, stdout, table
from suite.errors import InputError, NothingMeasuredError

if TYPE_CHECKING:
    from analysis.regression import Outcome, Verdict

MARKER = "<!-- inference-suite -->"
"""First line of every Markdown text, by which a workflow finds the comment or the issue it wrote before."""
_ORDER: tuple[Outcome, ...] = ("regression", "improvement", "no verdict", "same")
_SHOWN = 50


def exit_code(verdicts: Sequence[Verdict]) -> int:
    """1 where something got worse, else 0; `NothingMeasuredError` (4) where there is not one verdict."""
    outcomes = {one.outcome for one in verdicts}
    if not outcomes - {"no verdict"}:
        reasons = list(dict.fromkeys(one.reason for one in verdicts if one.reason))
        raise NothingMeasuredError("there is nothing to judge" + (f": {reasons[0]}" if reasons else "."))
    return 1 if "regression" in outcomes else 0


def tally(verdicts: Sequence[Verdict]) -> str:
    """`1 regression, 3 no verdict, 20 same`."""
    counts = Counter(one.outcome for one in verdicts)
    return ", ".join(f"{counts[name]} {name}" for name in _ORDER if counts[name]) or "nothing to judge"


def print_verdicts(title: str, verdicts: Sequence[Verdict]) -> None:
    """The table of what did not stay the same, regressions first."""
    columns = ["unit", "figure", "verdict", "why", "before", "after", "change", "p"]
    rows = [
        [one.unit, one.metric, one.outcome, one.reason, *figures(one), "-" if one.p is None else f"{one.p:.2g}"]
        for one in _telling(verdicts)
    ]
    if rows:
        table(title, columns, rows, left=4)
    stdout().print(f"{title}: {tally(verdicts)}", markup=False)


def figures(one: Verdict) -> list[str]:
    """Before, after and the change with its interval: `12.1`, `24.9`, `+106% [+101%, +110%]`."""
    change = one.change
    if change is None:
        return [number(one.before, 4), number(one.after, 4), "-"]
    said = f"{change.value:+.1%}"
    if change.low is not None and change.high is not None:
        said += f" [{change.low:+.1%}, {change.high:+.1%}]"
    return [number(one.before, 4), number(one.after, 4), said]


def markdown(title: str, verdicts: Sequence[Verdict], notes: Sequence[str] = ()) -> str:
    """The body of a pull request's comment, of an issue, or of a step's summary."""
    shown = _telling(verdicts)
    lines = [MARKER, f"### {_cell(title)}", "", f"{tally(verdicts)}.", ""]
    if shown:
        lines += ["| unit | figure | verdict | before | after | change | why |", "|---|---|---|--:|--:|--:|---|"]
    for one in shown[:_SHOWN]:
        said = f"**{one.outcome}**" if one.outcome == "regression" else one.outcome
        lines.append("| " + " | ".join([_cell(one.unit), one.metric, said, *figures(one), _cell(one.reason)]) + " |")
    if len(shown) > _SHOWN:
        lines += ["", f"and {len(shown) - _SHOWN} more rows."]
    return "\n".join([*lines, "", *(f"- {_cell(note)}" for note in notes)]).rstrip() + "\n"


def _cell(text: str) -> str:
    """Names and errors are somebody else's text: no table, link, mention or HTML comes out of them."""
    plain = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    for mark in "\\`*_[]|@#":
        plain = plain.replace(mark, f"&#{ord(mark)};" if mark in "@#|" else f"\\{mark}")
    return plain


def github_lines(verdicts: Sequence[Verdict]) -> list[str]:
    """Workflow commands that GitHub shows beside the change: an error per regression, one notice for the rest."""
    found = [one for one in verdicts if one.outcome == "regression"]
    lines = []
    for one in found:
        before, after, change = figures(one)
        said = f"{one.unit}: {one.metric} {before} -> {after} ({change}) {one.reason}".strip()
        lines.append(f"::error title={_escaped(f'regression: {one.metric}', ':,')}::{_escaped(said)}")
    return [*lines, f"::notice title=suite::{_escaped(tally(verdicts))}"]


def _escaped(text: str, more: str = "") -> str:
    for mark in "%\r\n" + more:
        text = text.replace(mark, f"%{ord(mark):02X}")
    return text


def write_text(path: Path, text: str, option: str) -> None:
    """Writes a file the user asked for."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"cannot write to {path} ({error.strerror or error}); give {option} a writable file."
        ) from error


def _telling(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """What did not stay the same, regressions first. Units without figures for one common reason are one row."""
    silent: dict[tuple[str, str], list[Verdict]] = {}
    shown = []
    for one in verdicts:
        if one.outcome == "no verdict" and one.before is None and one.after is None:
            silent.setdefault((one.metric, one.reason), []).append(one)
        elif one.outcome != "same":
            shown.append(one)
    shown += [replace(some[0], unit=f"{len(some)} units") if len(some) > 1 else some[0] for some in silent.values()]
    return sorted(shown, key=lambda one: _ORDER.index(one.outcome))
