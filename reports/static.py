"""The main figures as PNG and SVG (matplotlib), for places that show no HTML: README, issues, papers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np

mpl.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import NullFormatter, StrMethodFormatter

from analysis.comparison import Comparison
from analysis.report_data import ContestReport, ReportData
from analysis.wording import number
from reports.style import PHASE_SYMBOLS, colours

MARKERS = {"square": "s", "circle": "o"}
STYLE: dict[Any, Any] = {
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8ebef",
    "font.size": 10,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "savefig.bbox": "tight",
    "savefig.facecolor": "white",
    "svg.hashsalt": "inference-suite",
}


def write_pictures(data: ReportData, folder: Path) -> list[Path]:
    """Writes every picture that has something to show, as PNG and SVG, and returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[Path] = []
    if data.points or data.roofs:
        paths += _save(folder / "roofline", lambda axes: draw_roofline(axes, data), (8.5, 4.6))
    for index, contest in enumerate(data.contests, start=1):
        for name, draw, wanted in _contest_pictures(contest):
            if wanted:
                paths += _save(folder / f"{index}-{contest.contest.workload}-{name}", draw, (6.4, 3.6))
    return paths


def _contest_pictures(contest: ContestReport) -> list[tuple[str, Callable[[Axes], None], bool]]:
    """(name, how to draw it, whether there is anything to draw)."""
    rows = contest.rows
    compared = [row for row in rows if row.ratios]
    cached = [row for row in rows if row.metrics["selected_retention"] is not None]
    scored = [row for row in cached if row.metrics["score"] is not None]
    return [
        ("speedups", lambda axes: draw_speedups(axes, compared), bool(compared)),
        ("cache", lambda axes: draw_cache(axes, cached), bool(cached)),
        ("score-retention", lambda axes: draw_score_retention(axes, scored), bool(scored)),
    ]


def _save(stem: Path, draw: Callable[[Axes], None], inches: tuple[float, float]) -> list[Path]:
    with mpl.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=inches)
        try:
            draw(axes)
            # Names may hold a dot, so the suffix is added, not replaced.
            paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "svg")]
            figure.savefig(paths[0], dpi=160)
            figure.savefig(paths[1], metadata={"Date": None})
        finally:
            plt.close(figure)
    return paths


def draw_roofline(axes: Axes, data: ReportData) -> None:
    """Achieved GFLOP/s over arithmetic intensity under the measured ceilings."""
    ridges = [roof.peak_gflop_per_s / rate for roof in data.roofs for rate in roof.bandwidths_gb_per_s.values()]
    marks = [*ridges, *(point.intensity for point in data.points)]
    span = np.sort(np.concatenate([np.geomspace(min(marks) / 3, max(marks) * 3, 64), ridges]))
    for roof in data.roofs:
        for (name, rate), line in zip(roof.bandwidths_gb_per_s.items(), ("-", "--"), strict=False):
            label = f"{roof.label}: {name}, {number(rate)} GB/s, peak {number(roof.peak_gflop_per_s)} GFLOP/s"
            axes.plot(span, np.minimum(roof.peak_gflop_per_s, span * rate), line, color="#55606f", lw=1.5, label=label)
    colour = colours(point.method for point in data.points)
    for method, phase in dict.fromkeys((point.method, point.phase) for point in data.points):
        own = [point for point in data.points if (point.method, point.phase) == (method, phase)]
        xs, ys = [point.intensity for point in own], [point.gflop_per_s for point in own]
        marker = MARKERS[PHASE_SYMBOLS[phase]]
        axes.scatter(xs, ys, s=28, marker=marker, color=colour[method], alpha=0.8, label=f"{method}, {phase}", zorder=3)
    axes.set(xscale="log", yscale="log", xlabel="arithmetic intensity, FLOP per counted byte", ylabel="GFLOP/s")
    axes.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))


def draw_speedups(axes: Axes, rows: Sequence[Comparison]) -> None:
    """Speed-ups over dense with their 95% intervals."""
    kinds = (
        ("tpot", "decode (TPOT)", "o", -0.1),
        ("ttft", "first token (TTFT)", "s", 0.1),
        ("e2el", "whole search", "D", 0.0),
    )
    for name, words, marker, offset in kinds:
        drawn = [(place, row) for place, row in enumerate(rows) if name in row.speedups]
        for place, row in drawn:
            ratio = row.speedups[name]
            errors = [[ratio.value - (ratio.low or ratio.value)], [(ratio.high or ratio.value) - ratio.value]]
            face, edge = ("white", "#e0812e") if name == "ttft" else ("#3b7dd8", "#3b7dd8")
            axes.errorbar(
                ratio.value,
                place + offset,
                xerr=errors,
                fmt=marker,
                capsize=3,
                markerfacecolor=face,
                color=edge,
                alpha=1.0 if row.trusted else 0.4,
                label=words if place == drawn[0][0] else None,
            )
    axes.axvline(1.0, color="#888", ls=":", lw=1.2)
    axes.set_yticks(range(len(rows)), [row.label for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlabel("speed-up over dense")
    axes.legend()


def draw_cache(axes: Axes, rows: Sequence[Comparison]) -> None:
    """Share of the KV cache that stays stored, and that a decode step reads."""
    places = np.arange(len(rows))
    for offset, (name, words, tint) in enumerate(
        (("stored_retention", "stored", "#9db4cf"), ("selected_retention", "read per step", "#2f6fb5"))
    ):
        values = [100 * (row.metrics[name] or 0.0) for row in rows]
        bars = axes.barh(places + 0.36 * offset - 0.18, values, height=0.34, color=tint, label=words)
        axes.bar_label(bars, fmt="%.0f%%", padding=3, fontsize=8)
    axes.set_yticks(places, [row.label for row in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_xlim(0, 112)
    axes.set_xlabel("percent of the full KV cache")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))


def draw_score_retention(axes: Axes, rows: Sequence[Comparison]) -> None:
    """Quality against the share of the cache that a step reads."""
    colour = colours(row.label for row in rows)
    for row in rows:
        retention, score = 100 * (row.metrics["selected_retention"] or 0.0), row.metrics["score"] or 0.0
        error = row.metrics["score_standard_error"] or 0.0
        axes.errorbar(retention, score, yerr=error, fmt="o", capsize=3, color=colour[row.label])
        axes.annotate(
            f"{row.label} {row.score_coverage}",
            (retention, score),
            textcoords="offset points",
            xytext=(6, 6),
            fontsize=9,
        )
    axes.set_xlim(0, 112)
    axes.set(xlabel="percent of the KV cache read per step", ylabel=rows[0].score_name or "score")
