"""Interactive figures of the machine: every unit on its roofline, and the bandwidth behind it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

import numpy as np
import plotly.graph_objects as go

from analysis.report_data import NoisePoint, ReportData, Roof, RoofPoint, Stream
from analysis.statistics import Estimate
from analysis.wording import number
from reports.canvas import FADED, HEIGHT, error_bars, new_figure
from reports.style import NEUTRAL, PHASE_SYMBOLS, colours, percent


def machine_figures(data: ReportData) -> dict[str, go.Figure]:
    """Figures that are not of one contest."""
    candidates = {
        "roofline": roofline(data.roofs, data.points),
        "bandwidth": bandwidth(data.streams),
        "noise": noise(data.noise),
    }
    return {name: figure for name, figure in candidates.items() if figure is not None}


def roofline(roofs: Sequence[Roof], points: Sequence[RoofPoint]) -> go.Figure | None:
    """Achieved GFLOP/s over arithmetic intensity, under the measured ceilings."""
    if not points and not roofs:
        return None
    figure = new_figure(620)
    span = _intensities(roofs, points)
    for roof, tint in zip(roofs, (NEUTRAL, "#a08256", "#5f9182", "#93709f") * len(roofs), strict=False):
        for (name, bandwidth), dash in zip(roof.bandwidths_gb_per_s.items(), ("solid", "dash"), strict=False):
            label = f"{roof.label}: {name}, {number(bandwidth)} GB/s"
            figure.add_scatter(
                x=span.tolist(),
                y=np.minimum(roof.peak_gflop_per_s, span * bandwidth).tolist(),
                mode="lines",
                line={"color": tint, "width": 2, "dash": dash},
                name=escape(label),
                hovertemplate=f"{escape(label)}, peak {number(roof.peak_gflop_per_s)} GFLOP/s<extra></extra>",
            )
    _add_points(figure, points)
    figure.update_xaxes(title="arithmetic intensity, FLOP per counted byte", type="log", tickformat="~g", dtick=1)
    figure.update_yaxes(title="GFLOP/s", type="log", tickformat="~g", dtick=1)
    figure.update_layout(legend={"y": -0.24, "yanchor": "top"}, margin={"l": 48})
    return figure


def _intensities(roofs: Sequence[Roof], points: Sequence[RoofPoint]) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Where the roof is drawn: beyond all points, and beyond every ridge so that each bend is seen."""
    ridges = [roof.peak_gflop_per_s / rate for roof in roofs for rate in roof.bandwidths_gb_per_s.values()]
    marks = [*ridges, *(point.intensity for point in points)]
    inside = np.geomspace(min(marks) / 4, max(marks) * 4, 64)
    return np.sort(np.concatenate([inside, ridges]))


def _add_points(figure: go.Figure, points: Sequence[RoofPoint]) -> None:
    colour = colours(point.method for point in points)
    for method, phase in dict.fromkeys((point.method, point.phase) for point in points):
        own = [point for point in points if (point.method, point.phase) == (method, phase)]
        figure.add_scatter(
            x=[point.intensity for point in own],
            y=[point.gflop_per_s for point in own],
            mode="markers",
            name=f"{escape(method)}, {phase}",
            marker={
                "symbol": PHASE_SYMBOLS[phase],
                "size": 9,
                "color": colour[method],
                "opacity": [0.9 if point.trusted else FADED for point in own],
            },
            text=[_point_text(point) for point in own],
            hovertemplate="%{text}<extra></extra>",
        )


def _point_text(point: RoofPoint) -> str:
    lines: Iterable[str] = (
        f"<b>{escape(point.method)}, {point.phase}</b>",
        escape(f"{point.contest.workload} / {point.task}, {point.contest.model}"),
        f"{number(point.gflop_per_s)} GFLOP/s, {number(point.gb_per_s)} GB/s, {number(point.intensity)} FLOP/byte",
        f"{percent(point.ceiling_fraction)} of the measured ceiling",
        f"measured {number(point.measured_ms)} ms, predicted {number(point.predicted_ms)} ms",
        "fits into the last-level cache" if point.cache_resident else "",
        "" if point.trusted else "unstable",
    )
    return "<br>".join(line for line in lines if line)


def bandwidth(streams: Sequence[Stream]) -> go.Figure | None:
    """Measured bandwidth over the working set, with the extreme samples."""
    if not streams:
        return None
    figure = new_figure(380)
    tints = {"read": "#3b7dd8", "copy": "#e0812e", "triad": "#2a9d74"}
    for stream in streams:
        estimates = [Estimate(v, lo, hi, 0) for v, lo, hi in zip(stream.gb_per_s, stream.low, stream.high, strict=True)]
        figure.add_scatter(
            x=stream.sizes,
            y=stream.gb_per_s,
            error_y=error_bars(estimates),
            mode="lines+markers",
            name=f"{stream.kind}, {stream.threads} thread{'s' if stream.threads != 1 else ''}",
            line={"color": tints[stream.kind], "dash": "solid" if stream.threads > 1 else "dot"},
            hovertemplate="%{y:.3~g} GB/s at %{x:.3~s}B",
        )
    figure.update_xaxes(title="working set, bytes (log scale)", type="log", tickformat=".3~s", nticks=8)
    figure.update_yaxes(title="GB/s", rangemode="tozero")
    return figure


def noise(points: Sequence[NoisePoint]) -> go.Figure | None:
    """What disturbed each unit, in the order of measuring; units that it made unstable are faded."""
    if not points:
        return None
    figure = new_figure(HEIGHT)
    for words, tint, values in (
        ("spread of repeats", "#3b7dd8", [point.spread for point in points]),
        ("time taken by the hypervisor", "#e0812e", [point.steal_share for point in points]),
        ("cores busy with other processes", "#2a9d74", [point.other_load for point in points]),
    ):
        figure.add_scatter(
            x=list(range(1, len(points) + 1)),
            y=values,
            text=[escape(point.unit) for point in points],
            mode="markers",
            name=words,
            marker={"color": tint, "opacity": [0.9 if point.stable else FADED for point in points]},
            hovertemplate="%{text}: %{y:.1%}<extra>" + words + "</extra>",
        )
    figure.update_xaxes(title="units, in the order of measuring")
    figure.update_yaxes(title="share", tickformat=".0%", rangemode="tozero")
    return figure
