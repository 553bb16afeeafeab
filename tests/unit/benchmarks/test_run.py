"""The table of all ways: its photo, the naive pipeline, which ways agree, and what is left out."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import machine, run
from benchmarks.graph_subjects import Subject, read_subject
from benchmarks.machine import watch_load
from benchmarks.peers.effdet_photo import make_eager
from benchmarks.peers.naive_pipeline import GREY, export_one_tensor, letterbox, make_naive
from benchmarks.run import compare_ways, count_agreeing, describe_ways, main, make_photo
from edge_effdet.artifacts import Detections
from edge_effdet.quickstart import quickstart_photos
from edge_effdet.runtime.nms import iou_matrix


def test_the_photo_is_a_jpeg_and_the_same_each_time():
    photo = make_photo()
    assert photo == make_photo()
    picture = Image.open(io.BytesIO(photo))
    assert (picture.format, picture.size) == ("JPEG", (640, 480))
    # A camera's photo of this size has tens of kilobytes; a drawing would be decoded too fast.
    assert len(photo) > 40_000


def test_the_naive_letterbox_is_in_the_middle_on_grey():
    canvas, scale, (left, top) = letterbox(np.zeros((60, 100, 3), np.uint8), (64, 64))
    assert (scale, left, top) == (0.64, 0, 13)
    assert (canvas[:13] == GREY).all() and (canvas[13:51] == 0).all() and (canvas[51:] == GREY).all()


@pytest.fixture(scope="module")
def subject() -> Subject:
    return read_subject("tests/assets/bccd_lite0.safetensors")


def test_the_naive_pipeline_finds_effdets_objects_in_a_square_photo(subject: Subject, tmp_path: Path):
    """In a square there is nothing to pad, so both see the same pixels. An anchor's second class, of a lower score, is not looked for."""
    stream = io.BytesIO()
    photo = Image.open(quickstart_photos() / "JPEGImages" / "BloodImage_00007.jpg")
    photo.resize(subject.spec.image_size[::-1]).save(stream, "JPEG", quality=95)
    naive = make_naive(subject.spec, export_one_tensor(subject.network, subject.spec, tmp_path / "one.onnx"))
    expected, found = (way(stream.getvalue()) for way in (make_eager(subject.network, subject.spec), naive))
    expected = expected.above(0.4)
    assert len(expected) > 3 and 0 < len(found) <= 100
    same = iou_matrix(expected.boxes, found.boxes) > 0.95
    same &= expected.class_ids[:, None] == found.class_ids[None]
    same &= np.abs(expected.scores[:, None] - found.scores[None]) < 0.01
    assert same.any(axis=1).all()


def test_agreement_wants_place_class_and_score() -> None:
    boxes = np.array([[0, 0, 10, 10], [20, 20, 40, 40]], np.float32)
    expected = Detections(boxes, np.array([0.9, 0.5], np.float32), np.array([1, 2], np.int32))
    assert count_agreeing(expected, expected) == 2
    assert count_agreeing(expected, Detections(boxes + 1, expected.scores, expected.class_ids)) == 0
    assert count_agreeing(expected, Detections(boxes, expected.scores, np.array([1, 3], np.int32))) == 1
    assert count_agreeing(expected, Detections(boxes, expected.scores - np.float32(0.01), expected.class_ids)) == 0
    assert count_agreeing(expected, Detections(boxes[:0], expected.scores[:0], expected.class_ids[:0])) == 0


def some_detections(count: int) -> Detections:
    boxes = np.tile(np.array([[0, 0, 10, 10]], np.float32), (count, 1))
    return Detections(boxes, np.full(count, 0.5, np.float32), np.zeros(count, np.int32))


def stand_in_ways(*_: object):
    """Ways that need no engine: one finds what effdet finds, one finds less, one cannot be opened, one fails on the photo."""

    def fail(*_: object):
        raise RuntimeError("it is not here")

    yield "ours, onnxruntime", lambda: lambda photo: some_detections(2)
    yield "ours, openvino", fail
    yield "ours, openvino, INT8", lambda: lambda photo: some_detections(1)
    yield run.EAGER, lambda: lambda photo: some_detections(2)
    yield run.NAIVE, lambda: fail


def test_ways_are_timed_compared_and_left_out_with_their_reasons(
    subject: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(run, "make_ways", stand_in_ways)
    monkeypatch.setattr(run, "make_eager", lambda *_: lambda photo: some_detections(2))
    found = compare_ways(subject, b"", threads=1, rounds=2, compiled=False, work=tmp_path)
    rows = {row["way"]: row for row in found["rows"]}
    assert list(rows) == ["ours, onnxruntime", "ours, openvino, INT8", run.EAGER]
    assert rows["ours, onnxruntime"]["agreeing_with_effdet"] == "2 of 2"
    assert rows["ours, openvino, INT8"]["agreeing_with_effdet"] is None
    assert set(found["skipped"]) == {"ours, openvino", run.NAIVE}
    assert (found["ours"], found["ours_reduced"]) == ("ours, onnxruntime", "ours, openvino, INT8")
    assert set(found["times_as_fast"]) == {"ours, openvino, INT8", run.EAGER}
    row = rows[run.EAGER]
    assert row["median_ms"] <= row["p90_ms"] <= row["p99_ms"] and np.array(row["milliseconds"]).shape == (2, run.RUNS)
    text = describe_ways(
        {"models": [{"model": "d0", "image_size": [512, 512], "latency": found}], "load": {"others": 0.25}}
    )
    for said in (
        "d0, 512x512 px",
        "P99",
        "2 of 2",
        "ours, openvino was left out: RuntimeError: it is not here",
        "25 %",
    ):
        assert said in text


def test_the_result_lies_by_device_and_date_with_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(run, "make_ways", stand_in_ways)
    monkeypatch.setattr(run, "make_eager", lambda *_: lambda photo: some_detections(2))
    monkeypatch.setattr(machine, "RESULTS", tmp_path)
    words = ["--models", "tests/assets/bccd_lite0.safetensors", "--rounds", "1", "--name", "try", "--json"]
    assert main(words) == 0
    (path,) = tmp_path.glob("*/*.json")
    result = json.loads(path.read_text())
    assert path.name == f"{result['measured_at'][:10]}-run-try.json"
    assert path.parent.name.endswith(f"{result['machine']['cores']}-cores")
    assert 0 <= result["load"]["others"] <= 1 and result["command"].startswith("python ")
    assert json.loads(capsys.readouterr().out)["models"][0]["latency"]["rows"]


def test_what_this_process_computes_is_not_others_work():
    load = watch_load()
    alone = sum(np.linalg.svd(np.random.default_rng(0).random((300, 300)), compute_uv=False)[0] for _ in range(5))
    seen = load()
    assert alone > 0 and 0 <= seen["others"] <= 1 and seen["load_before"] >= 0


def test_the_parsers_name_the_command_that_is_run(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["--help"])
    said = capsys.readouterr().out
    assert "usage: python -m benchmarks.run" in said and "edge_effdet.benchmarks" not in said
    with pytest.raises(SystemExit):
        main(["--rounds", "0"])
    assert main(["--models", "tf_efficientdet_lite9"]) == 2
