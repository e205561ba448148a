"""One report of the test store, built once for all tests of this room."""

from __future__ import annotations

import pytest

from analysis.report_data import ReportData
from analysis.summary import build_summary
from reports.build import Written, build_report
from tests.analysis.factory import fill


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> ReportData:
    with fill(tmp_path_factory.mktemp("store") / "results.sqlite") as store:
        return build_summary(store)


@pytest.fixture(scope="session")
def written(data: ReportData, tmp_path_factory: pytest.TempPathFactory) -> Written:
    return build_report(data, tmp_path_factory.mktemp("report") / "report.html")
