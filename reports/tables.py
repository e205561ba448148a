"""The comparison table: what each column shows of a row, as text that the template escapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from analysis.comparison import Comparison
from analysis.wording import NONE, number, signed
from reports.style import giga, interval, percent, size


@dataclass(frozen=True)
class Cell:
    """A figure, what qualifies it (small, below), and the number a column is sorted by (None sorts last)."""

    text: str
    detail: str = ""
    order: float | None = None
    tone: str = ""


@dataclass(frozen=True)
class Column:
    """A column's heading, the explanation shown on hovering, and how to fill it."""

    title: str
    hint: str
    cell: Callable[[Comparison], Cell]


def metric(
    name: str, show: Callable[[float | None], str], detail: Callable[[Comparison], str] | None = None
) -> Callable[[Comparison], Cell]:
    """A cell that shows one metric, with a second line below it."""

    def cell(row: Comparison) -> Cell:
        value = row.metrics.get(name)
        if value is None:
            return Cell(NONE)
        return Cell(show(value), detail(row) if detail is not None else "", value)

    return cell


def ratio(name: str) -> Callable[[Comparison], Cell]:
    """A speed-up with its interval: green or red only where the interval excludes 1 and the units are stable."""

    def cell(row: Comparison) -> Cell:
        estimate = row.ratios.get(name)
        if estimate is None:
            return Cell("1" if row.is_baseline else NONE, "baseline" if row.is_baseline else "")
        tone = ""
        if not row.trusted:
            tone = "doubtful"
        elif estimate.low is not None and estimate.high is not None:
            tone = "better" if estimate.low > 1 else "worse" if estimate.high < 1 else ""
        return Cell(f"{number(estimate.value)}×", interval(estimate.low, estimate.high), estimate.value, tone)

    return cell


def status(row: Comparison) -> Cell:
    """How many units are in which state; the reasons are listed below the table."""
    said = [f"{count} {name}" for name, count in row.statuses.items() if count]
    tone = (
        "worse" if row.statuses["failed"] or row.statuses["gated"] else "doubtful" if row.statuses["unstable"] else ""
    )
    return Cell(said[0] if said else NONE, ", ".join(said[1:]), row.statuses["ok"], tone)


def score(row: Comparison) -> Cell:
    """Mean score ± its standard error, and where the items come from."""
    value, error = row.metrics["score"], row.metrics["score_standard_error"]
    if value is None:
        return Cell(NONE)
    source = "source: synthetic" if row.contest.source == "synthetic" else ""
    detail = "\n".join(part for part in (row.score_coverage, source) if part)
    return Cell(number(value) + (f" ± {number(error, 2)}" if error is not None else ""), detail, value)


def score_change(row: Comparison) -> Cell:
    """Paired difference to dense; green or red only where its interval excludes 0."""
    change = row.score_change
    if change is None:
        return Cell(NONE, "baseline" if row.is_baseline else "")
    tone = ""
    if change.low is not None and change.high is not None and not change.low <= 0 <= change.high:
        tone = "better" if (change.value > 0) == row.higher_is_better else "worse"
    detail = (
        "no interval" if change.low is None or change.high is None else f"[{signed(change.low)}, {signed(change.high)}]"
    )
    return Cell(signed(change.value), detail, change.value, tone)


def _ceiling(phase: str) -> Callable[[Comparison], str]:
    def detail(row: Comparison) -> str:
        share = row.metrics[f"{phase}_ceiling_fraction"]
        return f"{percent(share)} of ceiling" if share is not None else ""

    return detail


def _other(template: str, name: str, show: Callable[[float | None], str] = number) -> Callable[[Comparison], str]:
    return lambda row: template.format(show(row.metrics.get(name)))


def _measured(row: Comparison) -> str:
    """The speed-up that stands beside a predicted one."""
    estimate = row.ratios.get("tpot")
    return f"measured {number(estimate.value)}×" if estimate is not None else ""


_TPOT = metric("median_tpot_ms", number, _other("ITL p99 {}", "p99_itl_ms"))
_TTFT = metric("median_ttft_ms", number, _other("p99 {}", "p99_ttft_ms"))
_THROUGHPUT = metric("output_throughput", number, _other("prompt {}", "prompt_throughput"))
_KV_READ = metric("selected_retention", percent, _other("{}/step", "kv_read_bytes_per_step", size))
_KV_STORED = metric("stored_retention", percent, _other("{}", "kv_resident_bytes", size))
_DECODE_RATE = metric("decode_gb_per_s", number, _ceiling("decode"))
_PREFILL_RATE = metric("prefill_gflop_per_s", number, _ceiling("prefill"))

_TAU = metric("tau", number, _other("{} accepted", "draft_acceptance_rate", percent))
_PREDICTED = metric("predicted_decode_speedup", lambda value: f"{number(value)}×", _measured)

COLUMNS: Sequence[Column] = (
    Column("Units", "units by status; unstable ones are left out of the speeds", status),
    Column("Decode speed-up", "TPOT of dense over TPOT of this method, paired, with 95% interval", ratio("tpot")),
    Column("First-token speed-up", "TTFT of dense over TTFT of this method, paired, with 95% interval", ratio("ttft")),
    Column("TPOT, ms", "median time per output token; 99th percentile of the gaps", _TPOT),
    Column("TTFT, ms", "median time to first token; 99th percentile", _TTFT),
    Column("Tokens/s", "output tokens per second of serving; prompt tokens per second of prefill", _THROUGHPUT),
    Column("Score", "mean over tasks ± standard error", score),
    Column("Δ score", "paired difference to dense, with 95% interval", score_change),
    Column("KV read", "selected retention: share of the cache that a decode step reads", _KV_READ),
    Column("KV stored", "stored retention: share of the cache kept in memory", _KV_STORED),
    Column("Peak memory", "largest resident size of the process", metric("process_peak_bytes", size)),
    Column("Decode GB/s", "counted bytes over measured time; share of the measured roofline", _DECODE_RATE),
    Column("Prefill GFLOP/s", "counted FLOPs over measured time; share of the measured roofline", _PREFILL_RATE),
)


TELLING = {"Decode speed-up", "First-token speed-up", "TPOT, ms", "Score", "Δ score", "KV read", "KV stored"}
ABLATION = tuple(column for column in COLUMNS if column.title in TELLING)
"""What tells one set of options of a method from another."""

DRAFTING: Sequence[Column] = (
    Column("Tokens/pass", "tau: emitted tokens per target pass, its own included; accepted share of drafts", _TAU),
    Column("Drafting", "share of decoding time that drafting took", metric("draft_time_share", percent)),
    Column(
        "Predicted speed-up",
        "of decoding: tau / r, r the roofline's time of a round over a dense step, without drafting on the host; "
        "more than 15% beside the measured one asks for an explanation",
        _PREDICTED,
    ),
)
"""Beside them where somebody drafts."""


_DRAWN = metric("search_generated_tokens", number, _other("{} discarded", "search_discarded_share", percent))
_SAMPLES = metric("search_samples", number, _other("{} called off", "search_cancelled"))
_SEQUENTIAL = metric("search_sequential_depth", number, _other("{} drawn tokens/s", "search_throughput"))
_PROMPTS = metric("search_prefilled_tokens", number, _other("of {}", "search_prompt_tokens"))
_VERIFIED = metric("search_verifier_passes", number, _other("{} tokens", "search_verifier_tokens"))
_WORK = metric("search_flops", giga, _other("{} verifier", "search_verifier_flops", giga))

SEARCHING: Sequence[Column] = (
    Column("Tokens drawn", "per request, those that nobody reads again included; their share", _DRAWN),
    Column("Pieces", "pieces drawn per request; those called off before their end", _SAMPLES),
    Column("Depth", "longest chain of decode steps that depend on each other; tokens drawn per second", _SEQUENTIAL),
    Column("Prefilled", "prompt and text tokens computed after reuse; those that the pieces stand behind", _PROMPTS),
    Column("Verified", "prefixes scored per request; tokens fed for that", _VERIFIED),
    Column("GFLOP", "computed by the policy per request; by the verifier", _WORK),
)
"""Beside them where somebody searches."""


def columns(rows: Sequence[Comparison]) -> Sequence[Column]:
    """The columns of a table with these rows."""
    drafting = any(row.metrics.get("tau") is not None for row in rows)
    searching = any(row.metrics.get("search_generated_tokens") is not None for row in rows)
    return (*COLUMNS, *(DRAFTING if drafting else ()), *(SEARCHING if searching else ()))


def cells(row: Comparison, shown: Sequence[Column] = COLUMNS) -> list[Cell]:
    """The cells of one row, column by column."""
    return [column.cell(row) for column in shown]
