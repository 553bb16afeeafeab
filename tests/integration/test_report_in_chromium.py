"""The page of a report in a real browser: from disk without a network, on a desktop and a telephone, light, dark and on paper.

Needs Chromium: ``$EDGE_EFFDET_CHROMIUM``, or ``chromium`` on the path. Without it these tests are skipped; with
``EDGE_EFFDET_REQUIRE_CHROMIUM=1`` they fail.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edge_effdet.benchmarking.report.page import page_text
from tests.reports import bare_report, bare_row, full_report, skipped_row

sync_api = pytest.importorskip("playwright.sync_api")

DESKTOP, TELEPHONE = 1280, 390
LARGEST = 3_000_000

CONTRASTS = """() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgba = text => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = text; canvas.fillRect(0, 0, 1, 1); return canvas.getImageData(0, 0, 1, 1).data; };
  // The relative luminance and the contrast of the Web Content Accessibility Guidelines 2.2.
  const luminance = ([r, g, b]) => [r, g, b].map(value => value / 255)
    .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    .reduce((sum, value, index) => sum + value * [0.2126, 0.7152, 0.0722][index], 0);
  const background = element => {
    for (let each = element; each; each = each.parentElement) {
      const color = rgba(getComputedStyle(each).backgroundColor);
      if (color[3] === 255) return color;
    }
    return [255, 255, 255];
  };
  const found = [];
  for (const element of document.querySelectorAll('body *')) {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
    // Numbers on bars have the bar below them, and their colours are chosen for that.
    if (!own || !element.getClientRects().length || element.closest('#stages svg')) continue;
    const style = getComputedStyle(element);
    const [one, other] = [luminance(rgba(element.closest('svg') ? style.fill : style.color)), luminance(background(element))];
    const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    found.push([contrast, element.tagName + ' ' + element.textContent.trim().slice(0, 40)]);
  }
  return found;
}"""

SMALLEST_TEXT = """() => Math.min(...[...document.querySelectorAll('.chart text')]
  .filter(text => text.getClientRects().length)
  .map(text => parseFloat(getComputedStyle(text).fontSize) * text.ownerSVGElement.getBoundingClientRect().width
    / text.ownerSVGElement.viewBox.baseVal.width))"""


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    program = os.environ.get("EDGE_EFFDET_CHROMIUM") or shutil.which("chromium")
    if not program:
        reason = "no Chromium; install it, or set EDGE_EFFDET_CHROMIUM to its path"
        if os.environ.get("EDGE_EFFDET_REQUIRE_CHROMIUM") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    with sync_api.sync_playwright() as playwright:
        # Neither a container's root nor its small shared memory stops it so.
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("report")
    reports = {"full": full_report(), "bare": bare_report(bare_row(), skipped_row())}
    for name, report in reports.items():
        (folder / f"{name}.html").write_text(page_text(report), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in reports}


@contextmanager
def opened(browser, path: Path, width: int = DESKTOP, scheme: str = "light") -> Iterator[object]:
    """The page, which must have asked for nothing and complained of nothing by the end."""
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    requests: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(message.text))
    page.goto(path.as_uri())
    yield page
    page.close()
    assert complaints == []
    assert [url for url in requests if not url.startswith("data:")] == [path.as_uri()]


@pytest.mark.parametrize("name", ["full", "bare"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [DESKTOP, TELEPHONE])
def test_the_page_fits_and_can_be_read(browser, pages, name, scheme, width):
    with opened(browser, pages[name], width, scheme) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.evaluate("document.images.length") == page.evaluate(
            "[...document.images].filter(each => each.naturalWidth).length"
        )
        contrasts = page.evaluate(CONTRASTS)
        assert len(contrasts) > 50
        assert [each for each in contrasts if each[0] < 4.5] == []
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(17, 20, 23)"
        assert dark == (scheme == "dark")


@pytest.mark.parametrize(("width", "shown", "hidden"), [(DESKTOP, "wide", "narrow"), (TELEPHONE, "narrow", "wide")])
def test_each_chart_is_drawn_once_and_for_the_width(browser, pages, width, shown, hidden):
    with opened(browser, pages["full"], width) as page:
        charts = page.locator(f".chart.{shown}")
        assert charts.count() == page.locator(f".chart.{hidden}").count() == 9
        assert all(chart.is_visible() for chart in charts.all())
        assert not any(chart.is_visible() for chart in page.locator(f".chart.{hidden}").all())
        assert page.evaluate(SMALLEST_TEXT) >= 10


@pytest.mark.parametrize("width", [700, 800, 1000])
def test_widths_between_fit_too(browser, pages, width):
    with opened(browser, pages["full"], width) as page:
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_the_figures_of_a_chart_open_without_a_script(browser, pages):
    with opened(browser, pages["full"], TELEPHONE) as page:
        details = page.locator("#latency details")
        assert not details.locator("table").is_visible()
        details.locator("summary").click()
        assert details.locator("table").is_visible()
        assert page.evaluate("document.documentElement.scrollWidth") <= TELEPHONE


def test_the_page_prints_light(browser, pages, tmp_path):
    with opened(browser, pages["full"], scheme="dark") as page:
        page.pdf(path=tmp_path / "report.pdf", format="A4")
        assert (tmp_path / "report.pdf").stat().st_size > 50_000
        page.emulate_media(media="print")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert not page.locator("nav").is_visible()
        # A4 without its margins.
        page.set_viewport_size({"width": 688, "height": 1000})
        assert page.evaluate("document.documentElement.scrollWidth") <= 688
        assert page.locator(".chart.wide").first.is_visible()


def test_the_page_is_small(pages):
    assert all(path.stat().st_size <= LARGEST for path in pages.values())
