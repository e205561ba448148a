"""Heat maps and the frontier: what stands where, and that an empty one is left out."""

from __future__ import annotations

from pathlib import Path

from analysis.report_data import FrontierPoint, HeatCell
from analysis.summary import build_summary, heat_cells
from reports import grid_figures
from reports.build import render
from suite.harness.store import Store
from tests.analysis.factory import finding, sample, unit

POINTS = [
    {"method": "dense", "share": 1.0, "retention": 1.0, "read_bytes": 24e6, "passkeys": 1.0, "nats_per_token": 2.0},
    {"method": "<b>", "share": 0.5, "retention": 0.52, "read_bytes": 12e6, "passkeys": 0.75, "nats_per_token": 2.1},
    {"method": "<b>", "share": 0.25, "retention": 0.26, "read_bytes": 6e6, "passkeys": 0.5, "nats_per_token": 2.4},
]


def needle(request: str, length: int, depth: int, score: float, repeat: int = 0) -> object:
    metadata = {"context_length": length, "depth_percent": depth}
    return sample(request, repeat, score=score).model_copy(update={"metadata": metadata})


def test_cells_hold_the_mean_over_requests_not_over_repeats(tmp_path: Path) -> None:
    samples = [needle("a", 500, 0, 100.0), needle("a", 500, 0, 100.0, 1), needle("b", 500, 0, 0.0),
               needle("c", 1000, 50, 100.0)]  # fmt: skip
    with Store(tmp_path / "s.sqlite") as store:
        store.add_units([unit("dense", samples)], "run")
        contest = build_summary(store).contests[0]
        assert contest.heat == (HeatCell("dense", 500, 0.0, 50.0, 2), HeatCell("dense", 1000, 50.0, 100.0, 1))


def test_other_workloads_have_no_heat_map(tmp_path: Path) -> None:
    with Store(tmp_path / "s.sqlite") as store:
        store.add_units([unit("dense", [sample("a", 0, score=1.0)])], "run")
        summary = build_summary(store)
        assert heat_cells(summary.contests[0].rows[0], store.units()) == []
    assert grid_figures.heat_maps([]) is None


def test_every_method_has_its_map_and_a_missing_cell_stays_empty() -> None:
    cells = [HeatCell("dense", 500, 0, 100, 5), HeatCell("dense", 1000, 50, 20, 5), HeatCell("<b>", 500, 50, 40, 5)]
    figure = grid_figures.heat_maps(cells)
    assert figure is not None
    first, second = figure.data
    assert [list(row) for row in first.z] == [[100, None], [None, 20]]
    assert [list(row) for row in second.z] == [[None, None], [40, None]]
    assert figure.layout.annotations[1].text == "&lt;b&gt;"


def test_the_frontier_draws_a_line_per_method_in_both_panels() -> None:
    figure = grid_figures.frontier([FrontierPoint(**row) for row in POINTS])
    assert figure is not None
    by_name = {(trace.name, trace.xaxis): trace for trace in figure.data}
    line = by_name["&lt;b&gt;", "x"]
    assert list(line.x) == [6.0, 12.0]
    assert list(line.y) == [2.4, 2.1]
    assert list(by_name["&lt;b&gt;", "x2"].y) == [50.0, 75.0]
    assert grid_figures.frontier([]) is None


def test_the_newest_frontier_of_the_ledger_is_in_the_report(tmp_path: Path) -> None:
    with Store(tmp_path / "s.sqlite") as store:
        store.add_findings([finding(), finding(details={"frontier": POINTS})])
        page = render(build_summary(store))
    assert "claims-frontier" in page
    assert "12.0" in page
