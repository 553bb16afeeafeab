"""The sweep: its suites, what it measures again and what not, cells that fail, and its picture."""

from __future__ import annotations

import errno
import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import sweep
from benchmarks.sweep_cell import Cell, DiskFull, measure_cell
from benchmarks.sweep_picture import describe_sweep, draw_pareto, pareto_front
from edge_effdet.errors import InputError, UsageError
from tests.clusters import ROOT, run_cluster

SUITES = ROOT / "benchmarks" / "suites"
SUITE = """
title = "small"
precisions = ["fp32", "int8"]
backends = ["onnxruntime", "openvino"]
leave_out = ["int8 onnxruntime"]
rounds = 1
runs = 1
warm_up = 0
[published]
source = "a paper"
data = "COCO val2017"
[[model]]
name = "tf_efficientdet_lite0"
sizes = ["64x64", 128]
published_ap = [1.5, 2.5]
"""
CELL = Cell(
    model="tf_efficientdet_lite0",
    image_size=(64, 64),
    precision="fp32",
    backend="onnxruntime",
    turns=(1, 1, 0),
    threads=1,
    quantize={},
)


class StandInProcess:
    """Measures nothing: gives the rows that a test wants, by the cell's precision and backend."""

    rows: dict[tuple[str, str], Any]
    measured: list[Cell]

    def measure(self, cell: Cell, work: Path) -> dict[str, Any] | None:
        self.measured.append(cell)
        row = self.rows.get((cell.precision, cell.backend), {})
        if isinstance(row, BaseException):
            raise row
        return None if row is None else {**fake_row(cell), **row}

    def how_it_ended(self) -> str:
        return "its process ended (SIGSEGV)"

    def end(self) -> None:
        pass


def fake_row(cell: Cell) -> dict[str, Any]:
    return {
        "title": cell.title,
        "model": cell.model,
        "image_size": list(cell.image_size or (320, 320)),
        "precision": cell.precision,
        "backend": cell.backend,
        "median_ms": 10.0 if cell.backend == "openvino" else 12.5,
        "p90_ms": 14.0,
        "times_as_fast": 1.25,
        "accuracy": None,
        "machine": {"others": 0.02},
    }


@pytest.fixture
def process(monkeypatch) -> type[StandInProcess]:
    class OwnProcess(StandInProcess):
        rows: dict[tuple[str, str], Any] = {}  # noqa: RUF012
        measured: list[Cell] = []  # noqa: RUF012

    monkeypatch.setattr(sweep, "_Process", OwnProcess)
    return OwnProcess


def cells_of(tmp_path: Path, text: str = SUITE) -> tuple[dict[str, Any], list[Cell]]:
    path = tmp_path / "suite.toml"
    path.write_text(text)
    suite = sweep.read_suite(path)
    return suite, sweep.list_cells(suite)


@pytest.mark.parametrize("path", sorted(SUITES.glob("*.toml")), ids=lambda path: path.stem)
def test_the_suites_of_the_repository_can_be_read(path: Path):
    assert sweep.read_suite(path)["title"]


def test_the_zoo_has_each_model_at_its_own_size():
    pytest.importorskip("effdet")
    from edge_effdet.models.zoo import model_spec

    cells = sweep.list_cells(sweep.read_suite(SUITES / "zoo.toml"))
    assert len(cells) == 6 * 5
    assert all(model_spec(cell.model).image_size == cell.image_size for cell in cells)
    assert not any((cell.precision, cell.backend) == ("fp16", "onnxruntime") for cell in cells)


def test_the_cells_of_a_suite(tmp_path: Path):
    _, cells = cells_of(tmp_path)
    assert [(cell.image_size, cell.precision, cell.backend) for cell in cells] == [
        ((64, 64), "fp32", "onnxruntime"),
        ((64, 64), "fp32", "openvino"),
        ((64, 64), "int8", "openvino"),
        ((128, 128), "fp32", "onnxruntime"),
        ((128, 128), "fp32", "openvino"),
        ((128, 128), "int8", "openvino"),
    ]


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        ('title = "small"', "", "it has no title"),
        ("rounds = 1", "round = 1", "there is no key round"),
        ('"int8"]', '"int4"]', "there is no precision int4"),
        ('"openvino"]', '"tflite"]', "there is no backend tflite"),
        ('sizes = ["64x64", 128]', "sizes = []", "tf_efficientdet_lite0 has no sizes"),
        ("published_ap = [1.5, 2.5]", "published_ap = [1.5]", "published_ap has an AP in points for each size"),
        ("[[model]]\n", '[[model]]\ncheckpoint = "a.safetensors"\n', "either a name or a checkpoint"),
    ],
)
def test_a_suite_that_cannot_be_used_says_why(tmp_path: Path, before: str, after: str, reason: str):
    with pytest.raises(UsageError, match=reason):
        cells_of(tmp_path, SUITE.replace(before, after))


def test_files_that_are_missing_or_no_suite(tmp_path: Path):
    with pytest.raises(InputError, match="cannot be read"):
        sweep.read_suite(tmp_path / "none.toml")
    with pytest.raises(InputError, match="is no TOML"):
        cells_of(tmp_path, "title = ")
    checkpoint = SUITE.replace('name = "tf_efficientdet_lite0"', 'checkpoint = "none.safetensors"')
    checkpoint = checkpoint.replace('sizes = ["64x64", 128]', "").replace("published_ap = [1.5, 2.5]", "")
    with pytest.raises(InputError, match=r"There is no checkpoint at none\.safetensors"):
        cells_of(tmp_path, checkpoint)
    with pytest.raises(InputError, match="There is no nodata here"):
        cells_of(tmp_path, 'data = "nodata"\n' + SUITE)


def test_a_key_is_that_of_all_that_decides_and_of_nothing_else():
    keys = {
        replace(CELL, **change).key()
        for change in (
            {},
            {"model": "tf_efficientdet_d0"},
            {"image_size": (64, 96)},
            {"precision": "int8"},
            {"backend": "openvino"},
            {"turns": (2, 1, 0)},
            {"threads": 2},
            {"checkpoint_sha256": "ab"},
            {"data_sha256": "ab"},
            {"calibration_images": 8},
            {"quantize": {"method": "max"}},
        )
    }
    assert len(keys) == 11
    assert CELL.key(processor="a") != CELL.key(processor="b")
    one, other = (
        replace(CELL, model=f"/{folder}/a.safetensors", data=f"/{folder}/bccd") for folder in ("one", "other")
    )
    assert one.key() == other.key()


def test_what_is_done_is_not_measured_again(tmp_path: Path, process: type[StandInProcess]):
    _, cells = cells_of(tmp_path)
    process.rows = {("int8", "openvino"): KeyboardInterrupt()}
    with pytest.raises(KeyboardInterrupt):
        sweep.sweep(cells, tmp_path / "out")
    assert len(process.measured) == 3
    process.rows, process.measured = {}, []
    rows = sweep.sweep(cells, tmp_path / "out")
    assert process.measured == cells[2:]
    assert [row["title"] for row in rows] == [cell.title for cell in cells]
    # Another order of the cells, and one that is new.
    process.measured = []
    changed = [*reversed(cells), CELL]
    assert [row["title"] for row in sweep.sweep(changed, tmp_path / "out")] == [cell.title for cell in changed]
    assert process.measured == [CELL]


def test_a_cell_that_crashes_is_kept_with_its_reason_and_the_others_go_on(
    tmp_path: Path, process: type[StandInProcess]
):
    suite, cells = cells_of(tmp_path)
    process.rows = {("fp32", "openvino"): None, ("int8", "openvino"): {"skipped": "OpenVINO refuses it"}}
    rows = sweep.sweep(cells, tmp_path / "out")
    assert [row.get("skipped") for row in rows[:3]] == [None, "its process ended (SIGSEGV)", "OpenVINO refuses it"]
    assert len(rows) == len(cells)
    text = describe_sweep(sweep.gather(suite, cells, rows))
    assert "FP32, openvino was not measured: its process ended (SIGSEGV)" in text
    process.rows, process.measured = {}, []
    assert sweep.sweep(cells, tmp_path / "out") == rows and process.measured == []
    assert not any("skipped" in row for row in sweep.sweep(cells, tmp_path / "out", retry=True))
    assert len(process.measured) == 4


def test_a_full_disk_ends_the_sweep_in_one_sentence_and_keeps_what_is_done(
    tmp_path: Path, process: type[StandInProcess], capsys
):
    cells_of(tmp_path)
    process.rows = {("int8", "openvino"): DiskFull("The disk is full (No space left); make room.")}
    command = [str(tmp_path / "suite.toml"), "--output", str(tmp_path / "out")]
    assert sweep.main(command) == 2
    assert capsys.readouterr().err.splitlines()[-1] == "error: The disk is full (No space left); make room."
    assert len(list((tmp_path / "out" / "cells").iterdir())) == 2


def test_a_cell_tells_a_full_disk_from_other_faults(tmp_path: Path, monkeypatch):
    from benchmarks import sweep_cell

    def fill(cell: Cell, work: Path) -> dict[str, Any]:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise InputError("Writing x failed: is the disk full?") from error

    monkeypatch.setattr(sweep_cell, "_measure", fill)
    with pytest.raises(DiskFull, match="make room"):
        measure_cell(CELL, tmp_path)


def test_a_process_that_dies_gives_no_row(tmp_path: Path):
    process = sweep._Process()
    process._process.kill()
    assert process.measure(CELL, tmp_path) is None
    assert process.how_it_ended() == "its process ended (SIGKILL, perhaps for want of memory)"


def test_a_damaged_cell_is_named(tmp_path: Path, process: type[StandInProcess]):
    sweep.sweep([CELL], tmp_path)
    (path,) = (tmp_path / "cells").iterdir()
    path.write_text("{")
    with pytest.raises(InputError, match=rf"{path.name} is damaged .*; delete it"):
        sweep.sweep([CELL], tmp_path)


@pytest.mark.slow
def test_a_cell_is_built_and_timed(tmp_path: Path, monkeypatch):
    """The whole command on the smallest network, with a second model that does not exist."""
    for package in ("effdet", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    from benchmarks import machine

    monkeypatch.setattr(machine, "RESULTS", tmp_path / "results")
    text = SUITE.replace('sizes = ["64x64", 128]', 'sizes = ["64x64"]').replace("[1.5, 2.5]", "[1.5]")
    text = text.replace('["onnxruntime", "openvino"]', '["onnxruntime"]').replace(
        'leave_out = ["int8 onnxruntime"]', ""
    )
    (tmp_path / "suite.toml").write_text(text + '[[model]]\nname = "tf_efficientdet_lite9"\nsizes = ["64x64"]\n')
    assert sweep.main([str(tmp_path / "suite.toml"), "--output", str(tmp_path / "out")]) == 0
    (path,) = (tmp_path / "results").glob("*/*-sweep-suite.json")
    plain, quantized, *unknown = json.loads(path.read_text())["cells"]
    assert (plain["times_as_fast"], quantized["precision"]) == (1.0, "int8")
    assert quantized["median_ms"] > 0 and quantized["int8_mac_fraction"] > 0
    assert quantized["ap"] == {
        "points": 1.5,
        "kind": "published, not measured",
        "source": "a paper",
        "data": "COCO val2017",
        "of": "fp32",
    }
    assert all("There is no model named 'tf_efficientdet_lite9'" in cell["skipped"] for cell in unknown)
    assert path.with_suffix(".svg").is_file()
    # Engines are gone; the graphs stay for a sweep that goes on.
    kept = sorted(each.name.split(".", 1)[1] for each in (tmp_path / "out" / "work").glob("*.*"))
    assert kept == ["fp32.onnx", "int8.onnx"]


def test_workers_of_a_cluster_measure_cells(tmp_path: Path):
    pytest.importorskip("distributed")
    pytest.importorskip("effdet")
    unknown = [replace(CELL, model=f"tf_efficientdet_lite{number}") for number in (8, 9)]
    with run_cluster(tmp_path / "cluster", 1) as cluster:
        rows = sweep.sweep(unknown, tmp_path / "out", str(cluster.file))
    assert [row["title"] for row in rows] == [cell.title for cell in unknown]
    for row, number in zip(rows, (8, 9), strict=True):
        assert f"There is no model named 'tf_efficientdet_lite{number}'" in row["skipped"]
        assert row["worker"].startswith("tcp://") and row["host"] and row["machine"]["processor"]


def test_the_front_is_what_no_other_point_beats():
    points = [(10.0, 30.0), (12.0, 29.0), (10.0, 28.0), (20.0, 40.0), (30.0, 40.0), (5.0, 20.0)]
    assert pareto_front(points) == [(5.0, 20.0), (10.0, 30.0), (20.0, 40.0)]
    assert pareto_front([]) == []


def test_the_picture_and_the_table_say_that_an_ap_is_published(tmp_path: Path, process: type[StandInProcess]):
    suite, cells = cells_of(tmp_path)
    process.rows = {("int8", "openvino"): {"machine": {"others": 0.5}}}
    result = sweep.gather(suite, cells, sweep.sweep(cells, tmp_path / "out"))
    text = describe_sweep(result)
    assert "AP: COCO val2017, published in the a paper, not measured here." in text
    assert [line.split("  ")[-1].strip() for line in text.splitlines()[2:5]] == ["1.5", "1.5", "1.5 in FP32"]
    assert "10.0 ms *" in text and "*: other processes took more than 10 %" in text
    draw_pareto(result, tmp_path / "a.svg")
    draw_pareto(result, tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    said = "".join(ElementTree.parse(tmp_path / "a.svg").getroot().itertext())
    for words in ("not measured here", "hollow: AP of FP32, loss not measured", "lite0, 64x64"):
        assert words in said


def test_measured_and_published_ap_are_in_panels_of_their_own(tmp_path: Path, process: type[StandInProcess]):
    suite, cells = cells_of(tmp_path)
    process.rows = {("int8", "openvino"): {"accuracy": {"AP": 0.445}}}
    cells = [replace(cell, data="/data/bccd") if cell.precision == "int8" else cell for cell in cells]
    result = sweep.gather(suite, cells, sweep.sweep(cells, tmp_path / "out"))
    draw_pareto(result, tmp_path / "a.svg")
    said = "".join(ElementTree.parse(tmp_path / "a.svg").getroot().itertext())
    assert "AP: measured here on bccd" in said and "not measured here" in said and "hollow" not in said
    assert "44.5" in describe_sweep(result)
