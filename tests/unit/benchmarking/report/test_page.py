"""The page is whole, says what is missing, needs nothing but itself, and escapes what names want to do."""

from __future__ import annotations

import dataclasses
import re
import sys
from html.parser import HTMLParser

import pytest

from edge_effdet.benchmarking.record import Report
from edge_effdet.benchmarking.report.page import page_text
from edge_effdet.errors import MissingDependency
from tests.reports import INT8, RED, SCRIPT, SKIPPED, bare_report, bare_row, full_report, skipped_row

VOID = {"meta", "link", "img"}


class PageReader(HTMLParser):
    """Reads a page, and fails where an element is closed that is not open."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


@pytest.fixture(scope="module")
def report() -> Report:
    return full_report()


@pytest.fixture(scope="module")
def page(report) -> str:
    return page_text(report)


@pytest.fixture(scope="module")
def read(page) -> PageReader:
    return PageReader(page)


def test_every_engine_and_the_verdict_are_there(report, read):
    text = " ".join(read.text)
    for row in report.rows:
        assert row.name in text and row.engine_sha256 in text
    for sentence in report.advice.sentences:
        assert sentence in text
    assert "Skipped: tensorrt is not installed" in text
    assert all(mark in text for row in report.rows for mark in row.marks)


def test_every_section_has_its_heading_and_a_link(read):
    anchors = [attributes["id"] for attributes in read.all("section")]
    links = [attributes["href"] for attributes in read.all("a")]
    assert {f"#{anchor}" for anchor in anchors} <= set(links)
    assert {"summary", "sustained", "differences", "proof", "baseline", "reproduce"} <= set(anchors)
    assert len(read.all("h1")) == 1 and len(read.all("h2")) == len(anchors) + 1


def test_no_name_becomes_markup(page, read):
    assert "<script" not in page.lower()
    assert SCRIPT in " ".join(read.text)
    assert not re.search(r"\son\w+=", page)


def test_no_control_character_is_left(page, read):
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", page)
    assert RED not in page
    assert "\\x1b[31mred" in " ".join(read.text)


def test_the_page_needs_nothing_but_itself(page, read):
    for tag, attributes in read.found:
        for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "data:")), (tag, attributes)
    assert "@import" not in page and "@font-face" not in page
    assert set(re.findall(r"url\((.)", page)) <= {"#"}


def test_the_page_can_be_read_without_seeing_it(read):
    assert read.all("html") == [{"lang": "en"}]
    assert any(attributes.get("name") == "viewport" for attributes in read.all("meta"))
    assert all(attributes.get("alt") for attributes in read.all("img"))
    assert all(attributes.get("scope") for attributes in read.all("th"))
    assert len(read.all("caption")) == len(read.all("table"))
    for attributes in read.all("svg"):
        # The samples of a legend are hidden, since the text beside them says all.
        assert "chart" not in (attributes.get("class") or "") or (
            attributes["role"] == "img" and attributes["aria-label"]
        )


def test_no_id_is_there_twice(read):
    ids = [attributes["id"] for _, attributes in read.found if attributes.get("id")]
    assert len(ids) == len(set(ids))
    assert any(name.startswith("sustained-") for name in ids)


def test_a_page_with_all_sections_is_small(page):
    assert len(page.encode()) < 1_500_000


def test_the_same_report_gives_the_same_page(report, page):
    assert page_text(report) == page


def test_the_pick_stands_out(page):
    (picked,) = re.findall(r'<tr class="picked">\s*<th scope="row">(.*?)</th>', page)
    assert picked.startswith(INT8) and "the pick" in picked


def test_regressions_are_named_at_the_top(page, report):
    top = page.partition("<main>")[0]
    assert "1 figure worse than in the baseline" in top


@pytest.mark.parametrize("rows", [(), (skipped_row(),), (bare_row(),), (bare_row("a"), bare_row("b"), skipped_row())])
def test_a_report_without_figures_says_so(rows):
    page = page_text(bare_report(*rows))
    read = PageReader(page)
    text = " ".join(read.text)
    assert "AP was not measured: no labelled images were given." in text
    assert "not measured" in text
    assert not {"sustained", "baseline", "differences", "notes"} & {
        attributes["id"] for attributes in read.all("section")
    }
    assert all(row.name in text for row in rows)
    assert (SKIPPED in text) == any(row.skipped for row in rows)


def test_every_part_of_an_engine_may_be_missing(report):
    """One part after the other, as where a backend has no profiler or a machine no sensor."""
    for missing in (
        {"scenarios": ()},
        {"quality": None},
        {"profile": None, "stages": ()},
        {"evidence": None, "network": None},
    ):
        rows = tuple(dataclasses.replace(row, **missing, sustained=None) for row in report.rows)
        PageReader(page_text(dataclasses.replace(report, rows=rows, comparison=None, differences=())))


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_missing_package_is_named_with_its_extra(report, monkeypatch, package):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependency, match=rf"{package} is not installed.*edge-effdet\[benchmark\]"):
        page_text(report)
