"""The report's sentences: what was compared, what came out, and what cannot be trusted."""

from __future__ import annotations

from collections.abc import Sequence

from analysis.comparison import Comparison, Contest
from analysis.statistics import Estimate
from analysis.wording import number, plural, signed


def contest_title(contest: Contest) -> str:
    """What was run, on what: "longbench on smollm2-135m (bf16, 2 threads)"."""
    batch = f", batch {contest.batch_size}" if contest.batch_size > 1 else ""
    return f"{contest.workload} on {contest.model} ({contest.dtype}, {plural(contest.threads, 'thread')}{batch})"


def headlines(rows: Sequence[Comparison]) -> tuple[str, ...]:
    """What was compared, then one paragraph per method of a contest, the baseline first."""
    baseline = next((row for row in rows if row.is_baseline), None)
    return (_what(rows), *(_paragraph(row, baseline) for row in rows))


def _what(rows: Sequence[Comparison]) -> str:
    tasks, requests = max(len(row.tasks) for row in rows), max(row.requests for row in rows)
    counts = {status: sum(row.statuses[status] for row in rows) for status in rows[0].statuses}
    said = ", ".join(f"{count} {status}" for status, count in counts.items() if count)
    compared = f"{plural(len(rows), 'method')} on {plural(tasks, 'task')}, {plural(requests, 'request')}"
    example = next((problem for row in rows for problem in row.problems), "").partition("; ")[0].rstrip(".")
    return f"{compared}; units: {said}." + (f" For instance: {example}." if example else "")


def _paragraph(row: Comparison, baseline: Comparison | None) -> str:
    if row.metrics["median_tpot_ms"] is None and row.metrics["median_ttft_ms"] is None:
        reason = f": {row.problems[0].rstrip('.')}" if row.problems else ""
        return f"{row.label}: no speed is reported, because every unit failed or was gated{reason}."
    parts = [_speed(row, baseline), _quality(row), _cache(row)]
    return " ".join(part for part in (*parts, _trust(row)) if part)


def _speed(row: Comparison, baseline: Comparison | None) -> str:
    if row is baseline or not row.ratios:
        against = "" if row is baseline else " (no dense unit in its block to compare with)"
        return f"{row.label}{against}: {_absolute(row)}"
    names = {"tpot": "output tokens come", "ttft": "the first token comes"}
    said = [f"{words} {ratio_words(row.ratios[name])}" for name, words in names.items() if name in row.ratios]
    return f"{row.label} against dense: {', '.join(said)}."


def _absolute(row: Comparison) -> str:
    metrics = row.metrics
    said = []
    if (tpot := metrics["median_tpot_ms"]) is not None:
        said.append(f"{tpot:.1f} ms per output token")
    if (ttft := metrics["median_ttft_ms"]) is not None:
        said.append(f"{ttft:.0f} ms to the first token")
    if (rate := metrics["decode_gb_per_s"]) is not None:
        share = metrics["decode_ceiling_fraction"]
        said.append(f"decode at {rate:.1f} GB/s" + (f", {share:.0%} of the measured ceiling" if share else ""))
    return ", ".join(said) + "."


def ratio_words(estimate: Estimate) -> str:
    """A speed-up in words, with its interval: "1.31× as fast [1.27, 1.36]"."""
    interval = "no interval" if estimate.low is None else f"{estimate.low:.2f}, {estimate.high:.2f}"
    return f"{estimate.value:.2f}× as fast [{interval}]"


def _quality(row: Comparison) -> str:
    score = row.metrics["score"]
    if score is None:
        return ""
    error = row.metrics["score_standard_error"]
    name = row.score_name or "score"
    said = f"{name[0].upper()}{name[1:]}: {number(score)}" + (f" ± {number(error, 2)}" if error is not None else "")
    said += f" {row.score_coverage}" if row.score_coverage else ""
    change = row.score_change
    if change is None:
        return said + "."
    interval = ""
    if change.low is not None and change.high is not None:
        interval = f" [{signed(change.low)}, {signed(change.high)}]"
    return f"{said}, a paired difference to dense of {signed(change.value)}{interval}."


def _cache(row: Comparison) -> str:
    selected, stored = row.metrics["selected_retention"], row.metrics["stored_retention"]
    if selected is None or stored is None or row.is_baseline:
        return ""
    return f"A decode step reads {selected:.0%} of the KV cache; {stored:.0%} of it stays stored."


def _trust(row: Comparison) -> str:
    lost = row.statuses["gated"] + row.statuses["failed"]
    said = f"{plural(lost, 'unit')} gated or failed. " if lost else ""
    unstable = row.statuses["unstable"]
    if not unstable:
        return said.strip()
    if row.trusted:
        return f"{said}{plural(unstable, 'unit')} unstable and left out of the speeds."
    return f"{said}All its timed units are unstable: take the speeds as a hint, not as a verdict."
