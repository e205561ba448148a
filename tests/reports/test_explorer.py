"""The roofline explorer in a real browser: its figures are those of `analysis.roofline`, and its controls work."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Browser, Page, expect

from analysis.hardware import Hardware
from analysis.roofline.estimate import Setup
from analysis.roofline.explorer import Choices, Device, datasheet_device, default_cost, explorer_document, known_choices
from analysis.roofline.model import Machine
from analysis.roofline.operators import Precision
from analysis.roofline.parallel import Parallel
from analysis.roofline.predict import prediction_rows
from analysis.roofline.shape import load_preset
from analysis.roofline.summary import Usage, summary
from reports.build import render_explorer
from suite.errors import InputError
from suite.registry import METHODS
from tests.reports.test_browser import ARTIFACTS

pytestmark = pytest.mark.browser

SELECTIONS = 80
SLOW = Machine("slow calls", 4e11, 3e10, launch_s=2e-6)
TALKING = {"title": "Talk & <b>listen</b>", "source": "D", "bf16_tflops": 100, "memory_gb_per_s": 500, "memory_gb": 12}
COLUMNS = ("calls", "flops", "weight_bytes", "activation_bytes", "kv_bytes", "link_bytes", "intensity")
FIGURES = (
    "tokens_per_s", "step_ms", "prefill_ms", "memory_gb", "weights_gb", "kv_cache_gb", "break_even_tokens_per_step",
    "joules_per_token_at_rated_power", "price_per_million_in", "price_per_million_out",
)  # fmt: skip

Asked = dict[str, Any]


@pytest.fixture(scope="module")
def choices() -> Choices:
    """Everything known; a machine whose calls cost time, one whose messages do; methods that draft in other ways."""
    known = known_choices()
    own = Hardware(name="own", link_gb_per_s_bidirectional=64, link_latency_us=3, **TALKING)
    draft_model = METHODS.load("draft_model")
    named = draft_model.Config(drafter="llama-3.2-1b", length=3)
    together = "squeezellm+draft_model"
    return Choices(
        known.models,
        {
            **known.methods,
            "draft_model of 1b": lambda at: draft_model.cost(named, at),
            together: default_cost(together),
        },
        {**known.devices, "slow": Device("slow calls", lambda precision: SLOW), "own": datasheet_device(own)},
        bits=(5, 16, 16),
    )


class Explorer:
    """The page, with everything it said and asked for."""

    def __init__(self, page: Page, choices: Choices, path: Path) -> None:
        self.page, self.choices, self.path = page, choices, path
        self.messages: list[str] = []
        self.requests: list[str] = []
        page.on("console", lambda message: self.messages.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: self.messages.append(f"error: {error}"))
        page.on("request", lambda request: self.requests.append(request.url))
        path.write_text(render_explorer(explorer_document(choices, {"model": "llama-3-8b"})), encoding="utf-8")
        self.page.goto(path.as_uri())
        expect(page.locator("#explorer-plot.js-plotly-plot")).to_have_count(1)

    def follow(self, link: str) -> None:
        """Goes to a link inside the page; the explorer has heard of it then."""
        self.page.evaluate(
            """(link) => new Promise((heard) => {
                addEventListener('hashchange', heard, { once: true });
                location.hash = link;
            })""",
            link,
        )

    def control(self, name: str) -> Any:
        return self.page.locator(f"#explorer-form [name={name}]")

    def figure(self, name: str) -> float:
        return float(self.page.locator(f"[data-figure={name}]").get_attribute("data-value") or "nan")


@pytest.fixture(scope="module")
def explorer(browser: Browser, choices: Choices, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Explorer]:
    page = browser.new_page(viewport={"width": 1280, "height": 900}, color_scheme="light")
    yield Explorer(page, choices, tmp_path_factory.mktemp("explorer") / "explorer.html")
    page.close()


def drawn(choices: Choices, seed: int) -> Asked:
    """A selection; phase and devices may be impossible for it."""
    dice = random.Random(seed)
    return {
        "model": dice.choice(list(choices.models)),
        "hardware": dice.choice(list(choices.devices)),
        "method": dice.choice(list(choices.methods)),
        "phase": dice.choice(["prefill", "decode", "verify", "draft"]),
        "batch": dice.choice([1, 3, 16, 250]),
        "tokens": dice.choice([1, 7, 128, 1000, 8192, 131072, 1_000_000]),
        "weight": dice.choice([32, 16, 8, 5, 4, 2]),
        "kv": dice.choice([32, 16, 8, 4]),
        "activation": dice.choice([32, 16, 8, 4]),
        "attention": dice.choice(["flash", "unfused"]),
        "devices": dice.choice([1, 1, 2, 4, 16]),
        "accepted": dice.choice([1, 2.5]),
        "price": dice.choice(["", 2.5]),
    }


def expected(choices: Choices, asked: Asked) -> dict[str, Any] | str:
    """The figures of `analysis.roofline`, or its sentence."""
    device, shape = choices.devices[asked["hardware"]], choices.models[asked["model"]]
    precision = Precision.of_bits(asked["weight"], asked["kv"], asked["activation"])
    try:
        machine = device.ceilings(precision)
    except InputError as error:
        return str(error)
    setup = Setup(shape, precision, machine, choices.methods[asked["method"]], fused=asked["attention"] == "flash")
    drafter = setup.execution(1.0).method.drafter
    try:
        setup = Setup(
            shape, precision, machine, setup.method, load_preset(drafter.name) if drafter and drafter.name else None,
            setup.fused, Parallel(asked["devices"]),
        )  # fmt: skip
    except InputError:
        asked["devices"] = 1
    phases = setup.phases(asked["batch"], asked["tokens"])
    if asked["phase"] not in phases:
        asked["phase"] = "prefill"
    usage = Usage(device.datasheet, 0, asked["accepted"] if "verify" in phases else 1, asked["price"] or None)
    figures = summary(setup, usage, phases, asked["batch"], asked["tokens"])
    found = {name: figures[name] for name in FIGURES}
    return {"rows": prediction_rows(phases[asked["phase"]]), "fits": figures["fits"], "figures": found}


SELECT = """(selections) => selections.map((asked) => {
    const form = document.getElementById('explorer-form');
    for (const names of [['phase', 'devices'], []]) {  // what can be chosen depends on the rest: that first
        for (const name of Object.keys(asked)) if (!names.includes(name)) form.elements[name].value = asked[name];
        form.dispatchEvent(new Event('input'));
    }
    const rows = [...document.getElementById('explorer-rows').rows].map((row) => [...row.cells].map((cell, index) =>
        [0, 8].includes(index) ? cell.textContent : Number(cell.dataset.order)));
    const figures = [...document.querySelectorAll('#explorer-figures dd')].map((dd) => [dd.dataset.figure, Number(dd.dataset.value)]);
    const room = document.querySelector('[data-figure=memory_gb] small')?.textContent;
    const hidden = document.getElementById('explorer-answer').hidden;
    return { rows, figures: Object.fromEntries(figures), room, hidden, said: document.getElementById('explorer-status').textContent };
})"""  # noqa: E501


def test_the_figures_are_those_of_the_model(explorer: Explorer) -> None:
    """Operators, their work by kind, bounds, times and totals of random selections, to 1e-9."""
    selections = [drawn(explorer.choices, seed) for seed in range(SELECTIONS)]
    wanted = [expected(explorer.choices, asked) for asked in selections]
    assert sum(isinstance(one, dict) for one in wanted) > 0.8 * SELECTIONS
    for asked, want, shown in zip(selections, wanted, explorer.page.evaluate(SELECT, selections), strict=True):
        if isinstance(want, str):
            assert (shown["said"], shown["hidden"]) == (want, True)
            continue
        assert not shown["hidden"], shown["said"]
        assert [row[0] for row in shown["rows"]] == [row["operator"] for row in want["rows"]], asked
        total = sum(row["ms"] for row in want["rows"])
        for got, row in zip(shown["rows"], want["rows"], strict=True):
            figures = [*(row[name] for name in COLUMNS), row["ms"] / 1e3, row["ms"] / total]
            assert [*got[1:8], *got[9:]] == pytest.approx(figures, rel=1e-9, abs=0), (asked, got[0])
            assert got[8] == row["bound"], (asked, got[0])
        figures = {name: float(value) for name, value in want["figures"].items() if value is not None}
        assert shown["figures"] == pytest.approx(figures, rel=1e-9), asked
        if want["fits"] is not None:
            assert ("does not fit" in shown["room"]) is not bool(want["fits"])


def test_no_message_and_no_request(explorer: Explorer) -> None:
    assert explorer.messages == []
    assert set(explorer.requests) <= {explorer.path.as_uri(), "about:blank"}


def test_a_link_restores_the_selection(explorer: Explorer) -> None:
    asked = {**drawn(explorer.choices, 1), "model": "deepseek-v3", "method": "ngram", "phase": "verify", "devices": 8}
    asked |= {"hardware": "h100-sxm", "weight": 8, "activation": 8, "price": 2.5}
    explorer.page.goto("about:blank")
    explorer.page.goto(f"{explorer.path.as_uri()}#explorer?{urlencode(asked)}")
    for name, value in asked.items():
        expect(explorer.control(name)).to_have_value(str(value))
    shown = explorer.figure("tokens_per_s")
    link = explorer.page.locator("#explorer-link").get_attribute("href") or ""
    explorer.control("batch").fill("77")
    assert "batch=77" in (moved := explorer.page.locator("#explorer-link").get_attribute("href") or "")
    assert explorer.page.evaluate("location.hash") == moved
    explorer.follow(link)
    expect(explorer.control("batch")).to_have_value(str(asked["batch"]))
    assert explorer.figure("tokens_per_s") == shown


def test_a_link_to_what_is_not_there_does_no_harm(explorer: Explorer) -> None:
    explorer.follow("#explorer?model=nothing&batch=-4&method=%3Cimg%3E&strange=1&phase=draft")
    expect(explorer.control("model")).to_have_value("llama-3-8b")
    expect(explorer.page.locator("#explorer-status")).to_contain_text("Batch:")
    expect(explorer.page.locator("#explorer-answer")).to_be_hidden()
    explorer.control("batch").fill("4")
    expect(explorer.page.locator("#explorer-answer")).to_be_visible()


def test_controls_offer_what_the_choice_allows(explorer: Explorer) -> None:
    explorer.follow("#explorer?model=llama-3-8b&hardware=h100-sxm&method=dense")
    assert explorer.control("phase").locator("option").all_inner_texts() == ["prefill", "decode step"]
    expect(explorer.control("accepted")).to_be_hidden()
    explorer.control("method").select_option("eagle")
    assert explorer.control("phase").locator("option").count() == 4
    before = explorer.figure("tokens_per_s")
    explorer.control("accepted").fill("3")
    assert explorer.figure("tokens_per_s") == pytest.approx(3 * before)
    explorer.control("devices").select_option("8")
    assert "all_reduce" in explorer.page.locator("#explorer-rows").inner_text()
    explorer.control("hardware").select_option("slow")  # which lists no link
    assert explorer.control("devices").locator("option").all_inner_texts() == ["1"]
    assert "all_reduce" not in explorer.page.locator("#explorer-rows").inner_text()


def test_the_plot_has_a_point_for_every_operator_that_computes(explorer: Explorer) -> None:
    explorer.follow("#explorer?model=llama-3-8b&hardware=own&method=dense&phase=prefill")
    plot = explorer.page.locator("#explorer-plot")
    flops = explorer.page.locator("#explorer-rows td:nth-child(3)").all()
    computing = sum(float(cell.get_attribute("data-order") or 0) > 0 for cell in flops)
    expect(plot.locator(".trace .points path")).to_have_count(computing)
    assert computing > 8
    expect(plot).to_contain_text("ridge 200")
    expect(plot).to_contain_text("Talk & <b>listen</b>, bf16")  # a user's file is text
    assert plot.locator("b").count() == 0


def test_it_works_from_the_keyboard(explorer: Explorer) -> None:
    explorer.follow("#explorer?model=llama-3-8b&hardware=h100-sxm&method=eagle&phase=decode")
    explorer.control("model").focus()
    reached = []
    for _ in range(16):
        reached.append(explorer.page.evaluate("document.activeElement.name || document.activeElement.id"))
        explorer.page.keyboard.press("Tab")
    visible = explorer.page.locator("#explorer-form [name]:visible")
    assert reached[: visible.count()] == [one.get_attribute("name") for one in visible.all()]
    assert "explorer-link" in reached
    explorer.control("model").focus()
    explorer.page.keyboard.type("mixtral-8x7b")
    expect(explorer.page.locator("#explorer-status")).to_contain_text("of mixtral-8x7b under eagle")
    heading = explorer.page.locator("#explorer-table thead th", has_text="Time, ms")
    heading.focus()
    explorer.page.keyboard.press("Enter")
    largest = explorer.page.locator("#explorer-rows th").first
    expect(largest).to_have_text("experts")
    explorer.control("tokens").fill("9000")  # the order stays
    expect(largest).to_have_text("experts")


def test_every_control_has_a_label(explorer: Explorer) -> None:
    for control in explorer.page.locator("#explorer-form [name]").all():
        assert control.evaluate("(one) => [...one.labels].map((label) => label.firstChild.textContent.trim()).join()")


def test_light_dark_and_a_phone(explorer: Explorer) -> None:
    tick = explorer.page.locator("#explorer-plot .xtick text").first
    light = tick.evaluate("(text) => getComputedStyle(text).fill")
    explorer.page.emulate_media(color_scheme="dark")
    expect(tick).not_to_have_css("fill", light)
    ARTIFACTS.mkdir(exist_ok=True)
    explorer.page.screenshot(path=ARTIFACTS / "explorer-dark.png", full_page=True)
    explorer.page.emulate_media(color_scheme="light")
    explorer.page.set_viewport_size({"width": 360, "height": 780})
    explorer.page.wait_for_timeout(500)  # the plot follows the window with a delay
    explorer.page.screenshot(path=ARTIFACTS / "explorer-360.png", full_page=True)
    assert explorer.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert explorer.messages == []
