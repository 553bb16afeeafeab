"""The page of ``serve`` in a real browser: a real engine in a process of its own, which watches a folder, a desktop and a telephone, light and dark.

Needs Chromium: ``$EDGE_EFFDET_CHROMIUM``, or ``chromium`` on the path. Without it these tests are skipped; with
``EDGE_EFFDET_REQUIRE_CHROMIUM=1`` they fail. With ``EDGE_EFFDET_SCREENSHOTS`` screenshots are written into that folder.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edge_effdet.backends.base import CompileOptions
from edge_effdet.building.engine import compile_engine
from edge_effdet.graph.model import load_graph, load_model, save_graph
from edge_effdet.runtime.detector import DetectOptions, Detector
from tests.integration.test_report_in_chromium import CONTRASTS, DESKTOP, TELEPHONE, browser
from tests.records import write_record
from tests.statuses import wait

__all__ = ["browser"]

ROOT = Path(__file__).parents[2]
CELL = (200, 120, 130)
TOKEN = "a-token-of-twenty-letters"
CLASSES = ("Platelets", "RBC", "WBC")
SECONDS = 30.0
"""After which what is waited for will not come any more."""


def draw_cells(seed: int) -> Image.Image:
    """Blood cells on pale ground, which the BCCD checkpoint finds."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:480, :640]
    pixels = rng.normal(205, 4, (480, 640, 3))
    for _ in range(12):
        y, x = rng.uniform(60, 420), rng.uniform(60, 580)
        pixels[np.hypot(rows - y, columns - x) < 42] = np.array(CELL) + rng.normal(0, 4, 3)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number in range(4):
        draw_cells(number).save(folder / f"{number}.jpg")
    return folder


class Server:
    """``python -m edge_effdet.serve`` in a process of its own."""

    def __init__(self, engine: Path, *arguments: str, port: int = 0) -> None:
        command = [sys.executable, "-m", "edge_effdet.serve", "--engine", str(engine), "--listen", f"127.0.0.1:{port}"]
        self._process = subprocess.Popen(
            [*command, *arguments], cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        self.log: list[str] = []
        assert self._process.stderr is not None
        for line in self._process.stderr:
            self.log.append(line)
            if found := re.search(r"listens on (http://[\d.]+:(\d+))", line):
                self.address, self.port = found[1], int(found[2])
                return
        pytest.fail("".join(self.log))

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        _, rest = self._process.communicate(timeout=60)
        self.log.append(rest)
        assert self._process.returncode == 0, "".join(self.log)


@contextmanager
def serving(engine: Path, *arguments: str, port: int = 0) -> Iterator[Server]:
    server = Server(engine, "--log", "off", *arguments, port=port)
    try:
        yield server
    finally:
        server.end()


@pytest.fixture(scope="module")
def watching(bccd_engine, photos) -> Iterator[Server]:
    with serving(bccd_engine.path, "--source", str(photos)) as server:
        yield server


@pytest.fixture(scope="module")
def plain(bccd_engine) -> Iterator[Server]:
    """Without a source, and with a limit that a picture can be above."""
    with serving(bccd_engine.path, "--max-body-mib", "0.5") as server:
        yield server


@contextmanager
def opened(browser, server: Server, path: str = "/", width: int = DESKTOP, scheme: str = "light", **options):
    """The page, which must have complained of nothing and asked nobody else by the end.

    ``expected`` are patterns of complaints that belong to the test.
    """
    expected = options.pop("expected", ())
    height = 900 if width > 600 else 844
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme, **options)
    page = context.new_page()
    page.set_default_timeout(1000 * SECONDS)
    requests: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("console", lambda message: complaints.append(f"{message.type}: {message.text}"))
    page.goto(server.address + path)
    yield page
    context.close()
    assert [each for each in complaints if not any(re.search(known, each) for known in expected)] == []
    assert requests
    assert [url for url in requests if not url.startswith((server.address, "blob:", "data:"))] == []


def until(page, expression: str) -> None:
    """Wait until an expression is true in the page, whose policy refuses what Playwright itself would wait with."""
    end = time.monotonic() + SECONDS
    while not page.evaluate(expression):
        assert time.monotonic() < end, expression
        page.wait_for_timeout(50)


def settled(page) -> None:
    until(page, "!document.querySelector('#engine').hidden")


def choose(page, photo: Path) -> None:
    settled(page)
    page.set_input_files("#file", photo)
    until(page, "!document.querySelector('#objects').hidden")


def listed(page) -> list[str]:
    return page.locator("#rows th").all_inner_texts()


def set_threshold(page, value: float) -> None:
    page.eval_on_selector(
        "#threshold",
        "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input', {bubbles: true})); }",
        str(value),
    )


def screenshot(page, name: str) -> None:
    folder = os.environ.get("EDGE_EFFDET_SCREENSHOTS")
    if folder:
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def fits(page, width: int, texts: int = 20) -> None:
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    contrasts = page.evaluate(CONTRASTS.replace("'#stages svg'", "'#boxes'"))
    assert len(contrasts) > texts
    assert [each for each in contrasts if each[0] < 4.5] == []


def found_in(engine, photo: Path, threshold: float) -> list[str]:
    with Detector.load(engine, options=DetectOptions(score_threshold=threshold)) as detector:
        return [engine.spec.class_names[number] for number in detector(photo).class_ids]


@pytest.mark.parametrize(
    ("width", "scheme"), [(DESKTOP, "light"), (DESKTOP, "dark"), (TELEPHONE, "light"), (TELEPHONE, "dark")]
)
def test_a_picture_and_the_live_view_fit_and_can_be_read(browser, watching, photos, width, scheme):
    with opened(browser, watching, width=width, scheme=scheme, has_touch=width == TELEPHONE) as page:
        choose(page, photos / "0.jpg")
        until(page, "document.querySelector('#live-image').naturalWidth > 0")
        until(page, "document.querySelector('#live-rate').textContent > '0'")
        fits(page, width)
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(17, 20, 23)"
        assert dark == (scheme == "dark")
        screenshot(page, f"whole-{width}-{scheme}")


@pytest.mark.parametrize("width", [320, 600, 900, 1000])
def test_widths_between_fit_too(browser, watching, photos, width):
    with opened(browser, watching, width=width) as page:
        choose(page, photos / "0.jpg")
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_a_picture_without_a_source(browser, plain, photos, bccd_engine):
    with opened(browser, plain) as page:
        choose(page, photos / "1.jpg")
        assert not page.locator("#live").is_visible()
        assert listed(page) == found_in(bccd_engine, photos / "1.jpg", 0.3)
        assert "1.jpg: " in page.locator("#picture-notice").inner_text()
        assert page.locator("#boxes > rect").count() == len(listed(page))
        assert "ms" in page.locator("#picture-caption").inner_text()
        screenshot(page, "picture")
    with opened(browser, plain, width=TELEPHONE, scheme="dark") as page:
        settled(page)
        fits(page, TELEPHONE)
        screenshot(page, "empty-telephone")


def test_a_dropped_picture_is_looked_at_and_a_pasted_one(browser, plain, photos, bccd_engine):
    with opened(browser, plain) as page:
        settled(page)
        for event, kind, name in (("drop", "DragEvent", "2.jpg"), ("paste", "ClipboardEvent", "3.jpg")):
            content = list((photos / name).read_bytes())
            page.evaluate(
                """([event, kind, name, content]) => {
                  const data = new DataTransfer();
                  data.items.add(new File([new Uint8Array(content)], name, {type: 'image/jpeg'}));
                  const given = kind === 'DragEvent' ? {dataTransfer: data} : {clipboardData: data};
                  document.body.dispatchEvent(new window[kind](event, {...given, bubbles: true, cancelable: true}));
                }""",
                [event, kind, name, content],
            )
            until(page, f"document.querySelector('#picture-notice').textContent.startsWith('{name}: ')")
            assert listed(page) == found_in(bccd_engine, photos / name, 0.3)


def test_the_slider_and_the_classes_choose_what_is_listed(browser, plain, photos, bccd_engine):
    with opened(browser, plain) as page:
        choose(page, photos / "0.jpg")
        usual = listed(page)
        for threshold in (0.05, 0.6, 0.99):
            set_threshold(page, threshold)
            assert listed(page) == found_in(bccd_engine, photos / "0.jpg", threshold)
            assert page.locator("#threshold-text").inner_text() == f"{threshold:.2f}"
        set_threshold(page, 0.05)
        many = listed(page)
        assert len(many) > len(usual) > 0
        assert set(many) <= set(CLASSES)
        page.get_by_label("RBC", exact=True).uncheck()
        assert listed(page) == [name for name in many if name != "RBC"]
        page.get_by_role("button", name="None").click()
        assert listed(page) == []
        assert page.locator("#boxes > rect").count() == 0
        page.get_by_role("button", name="All").click()
        assert listed(page) == many


def test_the_live_picture_moves_and_shows_what_is_chosen(browser, watching):
    picture = """() => {
      const image = document.querySelector('#live-image');
      const canvas = document.createElement('canvas');
      [canvas.width, canvas.height] = [image.naturalWidth, image.naturalHeight];
      const context = canvas.getContext('2d');
      context.drawImage(image, 0, 0);
      return canvas.toDataURL('image/png');
    }"""
    with opened(browser, watching) as page:
        settled(page)
        until(page, "document.querySelector('#live-image').naturalWidth === 640")
        seen = set()
        wait(lambda: seen.add(page.evaluate(picture)) or len(seen) >= 3)
        until(page, "document.querySelector('#live-state').textContent === 'running'")
        until(page, "/objects?: .*RBC/.test(document.querySelector('#live-counts').textContent)")
        until(page, "document.querySelector('#live-behind').textContent.endsWith(' ms')")
        with page.expect_request(lambda request: "live.mjpeg" in request.url and "class=WBC" in request.url) as asked:
            page.get_by_label("RBC", exact=True).uncheck()
        assert "class=RBC" not in asked.value.url
        until(page, "!document.querySelector('#live-counts').textContent.includes('RBC')")
        page.get_by_role("button", name="Pause").click()
        assert page.locator("#live-still").is_visible()
        until(page, "document.querySelector('#live-state').textContent === 'paused'")
        address = f"{watching.address}/live.json"
        wait(lambda: json.load(urllib.request.urlopen(address))["viewers"] == 0)
        page.get_by_role("button", name="Play").click()
        until(page, "!document.querySelector('#live-image').hidden")
        assert not page.locator("#live-still").is_visible()


def test_who_wants_less_motion_gets_a_still_picture(browser, watching):
    with opened(browser, watching, reduced_motion="reduce") as page:
        until(page, "document.querySelector('#pause').textContent === 'Play'")
        until(page, "document.querySelector('#live-still').width === 640")
        assert page.locator("#live-still").is_visible()


def test_the_keyboard_is_enough(browser, plain, photos):
    with opened(browser, plain) as page:
        choosers = []
        page.on("filechooser", lambda chooser: choosers.append(chooser))
        settled(page)
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"
        reached = []
        for _ in range(12):
            page.keyboard.press("Tab")
            reached.append(page.evaluate("document.activeElement.id || document.activeElement.value"))
            outline = page.evaluate(
                "(() => { const it = document.activeElement; const shown = it.id === 'file' ? it.nextElementSibling : it; "
                "return getComputedStyle(shown).outlineStyle; })()"
            )
            assert outline == "solid", reached
            if reached[-1] == "file":
                break
        assert reached == ["threshold", "all", "none", *CLASSES, "file"]
        page.keyboard.press("Enter")
        end = time.monotonic() + SECONDS
        while not choosers:
            assert time.monotonic() < end
            page.wait_for_timeout(50)
        choosers[0].set_files(photos / "0.jpg")
        until(page, "!document.querySelector('#objects').hidden")
        before = len(listed(page))
        page.locator("#threshold").focus()
        for _ in range(20):
            page.keyboard.press("ArrowLeft")
        assert page.locator("#threshold-text").inner_text() == "0.10"
        assert len(listed(page)) > before
        page.locator("#file").focus()
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.dataset.index") == "0"
        page.keyboard.press("ArrowDown")
        assert page.evaluate("document.activeElement.dataset.index") == "1"
        assert (
            page.evaluate(
                "[...document.querySelectorAll('#boxes > rect')].filter(each => each.getAttribute('fill') !== 'none').length"
            )
            == 1
        )
        page.locator("#classes input").first.focus()
        page.keyboard.press("Space")
        assert not page.locator("#classes input").first.is_checked()


def test_what_a_screen_reader_is_told(browser, watching, photos):
    with opened(browser, watching) as page:
        choose(page, photos / "0.jpg")
        until(page, "document.querySelector('#live-image').alt.startsWith('Live picture of')")
        tree = page.locator("body").aria_snapshot()
        for part in (
            'heading "What is shown"',
            'slider "Lowest score"',
            'group "Classes"',
            'checkbox "RBC"',
            'table "',
            'button "Pause"',
            'status: "0.jpg',
        ):
            assert part in tree, tree
        assert page.locator("[role=status]").count() >= 2
        assert page.evaluate("document.documentElement.lang") == "en"


def test_a_picture_that_the_browser_cannot_show_has_its_boxes_all_the_same(browser, plain, tmp_path, bccd_engine):
    photo = tmp_path / "cells.tif"
    draw_cells(0).resize((320, 240)).save(photo)
    with opened(browser, plain) as page:
        choose(page, photo)
        assert listed(page) == found_in(bccd_engine, photo, 0.3)
        assert "cannot show this kind of picture" in page.locator("#picture-caption").inner_text()
        assert not page.locator("#picture-image").is_visible()
        assert page.locator("#boxes > rect").count() == len(listed(page))
        screenshot(page, "tiff")


def test_what_goes_wrong_is_told_in_words(browser, plain, photos, tmp_path):
    notes, large = tmp_path / "notes.txt", tmp_path / "large.png"
    notes.write_text("no picture")
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (500, 500, 3), dtype=np.uint8)).save(large)
    assert large.stat().st_size > 2**19
    refused = [r"status of 400", r"status of 413", r"ERR_CONNECTION"]
    with opened(browser, plain, expected=refused) as page:
        settled(page)
        page.set_input_files("#file", notes)
        until(page, "document.querySelector('#picture-notice').className.includes('warn')")
        assert "image" in page.locator("#picture-notice").inner_text()
        page.set_input_files("#file", large)
        until(page, "/too large|larger than/.test(document.querySelector('#picture-notice').textContent)")
        assert not page.locator("#result").is_visible()
        choose(page, photos / "0.jpg")
        assert not page.evaluate("document.querySelector('#picture-notice').className.includes('warn')")


def test_a_busy_service_is_tried_again(browser, plain, photos):
    with opened(browser, plain, expected=[r"status of (429|503)"]) as page:
        settled(page)
        answers = iter([(503, "1"), (429, "1")])

        def refuse_twice(route):
            status, wait_for = next(answers, (200, ""))
            if status == 200:
                route.continue_()
                return
            body = json.dumps({"error": "Later."})
            route.fulfill(
                status=status, headers={"Retry-After": wait_for, "Content-Type": "application/json"}, body=body
            )

        page.route("**/detect?*", refuse_twice)
        page.set_input_files("#file", photos / "0.jpg")
        until(page, "document.querySelector('#picture-notice').textContent.includes('trying again in 1 s')")
        until(page, "!document.querySelector('#objects').hidden")
        assert next(answers, None) is None


def test_a_service_that_goes_and_comes_back_is_noticed(browser, bccd_engine, photos):
    server = Server(bccd_engine.path, "--log", "off", "--source", str(photos))
    with opened(browser, server, expected=[r"ERR_CONNECTION", r"ERR_INCOMPLETE", r"ERR_EMPTY"]) as page:
        settled(page)
        until(page, "document.querySelector('#live-image').naturalWidth > 0")
        server.end()
        until(page, "document.querySelector('#notice').textContent === 'The service does not answer; trying again.'")
        assert page.locator("#notice").is_visible()
        screenshot(page, "gone")
        with serving(bccd_engine.path, "--source", str(photos), port=server.port):
            until(page, "document.querySelector('#notice').textContent === 'The service answers again.'")
            address = f"{server.address}/live.json"
            wait(lambda: json.load(urllib.request.urlopen(address))["viewers"] == 1)
            page.close()


def test_the_token_is_asked_for_once(browser, bccd_engine, photos, tmp_path):
    token = tmp_path / "token"
    token.write_text(TOKEN)
    token.chmod(0o600)
    with (
        serving(bccd_engine.path, "--source", str(photos), "--token-file", str(token)) as server,
        opened(browser, server, expected=[r"status of 401"], width=TELEPHONE) as page,
    ):
        until(page, "!document.querySelector('#token').hidden")
        assert page.evaluate("document.activeElement.id") == "token-text"
        page.keyboard.type("wrong")
        page.keyboard.press("Enter")
        until(page, "document.querySelector('#token-problem').textContent.includes('not the token')")
        fits(page, TELEPHONE, texts=8)
        screenshot(page, "token")
        page.fill("#token-text", TOKEN)
        page.keyboard.press("Enter")
        settled(page)
        until(page, "document.querySelector('#live-image').naturalWidth > 0")
        assert not page.locator("#token").is_visible()
        choose(page, photos / "0.jpg")
        assert page.evaluate("document.cookie") == ""
        page.reload()
        settled(page)
        assert not page.locator("#token").is_visible()


@pytest.mark.parametrize(("width", "scheme"), [(DESKTOP, "light"), (TELEPHONE, "dark")])
def test_the_description_fits_and_can_be_read(browser, plain, width, scheme):
    with opened(browser, plain, "/docs", width, scheme) as page:
        until(page, "document.querySelectorAll('article').length > 20")
        fits(page, width)
        assert (
            f"curl --data-binary @picture.jpg '{plain.address}/detect" in page.locator("#detect pre").first.inner_text()
        )
        assert "127.0.0.1:8080" not in page.content()
        screenshot(page, f"docs-{width}-{scheme}")


def test_the_policy_holds(browser, plain):
    """What the page may not do, it cannot do: no markup out of text, no script and no request elsewhere."""
    refused = [r"Content Security Policy", r"TrustedHTML", r"violates"]
    with opened(browser, plain, expected=refused) as page:
        settled(page)
        outcome = page.evaluate("""async () => {
          const tried = {};
          try { document.querySelector('#title').innerHTML = '<b>x</b>'; tried.markup = 'went'; } catch { tried.markup = 'refused'; }
          try { await fetch('https://127.0.0.2/'); tried.elsewhere = 'went'; } catch { tried.elsewhere = 'refused'; }
          const style = document.createElement('style');
          style.textContent = 'body { color: rgb(1, 2, 3) }';
          document.head.append(style);
          tried.style = getComputedStyle(document.body).color === 'rgb(1, 2, 3)' ? 'went' : 'refused';
          return tried;
        }""")
        assert outcome == {"markup": "refused", "elsewhere": "refused", "style": "refused"}


def test_names_of_classes_are_text_and_nothing_else(browser, bccd_engine, photos, tmp_path):
    """A class whose name is markup is shown as it is written."""
    evil = '<img src=x onerror="document.title=1">'
    graph = load_graph(bccd_engine.path)
    spec = replace(graph.spec, class_names=(evil, "R&B <C>", "W\\'C"))
    named = save_graph(
        load_model(graph.path),
        tmp_path / "named.onnx",
        spec=spec,
        stage=graph.stage,
        precision=graph.precision,
        rewrites=graph.rewrites,
        parents=graph.parents,
    )
    path = tmp_path / "engine.onnx"
    write_record(compile_engine(named, "onnxruntime", CompileOptions(), path))
    with serving(path, "--source", str(photos)) as server, opened(browser, server) as page:
        choose(page, photos / "0.jpg")
        assert "R&B <C>" in listed(page)
        assert page.locator("#classes li").all_inner_texts() == [evil, "R&B <C>", "W\\'C"]
        assert page.locator("#classes img").count() == 0
        page.get_by_label("W\\'C", exact=True).uncheck()
        until(page, "/objects?: .*R&B <C>/.test(document.querySelector('#live-counts').textContent)")
