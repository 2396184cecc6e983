"""The page in a real browser: it draws, it can be used with the keyboard, and hostile text does nothing."""

import itertools
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from builders.report import PAYLOAD, SECTIONS, extended_grid, full, partial_run, poisoned
from safety_neurons.report import RunResults
from safety_neurons.report.page import write_comparison, write_report

playwright = pytest.importorskip("playwright.sync_api")

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
# What a person can tell apart: WCAG 2.2 asks 4.5 to 1 for text and 3 to 1 for parts of figures.
TEXT_CONTRAST, FIGURE_CONTRAST = 4.5, 3.0


def complete() -> dict[str, Any]:
    """A run with everything that a page can show."""
    return full() | {"evaluation": extended_grid()}


def hostile_run() -> dict[str, Any]:
    return poisoned(complete())


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    with playwright.sync_playwright() as started:
        try:
            opened = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except playwright.Error as error:
            pytest.skip(f"no Chromium: {error.message.splitlines()[0]}")
        yield opened
        opened.close()


@dataclass
class Shown:
    """A page in the browser, and all that it complained about or asked for."""

    page: Any
    complaints: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def show(browser: Any, tmp_path: Path) -> Iterator[Any]:
    contexts: list[Any] = []

    def opened(results: dict[str, Any], **options: Any) -> Shown:
        path = tmp_path / f"report{len(contexts)}.html"
        write_report(RunResults.of(results), path)
        return at(path, **options)

    def at(path: Path, **options: Any) -> Shown:
        context = browser.new_context(**({"viewport": {"width": 1280, "height": 900}} | options))
        contexts.append(context)
        shown = Shown(context.new_page())

        def complain(dialog: Any) -> None:
            shown.complaints.append(dialog.message)
            dialog.dismiss()

        shown.page.on("console", lambda message: shown.complaints.append(message.text))
        shown.page.on("pageerror", lambda error: shown.complaints.append(str(error)))
        shown.page.on("dialog", complain)
        shown.page.on("request", lambda one: shown.asked.append(one.url))
        shown.page.goto(path.as_uri())
        return shown

    opened.at = at  # type: ignore[attr-defined]
    yield opened
    for context in contexts:
        context.close()


def draw_all(page: Any) -> int:
    """Draw every figure, as printing does, and count those that were drawn."""
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    count = page.locator("[data-figure]").count()
    page.wait_for_function(
        "count => document.querySelectorAll('[data-figure] svg.main-svg').length >= count", arg=count
    )
    return int(page.locator("[data-figure].js-plotly-plot").count())


@pytest.mark.parametrize("results", [complete(), partial_run()], ids=["full", "after find"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_draws_without_a_complaint(show: Any, results: dict[str, Any], scheme: str) -> None:
    shown = show(results, color_scheme=scheme)
    sections = shown.page.locator("section")
    before = SECTIONS.index("guard")
    expected = [*SECTIONS[:before], "clouds", *SECTIONS[before:]] if "clouds" in results else SECTIONS
    assert sections.evaluate_all("all => all.map(one => one.id)") == expected
    assert all(section.is_visible() for section in sections.all())
    assert draw_all(shown.page) == shown.page.locator("[data-figure]").count() > 0
    assert shown.complaints == []
    assert [address for address in shown.asked if not address.startswith(("file:", "data:"))] == []


@pytest.mark.parametrize("width", [360, 1280])
def test_page_is_no_wider_than_the_screen(show: Any, width: int) -> None:
    shown = show(complete(), viewport={"width": width, "height": 800})
    draw_all(shown.page)
    assert shown.page.evaluate("document.documentElement.scrollWidth") <= width


def test_paper_holds_every_table(show: Any) -> None:
    # A4 with the usual margins, in CSS pixels.
    page = show(complete(), viewport={"width": 718, "height": 1000}).page
    page.emulate_media(media="print")
    draw_all(page)
    assert page.locator("details:not([open])").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 718


def test_page_opens_at_once(show: Any) -> None:
    shown = show(complete())
    painted = shown.page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
    assert painted < 2000
    far = shown.page.locator("[data-figure='data-attacks']")
    assert far.locator("svg").count() == 0, "what is far from sight waits"
    far.scroll_into_view_if_needed()
    far.locator("svg").first.wait_for()


def test_a_cell_shows_its_verdicts(show: Any) -> None:
    shown = show(complete())
    button = shown.page.locator("[data-cell]").first
    panel = shown.page.locator(".behind").first
    assert not panel.is_visible()
    button.click()
    assert button.get_attribute("aria-expanded") == "true"
    assert panel.locator("h4").inner_text() == "direct, against none, tiny, judge rules"
    assert panel.locator("li").all_inner_texts()[0].split() == ["harmful-000", "complied"]
    assert panel.locator("li").count() == 4
    shown.page.locator("[data-cell]").nth(1).click()
    assert button.get_attribute("aria-expanded") == "false", "one cell of a grid is open at a time"
    assert panel.locator("h4").inner_text().startswith("prefill, against none")
    assert shown.complaints == []


def test_cells_are_reached_with_the_keyboard(show: Any) -> None:
    page = show(complete()).page
    page.locator("[data-cell]").first.focus()
    focused = "document.activeElement.dataset.cell"
    first = page.evaluate(focused)
    page.keyboard.press("Enter")
    assert page.locator(".behind").first.is_visible()
    page.keyboard.press("Escape")
    assert not page.locator(".behind").first.is_visible()
    page.keyboard.press("ArrowRight")
    right = page.evaluate(focused)
    page.keyboard.press("ArrowDown")
    down = page.evaluate(focused)
    page.keyboard.press("ArrowUp")
    assert page.evaluate(focused) == right
    page.keyboard.press("ArrowLeft")
    assert page.evaluate(focused) == first
    assert len({first, right, down}) == 3


def test_all_that_scrolls_or_opens_is_reached_with_the_keyboard(show: Any) -> None:
    page = show(complete()).page
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    wide = "all => all.filter(one => one.scrollWidth > one.clientWidth && one.tabIndex < 0).length"
    assert page.locator(".scroll, .behind").evaluate_all(wide) == 0
    assert page.locator("[role=img]:not([aria-label]), [role=region]:not([aria-label])").count() == 0
    assert page.locator("th:not([scope])").count() == 0
    names = page.locator("[data-figure]").evaluate_all("all => all.map(one => one.getAttribute('aria-label').length)")
    assert min(names) > 20


def cloud_points(page: Any) -> list[float]:
    """Where the clouds' points are in pixels, once they have not moved for longer than a move takes."""
    read = "all => all.flatMap(one => one.getAttribute('transform').match(/-?[0-9.]+/g).map(Number))"
    found: list[float] = []
    rested = 0
    while rested < 5:
        now = page.locator("[data-figure='data-clouds'] path.point").evaluate_all(read)
        found, rested = now, rested + 1 if now == found else 0
        page.wait_for_timeout(100)
    return found


@pytest.mark.parametrize("motion", ["no-preference", "reduce"])
def test_slider_moves_the_clouds(show: Any, motion: str) -> None:
    shown = show(complete(), reduced_motion=motion)
    page = shown.page
    slider = page.get_by_label("Layer", exact=True)
    slider.scroll_into_view_if_needed()
    page.locator("[data-figure='data-clouds'] path.point").first.wait_for()
    before = cloud_points(page)
    same = pytest.approx(before, abs=0.5)
    assert len(before) == 32
    slider.focus()
    page.keyboard.press("ArrowRight")
    after = cloud_points(page)
    assert after != same
    assert page.locator("#clouds-said").inner_text().startswith("Layer 2, 12 neurons: AUROC")
    assert slider.get_attribute("aria-valuetext").startswith("Layer 2,")
    assert page.locator("[data-figure='data-clouds-auroc']").evaluate("one => one.layout.shapes[0].x0") == 2
    page.keyboard.press("End")
    assert page.locator("#clouds-said").inner_text().startswith("All layers,")
    assert not page.locator("[data-figure='data-clouds-auroc']").evaluate("one => one.layout.shapes[0].visible")
    box = slider.bounding_box()
    page.mouse.click(box["x"] + box["width"] / 3, box["y"] + box["height"] / 2)
    assert cloud_points(page) == same, "back in layer 1"
    page.get_by_role("checkbox", name="calibrated").uncheck()
    home = cloud_points(page)
    base = before[16:]
    assert home == pytest.approx(2 * base, abs=0.5), "without the push the pushed prompts are where they came from"
    page.get_by_role("checkbox", name="calibrated").check()
    assert cloud_points(page) == same
    assert shown.complaints == []


def test_hostile_prompts_are_named_as_text(show: Any) -> None:
    shown = show(hostile_run())
    plot = shown.page.locator("[data-figure='data-clouds']")
    plot.scroll_into_view_if_needed()
    box = plot.locator("path.point").last.bounding_box()
    shown.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    plot.locator(".hoverlayer text").first.wait_for()
    assert "</script><script>alert(1)" in plot.locator(".hoverlayer").text_content()
    assert shown.complaints == []


def test_hostile_text_runs_nothing(show: Any) -> None:
    shown = show(hostile_run())
    draw_all(shown.page)
    for number in range(shown.page.locator("[data-cell]").count()):
        shown.page.locator("[data-cell]").nth(number).click(force=True)
    assert "<script>alert(1)</script>" in shown.page.locator(".behind h4").first.inner_text()
    assert shown.page.locator("img, iframe, object, embed").count() == 0
    assert shown.complaints == []
    text = shown.page.locator("body").inner_text()
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u2028\u2029\ud800-\udfff\x00-\x08]", text)
    assert shown.page.evaluate("document.documentElement.scrollWidth") <= 1280


def test_runs_side_by_side(show: Any, tmp_path: Path) -> None:
    path = tmp_path / "comparison.html"
    runs = {"a" + PAYLOAD: hostile_run(), "b": complete(), "c": partial_run()}
    write_comparison({name: RunResults.of(results) for name, results in runs.items()}, path)
    shown = show.at(path, viewport={"width": 390, "height": 800})
    assert shown.complaints == []
    assert shown.page.locator("section").count() >= 5
    assert shown.page.evaluate("document.documentElement.scrollWidth") <= 390


def luminance(color: str) -> float:
    """Relative luminance (WCAG 2.2) of a CSS color, rgb(...) or color(srgb ...)."""
    parts = [float(number) for number in re.findall(r"[\d.]+", color.replace("srgb", ""))[:3]]
    shares = parts if color.startswith("color(") else [part / 255 for part in parts]
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in shares]
    return sum(weight * one for weight, one in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast(show: Any, scheme: str) -> None:
    page = show(complete(), color_scheme=scheme).page
    paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
    color = "one => getComputedStyle(one).color"
    for part in ("body", ".soft", ".tone", "nav a", "summary", ".chip", ".sealed", "caption", ".unrun"):
        assert contrast(page.locator(part).first.evaluate(color), paper) >= TEXT_CONTRAST, part
    page.locator("[data-cell]").first.click()
    for rate, kind in itertools.product((0, 0.5, 1), ("", "safe")):
        cell = page.locator(f".shade{'.safe' if kind else ':not(.safe)'}").first
        cell.evaluate("(one, rate) => one.style.setProperty('--rate', rate)", rate)
        ground = cell.evaluate("one => getComputedStyle(one).backgroundColor")
        for part in (cell, cell.locator(".range").first):
            assert contrast(part.evaluate(color), ground) >= TEXT_CONTRAST, (rate, kind)
    panel = page.locator(".behind").first
    ground = panel.evaluate("one => getComputedStyle(one).backgroundColor")
    for word in ("complied", "refused"):
        said = page.locator(f"[data-verdict={word}]")
        assert contrast(said.first.evaluate(color), ground) >= TEXT_CONTRAST, word
    for data in ("#0072B2", "#D55E00", "#009E73", "#8C8C8C"):
        rgb = f"rgb({int(data[1:3], 16)}, {int(data[3:5], 16)}, {int(data[5:], 16)})"
        assert contrast(rgb, paper) >= FIGURE_CONTRAST, data
