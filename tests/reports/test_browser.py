"""The report in a real browser: it draws, it loads nothing, and model output stays text."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

from analysis.report_data import ReportData
from reports.build import Written
from tests.analysis.factory import SCRIPT

pytestmark = pytest.mark.browser

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
ARTIFACTS = Path(__file__).parents[2] / "artifacts"
PLOTS = 9
QUIET = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=path, args=QUIET)
        yield launched
        launched.close()


class Opened:
    """The report in a page, with everything it said and asked for."""

    def __init__(self, page: Page, written: Written) -> None:
        self.page = page
        self.messages: list[str] = []
        self.requests: list[str] = []
        self.dialogs: list[str] = []
        page.on("console", lambda message: self.messages.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.messages.append(f"error: {error}"))
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("dialog", lambda dialog: (self.dialogs.append(dialog.message), dialog.dismiss()))
        page.goto(written.html.as_uri())
        expect(page.locator(".plot.js-plotly-plot")).to_have_count(PLOTS)


@pytest.fixture(scope="module")
def opened(browser: Browser, written: Written) -> Iterator[Opened]:
    page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
    yield Opened(page, written)
    page.close()


def test_no_message_and_no_request(opened: Opened, written: Written) -> None:
    assert opened.messages == []
    assert opened.dialogs == []
    assert opened.requests == [written.html.as_uri()]


def test_plots_are_drawn(opened: Opened) -> None:
    """Each plot has an svg, and marks in it: points, lines, bars or boxes."""
    plots = opened.page.locator(".plot").all()
    assert len(plots) == PLOTS
    for plot in plots:
        assert plot.locator("svg.main-svg").count() >= 1
        assert plot.locator(".trace path, .trace .point, .trace .bars, .trace .box").count() > 0


def test_the_page_does_not_scroll_sideways(opened: Opened) -> None:
    assert opened.page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_model_output_stays_text(opened: Opened) -> None:
    opened.page.evaluate("document.querySelectorAll('#outputs details').forEach((one) => { one.open = true; })")
    shown = opened.page.locator("#outputs pre").first
    assert SCRIPT in shown.inner_text()
    assert opened.page.locator("#outputs script, #outputs pre *").count() == 0
    assert opened.dialogs == []


def test_an_injected_script_does_not_run(opened: Opened) -> None:
    """Even if escaping failed, the policy would stop it, and say so in the console."""
    opened.page.evaluate("""() => {
        const script = document.createElement('script');
        script.textContent = 'window.injected = true';
        document.body.append(script);
    }""")
    assert opened.page.evaluate("window.injected") is None
    assert "Content Security Policy" in opened.messages.pop()


def test_the_download_is_the_raw_data(opened: Opened, data: ReportData, tmp_path: Path) -> None:
    with opened.page.expect_download() as download:
        opened.page.locator("#download").click()
    assert download.value.suggested_filename == "inference-suite-report.json"
    download.value.save_as(tmp_path / "raw.json")
    assert json.loads((tmp_path / "raw.json").read_text()) == json.loads(json.dumps(data.raw))


def test_a_click_on_a_heading_sorts(opened: Opened) -> None:
    def methods() -> list[str]:
        return [text.split("\n")[0] for text in opened.page.locator("#contest-1 tbody th").all_inner_texts()]

    heading = opened.page.locator("#contest-1 thead th", has_text="Decode speed-up")
    heading.click()
    assert methods() == ["streaming", "longheads", "dense"]
    heading.click()
    assert methods() == ["longheads", "streaming", "dense"]


def test_dark_mode_recolours_the_plots(opened: Opened) -> None:
    tick = opened.page.locator("#machine-roofline .xtick text").first
    light = tick.evaluate("(text) => getComputedStyle(text).fill")
    opened.page.emulate_media(color_scheme="dark")
    expect(tick).not_to_have_css("fill", light)
    opened.page.emulate_media(color_scheme="light")
    expect(tick).to_have_css("fill", light)


@pytest.mark.parametrize("width", [1280, 2000])
def test_a_screenshot_is_kept(opened: Opened, width: int) -> None:
    opened.page.set_viewport_size({"width": width, "height": 900})
    opened.page.wait_for_timeout(500)  # the plots follow the window with a delay
    ARTIFACTS.mkdir(exist_ok=True)
    opened.page.screenshot(path=ARTIFACTS / f"report-{width}.png", full_page=True)
    assert opened.page.locator("#machine-roofline svg.main-svg").first.bounding_box()["width"] > 0.6 * min(width, 1640)
