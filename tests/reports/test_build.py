"""The HTML file: self-contained, escaped, under a policy; and what happens when it cannot be written."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from analysis.report_data import ReportData
from analysis.summary import build_summary
from reports.build import ReportError, Written, build_report, render
from suite.harness.store import Store
from tests.analysis.factory import SCRIPT, finding, sample, unit

PNG = b"\x89PNG"


class Page(HTMLParser):
    """Scripts, references and visible text of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.references: list[str] = []
        self.text = ""
        self.policy = ""
        self._open: dict[str, str | None] | None = None
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.references += [value or "" for name, value in attrs if name in ("src", "href", "action", "srcset", "data")]
        if given.get("http-equiv") == "Content-Security-Policy":
            self.policy = given["content"] or ""
        if tag == "script":
            self._open = given
            self.scripts.append((given, ""))
        assert not any(name.startswith("on") for name in given), f"inline handler in <{tag}>"

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._open = None

    def handle_data(self, data: str) -> None:
        if self._open is not None:
            attributes, text = self.scripts[-1]
            self.scripts[-1] = (attributes, text + data)
        else:
            self.text += data

    def element(self, identifier: str) -> str:
        return next(text for attributes, text in self.scripts if attributes.get("id") == identifier)

    def figures(self) -> dict[str, dict[str, object]]:
        """By the id of their place."""
        return {
            (attributes["id"] or "").removesuffix("-figure"): json.loads(text)
            for attributes, text in self.scripts
            if (attributes.get("id") or "").endswith("-figure")
        }

    def raw(self) -> dict[str, object]:
        return json.loads(gzip.decompress(base64.b64decode(self.element("raw-data"))))


@pytest.fixture(scope="module")
def page(written: Written) -> Page:
    return Page(written.html.read_text())


def test_nothing_is_loaded_from_anywhere(page: Page) -> None:
    assert all(reference.startswith(("#", "data:,")) for reference in page.references)


def test_the_policy_names_exactly_the_scripts_that_run(page: Page) -> None:
    data = ("application/json", "application/gzip")
    runnable = [text for attributes, text in page.scripts if attributes.get("type") not in data]
    digests = {base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in runnable}
    assert len(runnable) == 4
    assert set(re.findall(r"'sha256-([^']+)'", page.policy)) == digests
    assert page.policy.startswith("default-src 'none'")
    scripts = re.search(r"script-src ([^;]*)", page.policy)
    assert scripts is not None
    assert "unsafe" not in scripts[1]


def test_model_output_is_text(page: Page) -> None:
    assert SCRIPT in page.text
    assert "<b>bold</b>" in page.text
    assert not any("alert(1)" in text for attributes, text in page.scripts if attributes.get("type") is None)


def test_the_embedded_json_cannot_end_its_element(written: Written) -> None:
    html = written.html.read_text()
    starts = [match.end() for match in re.finditer('<script type="application/[a-z]+" id="[^"]+">', html)]
    assert len(starts) == 13
    for start in starts:
        assert html[start:].partition("<")[2].startswith("/script>")


def test_the_raw_data_is_all_there(page: Page, data: ReportData) -> None:
    assert page.raw() == json.loads(json.dumps(data.raw))
    assert SCRIPT in json.dumps(page.raw())


@pytest.mark.parametrize(
    "words",
    [
        "source: synthetic",
        "Claims ledger",
        "not measurable here",
        "needs a 40 GB GPU",
        "max |Δlogit| 0.31 on <short> inputs",
        "the hypervisor took 4.2%",
        "95% bootstrap intervals",
        "AMD EPYC (2 cores)",
        "over 4 of 6 tasks",
    ],
)
def test_what_a_reader_must_find(page: Page, words: str) -> None:
    assert words in page.text


def test_every_figure_has_its_place(page: Page, written: Written) -> None:
    html = written.html.read_text()
    figures = page.figures()
    assert len(figures) == 11
    for name in figures:
        assert f'class="plot" id="{name}"' in html


@pytest.mark.parametrize(
    "hostile", ['"><img src=x onerror=alert(1)>', "</script><script>alert(1)</script>", "{{ 7 * 7 }}"]
)
def test_hostile_names_stay_text(tmp_path: Path, hostile: str) -> None:
    """Names, tasks, errors and claims reach the page, the plots and the JSON; none of them may become markup."""
    with Store(tmp_path / "results.sqlite") as store:
        samples = [sample("q0", text=hostile, task=hostile)]
        dense = unit(samples=samples, task=hostile, block=hostile, options={"x": hostile}, score_name=hostile)
        method = unit("m", samples, task=hostile, block=hostile, status="unstable", reasons=(hostile,))
        store.add_units([dense, method], "s")
        store.add_findings([finding(claim=hostile, conditions=hostile)])
        html = render(build_summary(store))
    page = Page(html)
    assert hostile in page.text
    assert len(page.scripts) == 6 + len(page.figures())
    assert "<img" not in json.dumps(page.figures())


def test_pictures_lie_beside_the_page(written: Written) -> None:
    names = {path.name for path in written.pictures}
    kinds = ("roofline", "1-longbench-speedups", "1-longbench-cache", "1-longbench-score-retention")
    assert names == {f"{name}.{suffix}" for name in kinds for suffix in ("png", "svg")}
    for path in written.pictures:
        assert path.parent == written.html.with_name("report_files")
        head = path.read_bytes()
        assert head.startswith(PNG) if path.suffix == ".png" else b"<svg" in head[:2000]


def test_a_report_of_claims_only(data: ReportData, tmp_path: Path) -> None:
    bare = dataclasses.replace(data, contests=(), points=(), roofs=(), streams=(), outputs=(), conditions=())
    written = build_report(bare, tmp_path / "deep" / "er" / "claims.html")
    assert "No units were measured" in written.html.read_text()
    assert written.pictures == ()


def test_a_report_without_calibration_or_kv(tmp_path: Path) -> None:
    with Store(tmp_path / "results.sqlite") as store:
        store.add_units([unit(samples=[sample(score=None, gaps=())], counted=False, memory=None, noise=None)], "s")
        assert "no roofline" in render(build_summary(store))


@pytest.mark.parametrize("place", ["file/report.html", "folder"])
def test_an_unwritable_place_is_one_sentence(data: ReportData, tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ReportError) as refusal:
        build_report(data, tmp_path / place)
    assert str(refusal.value).startswith(f"the report cannot be written to {tmp_path / place} (")
    assert "\n" not in str(refusal.value)


def test_the_survey_table_is_escaped_and_names_its_units(tmp_path: Path) -> None:
    units = [unit(name, [sample("a"), sample("b")], workload="gsm8k") for name in ("dense", f"newcomer{SCRIPT}")]
    with Store(tmp_path / "results.sqlite") as store:
        store.add_units(units, "sweep")
        html = render(build_summary(store))
    survey = html[html.index('<section id="survey">') : html.index('<section id="methods">')]
    assert SCRIPT not in html.replace("\\u003c", "")
    assert all(one.key in survey for one in units)
    assert "unplaced" in survey
    assert 'id="survey-1"' in survey
    assert survey.index("not measured here") < survey.index('class="sortable printed"') < survey.index("COCONUT")
