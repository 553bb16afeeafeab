"""The charts are SVG that takes the page's colours, shares no id with another chart, and copes with any name."""

from __future__ import annotations

import dataclasses
import re
import xml.etree.ElementTree as ET

import matplotlib
import pytest

from edge_effdet.benchmarking.record import Estimate, Report
from edge_effdet.benchmarking.report.blocks import Chart
from edge_effdet.benchmarking.report.charts import DRAWINGS, chart_svg
from edge_effdet.benchmarking.report.contents import contents
from tests.reports import FP32, INT8, SCRIPT, full_report, many_classes


@pytest.fixture(scope="module")
def report() -> Report:
    return full_report()


def all_charts(report: Report) -> dict[str, Chart]:
    found = [block for section in contents(report).sections for block in section.blocks if isinstance(block, Chart)]
    return {f"{chart.kind} {chart.row or ''}".strip(): chart for chart in found}


def drawn(report: Report, chart: Chart, prefix: str = "p") -> list[ET.Element]:
    """The wide and the narrow drawing."""
    wide, narrow = ET.fromstring(f"<both>{chart_svg(report, chart, prefix)}</both>")
    assert (wide.get("class"), narrow.get("class")) == ("chart wide", "chart narrow")
    return [wide, narrow]


def texts(svg: ET.Element) -> list[str]:
    return [element.text or "" for element in svg.iter("text")]


def of_kind(report: Report, kind: str, row: str | None = None) -> Chart:
    return Chart(kind=kind, label="What it shows.", caption="", row=row)


def test_every_kind_of_chart_is_in_a_full_report(report):
    assert {name.split()[0] for name in all_charts(report)} == set(DRAWINGS)


def test_charts_share_no_id(report):
    ids: list[str] = []
    for number, chart in enumerate(all_charts(report).values()):
        for svg in drawn(report, chart, f"chart-{number}"):
            own = [name for element in svg.iter() if (name := element.get("id"))]
            used = re.findall(r"#(chart-[\w.-]+)", ET.tostring(svg, encoding="unicode"))
            assert set(own) == set(used)
            ids += own
    assert len(ids) == len(set(ids)) > 20


@pytest.mark.parametrize("kind", sorted(DRAWINGS))
def test_a_chart_has_the_colours_and_the_fonts_of_the_page(report, kind):
    svgs = drawn(report, of_kind(report, kind, FP32))
    for svg in svgs:
        styles = " ".join(element.get("style", "") for element in svg.iter())
        assert "var(--" in styles and "font-family" not in styles
        assert not re.search(r"#[0-9a-fA-F]{3,}", styles), "a colour that does not change with the page"
        assert svg.find(".//style") is None and svg.find(".//metadata") is None
        assert svg.get("role") == "img" and svg.get("aria-label") == "What it shows."
    wide, narrow = (float((svg.get("viewBox") or "").split()[2]) for svg in svgs)
    assert wide > 700 and narrow < 390


def test_the_same_chart_has_the_same_bytes_whatever_the_users_settings_are(report):
    chart = of_kind(report, "latency")
    once = chart_svg(report, chart, "p")
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        assert chart_svg(report, chart, "p") == once
        assert matplotlib.rcParams["font.size"] == 30


def test_names_are_text_and_neither_markup_nor_formulas(report):
    wide, _ = drawn(report, of_kind(report, "classes"))
    assert {SCRIPT, "\\x1b[31mred", "$x_1$", "Größe | a", "`code` *star* _line_"} <= set(texts(wide))
    assert "<script" not in chart_svg(report, of_kind(report, "classes"), "p")


def test_a_name_that_the_font_lacks_is_no_warning(report):
    rows = (dataclasses.replace(report.rows[0], name="検出器 \x1b[0m"), *report.rows[1:])
    wide, _ = drawn(dataclasses.replace(report, rows=rows), of_kind(report, "latency"))
    assert "検出器 \\x1b[0m" in texts(wide)


def test_long_names_fit(report):
    rows = tuple(
        dataclasses.replace(row, name=row.name + " of a model whose name goes on and on" * 3) for row in report.rows
    )
    for kind in ("latency", "stages", "tradeoff"):
        for svg, letters in zip(
            drawn(dataclasses.replace(report, rows=rows), of_kind(report, kind)), (60, 24), strict=True
        ):
            assert all(
                len(text) <= letters
                for text in texts(svg)
                if "/" not in text and not text.startswith(("P50", "latency", "median"))
            )


def test_the_roof_is_left_out_where_it_was_not_measured(report):
    chart = of_kind(report, "roofline", INT8)
    assert any(text.startswith("FP32 118") for text in texts(drawn(report, chart)[0]))
    without = dataclasses.replace(report, machine=dataclasses.replace(report.machine, peaks=None))
    assert not any(text.startswith("FP32") for text in texts(drawn(without, chart)[0]))


def test_contended_and_throttled_stretches_are_shaded(report):
    throttled, contended = (chart_svg(report, of_kind(report, "sustained", name), "p") for name in (INT8, FP32))
    assert "var(--shade-dark)" in throttled and "var(--shade-light)" not in throttled
    assert "var(--shade-light)" in contended and "var(--shade-dark)" not in contended


def test_sensors_that_were_not_read_have_no_picture(report):
    assert "power, W" in texts(drawn(report, of_kind(report, "sustained", INT8))[0])
    assert "power, W" not in texts(drawn(report, of_kind(report, "sustained", FP32))[0])


def test_latencies_far_apart_get_a_logarithmic_axis(report):
    slow = report.rows[0].scenarios[0]
    slow = dataclasses.replace(slow, p50_ms=Estimate(900.0, 890.0, 910.0))
    rows = (dataclasses.replace(report.rows[0], scenarios=(slow,)), *report.rows[1:])
    assert "0" in texts(drawn(report, of_kind(report, "tradeoff"))[0])
    assert "0" not in texts(drawn(dataclasses.replace(report, rows=rows), of_kind(report, "tradeoff"))[0])


def test_one_engine_is_enough_for_every_chart(report):
    alone = dataclasses.replace(report, rows=(report.rows[3],))
    for chart in all_charts(alone).values():
        drawn(alone, chart)


def test_many_engines_and_classes_are_drawn(report):
    rows = tuple(dataclasses.replace(report.rows[number % 4], name=f"engine {number}") for number in range(11))
    many = many_classes(dataclasses.replace(report, rows=rows), 90)
    wide, narrow = drawn(many, of_kind(many, "classes"))
    assert sum(text.startswith("class ") for text in texts(wide)) == 20
    assert sum(text.startswith("class ") for text in texts(narrow)) == 20
    drawn(many, of_kind(many, "tradeoff"))
