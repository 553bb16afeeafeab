"""Figures of two runs agree where their intervals overlap."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from benchmarks.agreement import compare, main
from edge_effdet.artifacts import json_text
from edge_effdet.artifacts.reading import to_json
from edge_effdet.benchmarking.record import Estimate, Report
from tests.reports import INT8, full_report


def write(path: Path, report: Report) -> Path:
    path.write_text(json_text(to_json(report), indent=1))
    return path


def only(report: Report, name: str) -> Report:
    return replace(report, rows=tuple(row for row in report.rows if row.name == name))


def test_runs_of_one_engine_are_compared(tmp_path, capsys):
    path = write(tmp_path / "a.json", only(full_report(), INT8))
    assert main(["--first", str(path), "--second", str(path), "--no-save", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["agree"] == len(result["figures"]) > 5


def test_what_does_not_overlap_does_not_agree():
    (row,) = only(full_report(), INT8).rows
    assert row.network is not None
    slower = replace(row, network=Estimate(10 * row.network.value, 10 * row.network.low, 10 * row.network.high))
    assert [each["agrees"] for each in compare(row, slower) if each["figure"] == "network, ms"] == [False]


def test_two_engines_are_refused(tmp_path, capsys):
    report = full_report()
    other = next(
        row.name for row in report.rows if row.name != INT8 and row.engine_sha256 != report.rows[0].engine_sha256
    )
    paths = [write(tmp_path / f"{name}.json", only(report, name)) for name in (INT8, other)]
    assert main(["--first", str(paths[0]), "--second", str(paths[1]), "--no-save"]) == 2
    assert "of two engines" in capsys.readouterr().err
