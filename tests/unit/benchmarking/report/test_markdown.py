"""The Markdown file says what the page says, and no name formats anything in it."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from edge_effdet.benchmarking.report.contents import contents
from edge_effdet.benchmarking.report.markdown import escaped, markdown_text
from tests.reports import INT8, SCRIPT, bare_report, bare_row, full_report, skipped_row


@pytest.fixture(scope="module")
def report():
    return full_report()


@pytest.fixture(scope="module")
def text(report) -> str:
    return markdown_text(report)


def cells(line: str) -> int:
    return len(re.findall(r"(?<!\\)\|", line))


def test_every_section_and_every_engine_is_there(report, text):
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == [
        section.title for section in contents(report).sections
    ]
    for row in report.rows:
        assert row.name in text and row.engine_sha256 in text
    assert f"**{INT8} (the pick)**" in text
    for sentence in report.advice.sentences:
        assert sentence in text


def test_among_one_engine_there_is_nothing_to_pick(report):
    text = markdown_text(replace(report, rows=tuple(row for row in report.rows if row.name == INT8)))
    assert "the pick" not in text and "Pareto" not in text and "nothing to weigh" in text


def test_no_html_and_no_control_character_is_left(text):
    assert "<" not in re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", text)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text and "\\\\x1b\\[31mred" in text


def test_every_row_of_a_table_has_as_many_cells_as_its_head(text):
    width = 0
    tables = 0
    for line in text.splitlines():
        if not line.startswith("|"):
            width = 0
            continue
        tables += width == 0
        width = width or cells(line)
        assert cells(line) == width, line
    assert tables > 10


def test_figures_of_charts_are_tables(text):
    assert "SingleStream: the time, in ms, that so many of 100 images keep to" in text
    assert "AP of each class in points" in text


@pytest.mark.parametrize(
    ("name", "written"),
    [
        (SCRIPT, "&lt;script&gt;alert(1)&lt;/script&gt;"),
        ("Größe | a", "Größe \\| a"),
        ("`a` *b* [c](d) ~e~", "\\`a\\` \\*b\\* \\[c\\](d) \\~e\\~"),
        ("\x1b[31mred", "\\\\x1b\\[31mred"),
        ("tf_efficientdet_lite0 _a_", "tf_efficientdet_lite0 \\_a\\_"),
        ("# head", "\\# head"),
        ("1. first", "1\\. first"),
        ("- item", "\\- item"),
        ("---", "\\---"),
        ("-0.3", "-0.3"),
        ("two\nlines\r\n", "two lines"),
        ("a &amp; b", "a &amp;amp; b"),
        ("http://a.b www.c.d @e", "http&#58;//a.b www&#46;c.d &#64;e"),
        ("\u202eevil", "\\\\u202eevil"),
    ],
)
def test_names_are_escaped(name, written):
    assert escaped(name) == written


def test_a_command_cannot_leave_its_block(report):
    import dataclasses

    settings = dataclasses.replace(report.settings, command="run \\\n    --name '```'\n<b>\x1b")
    text = markdown_text(dataclasses.replace(report, settings=settings))
    assert "````sh\nrun \\\n    --name '```'\n<b>\\x1b\n````" in text


@pytest.mark.parametrize("rows", [(), (skipped_row(),), (bare_row(), skipped_row())])
def test_a_report_without_figures_says_so(rows):
    text = markdown_text(bare_report(*rows))
    assert "AP was not measured: no labelled images were given." in text
    assert "## Over time" not in text and "## Against the baseline" not in text
