"""What a report shows: the front of the best, what is listed, and what is said where something is missing."""

from __future__ import annotations

import dataclasses

import pytest

from edge_effdet.benchmarking.record import LayerTime, Peaks
from edge_effdet.benchmarking.report.blocks import DASH, Facts, Grid, Picture, Prose, without_empty_columns
from edge_effdet.benchmarking.report.contents import contents
from edge_effdet.benchmarking.report.evidence_sections import MOST_PICTURE_LETTERS, listed_classes
from edge_effdet.benchmarking.report.network_section import attained, roof_at
from edge_effdet.benchmarking.report.speed_sections import front
from tests.reports import FP32, INT8, OPENVINO, bare_report, bare_row, full_report, many_classes, skipped_row


@pytest.fixture(scope="module")
def report():
    return full_report()


def section(report, anchor: str):
    return next(each for each in contents(report).sections if each.anchor == anchor)


def grids(report, anchor: str) -> list[Grid]:
    return [block for block in section(report, anchor).blocks if isinstance(block, Grid)]


def prose(report, anchor: str) -> str:
    return " ".join(block.text for block in section(report, anchor).blocks if isinstance(block, Prose))


def test_the_front_holds_what_nothing_beats(report):
    assert [row.name for row in front(report.rows)] == [INT8, OPENVINO]


def test_two_equal_engines_are_both_on_the_front(report):
    twice = (report.rows[3], dataclasses.replace(report.rows[3], name="twin"))
    assert [row.name for row in front(twice)] == [INT8, "twin"]


def test_engines_without_ap_or_latency_are_not_on_the_front():
    assert front((bare_row(), skipped_row())) == []


def test_the_summary_has_a_row_for_each_engine(report):
    (grid,) = grids(report, "summary")
    assert [row[0] for row in grid.rows] == [row.name for row in report.rows]
    assert grid.picked == 3 and sum(width for _, width in grid.groups) == len(grid.head)
    assert grid.rows[0][4] == "reference" and grid.rows[3][4] == "0.33 (-0.65 to 1.27)"
    assert [row[-1] for row in grid.rows[:4]] == [DASH, DASH, "1", "2, 3"]


def test_an_engine_that_was_skipped_late_keeps_its_figures(report):
    broken = dataclasses.replace(report.rows[0], skipped="It crashed in the scenario Server.")
    late = dataclasses.replace(report, rows=(broken, *report.rows[1:]))
    (grid,) = grids(late, "summary")
    assert grid.rows[0][5].startswith("21.") and grid.rows[0][-1] == "1"


def test_a_server_that_holds_no_rate_is_no_dash(report):
    scenarios = tuple(
        dataclasses.replace(each, rate=None) if each.name == "Server" else each for each in report.rows[0].scenarios
    )
    changed = dataclasses.replace(
        report, rows=(dataclasses.replace(report.rows[0], scenarios=scenarios), *report.rows[1:])
    )
    assert "none held" in grids(changed, "summary")[0].rows[0]


def test_empty_columns_are_left_out_and_rows_that_end_early_stay():
    grid = Grid(
        caption="",
        head=("a", "b", "c", "d"),
        rows=(("1", DASH, "3", DASH), ("1", "skipped")),
        numbers=frozenset({2, 3}),
        groups=(("", 1), ("x", 2), ("y", 1)),
        across=frozenset({1}),
    )
    kept = without_empty_columns(grid)
    assert (kept.head, kept.rows) == (("a", "c"), (("1", "3"), ("1", "skipped")))
    assert (kept.numbers, kept.groups) == (frozenset({1}), (("", 1), ("x", 1)))


def test_regressions_come_first(report):
    grid = grids(report, "baseline")[0]
    assert [row[0] for row in grid.rows] == ["regression", "better", "no clear change", "no clear change"]
    assert grid.rows[-1][3:6] == ("44.0", "44.2", "-0.17 (-1.07 to 0.73) points")


def test_without_a_regression_there_is_no_alert(report):
    calm = dataclasses.replace(report.comparison, changes=report.comparison.changes[:3])
    assert any("baseline" in text for text, _ in contents(report).alerts)
    assert not any("baseline" in text for text, _ in contents(dataclasses.replace(report, comparison=calm)).alerts)


def test_pictures_that_would_make_the_page_too_large_are_left_out(report):
    large = dataclasses.replace(report.differences[1], jpeg="A" * MOST_PICTURE_LETTERS)
    changed = dataclasses.replace(report, differences=(report.differences[0], large))
    assert sum(isinstance(block, Picture) for block in section(changed, "differences").blocks) == 1
    assert "1 more picture would make this file too large" in prose(changed, "differences")


def test_ap_of_another_file_is_told(report):
    assert "AP and latency come from the same files" in prose(report, "accuracy")
    quality = dataclasses.replace(report.rows[0].quality, engine_sha256="f" * 64)
    foreign = dataclasses.replace(report, rows=(dataclasses.replace(report.rows[0], quality=quality), *report.rows[1:]))
    assert f"AP and latency of {FP32} come from different files" in prose(foreign, "accuracy")


def test_the_classes_that_lost_most_are_listed_and_without_a_reference_the_worst(report):
    many = [row for row in many_classes(report, 50).rows if row.quality]
    names, sentence = listed_classes(many)
    assert len(names) == 20 and "lose most" in sentence
    alone = [many[0]]
    names, sentence = listed_classes(alone)
    assert "lowest AP" in sentence
    assert names[0] == min(alone[0].quality.per_class, key=alone[0].quality.per_class.__getitem__)


def test_the_roofline():
    layer = LayerTime(name="a", kind="", precision="int8", median_ms=2.0, macs=10_000_000, bytes=4_000_000)
    # 20 million operations in 2 ms, and five for each byte.
    assert attained(layer) == (5.0, 10.0)
    assert attained(dataclasses.replace(layer, bytes=0)) is None
    peaks = Peaks(fp32_gflops=100.0, int8_gops=None, bandwidth_gb_s=10.0, threads=1, how="")
    assert (roof_at(5.0, "fp32", peaks), roof_at(50.0, "fp32", peaks)) == (50.0, 100.0)
    assert roof_at(5.0, "int8", peaks) is None and roof_at(5.0, "fp16", peaks) is None


def test_the_proof_names_hashes_calibration_and_what_is_missing(report):
    facts = {block.title: dict(block.items) for block in section(report, "proof").blocks if isinstance(block, Facts)}
    assert facts[INT8]["Convolutions' work"] == "99.1 % INT8 and 0.9 % FP32 (OpenVINO's compiled model)"
    assert facts[INT8]["Calibration"].startswith("128 images of train") and "ab" * 32 in facts[INT8]["Calibration"]
    assert facts[INT8]["Kept in high precision"].endswith("and 6 more")
    assert facts[FP32]["Accuracy when built"] == "not measured"
    assert "There is no proof of int8 tensorrt." in prose(report, "proof")


def test_what_a_sensor_does_not_tell_is_said(report):
    assert "Not measured: CPU temperature, GPU clock, GPU temperature, Power and Stops by a limit." in prose(
        report, "machine"
    )
    assert "Energy was not measured." in prose(report, "sustained")
    facts = [
        dict(block.items) for block in section(bare_report(bare_row()), "machine").blocks if isinstance(block, Facts)
    ]
    assert facts[0]["Turbo"] == facts[0]["Governor"] == facts[0]["Load before"] == "not measured"


def test_times_in_any_form_are_shown(report):
    assert contents(report).lines[0].startswith("2026-11-28 16:43 UTC")
    assert (
        contents(dataclasses.replace(report, created_at="2026-11-28T17:43:12.5+01:00"))
        .lines[0]
        .startswith("2026-11-28 16:43 UTC")
    )
    assert (
        contents(dataclasses.replace(report, created_at="2026-11-28T16:43:12Z"))
        .lines[0]
        .startswith("2026-11-28 16:43 UTC")
    )
    assert contents(dataclasses.replace(report, created_at="yesterday")).lines[0].startswith("yesterday")
