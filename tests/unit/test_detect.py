"""What ``detect`` shows and names; the verb itself runs in the integration tests."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from edge_effdet.artifacts import Detections
from edge_effdet.errors import DataError, InputError
from edge_effdet.runtime.pipeline import FrameResult, Progress
from edge_effdet.runtime.run import run_through
from edge_effdet.runtime.sinks import CocoResults, JsonLines, JsonObject, results_name, video_name
from edge_effdet.runtime.sources import Camera, Frame, ImageFiles
from tests.receivers import SPEC, make_frame


class Recorder:
    """A sink that says whether it was closed, and may fail."""

    def __init__(self, error: Exception | None = None):
        self.error, self.names, self.closed = error, [], 0

    def write(self, found):
        if self.error:
            raise self.error
        self.names.append(found.frame.name)

    def close(self):
        self.closed += 1


def found(name: str, class_ids=(), problem: str = "") -> FrameResult:
    count = len(class_ids)
    detections = Detections(np.zeros((count, 4), np.float32), np.ones(count, np.float32), np.array(class_ids, np.int32))
    return FrameResult(
        Frame(name, Path(name), None, time.perf_counter()), None if problem else detections, problem, None, 0.01
    )


def test_every_sink_gets_everything_and_classes_are_counted():
    sinks, counts, progress = [Recorder(), Recorder()], Counter(), Progress(done=2, failed=1)
    frames = [found("a", [0, 1]), found("b", problem="b is empty"), found("c", [1])]
    run_through(iter(frames), sinks, progress, counts, alone=False)
    assert counts == {1: 2, 0: 1}
    assert all(sink.names == ["a", "b", "c"] and sink.closed == 1 for sink in sinks)


def test_sinks_are_closed_whatever_happens():
    def interrupted():
        yield found("a")
        raise KeyboardInterrupt

    sinks = [Recorder(), Recorder()]
    with pytest.raises(KeyboardInterrupt):
        run_through(interrupted(), sinks, Progress(), Counter(), alone=False)
    assert [sink.closed for sink in sinks] == [1, 1]
    sinks = [Recorder(InputError("the disk is full")), Recorder()]
    with pytest.raises(InputError, match="disk"):
        run_through(iter([found("a")]), sinks, Progress(), Counter(), alone=False)
    assert [sink.closed for sink in sinks] == [1, 1]


@pytest.mark.parametrize("kind", [JsonLines, CocoResults])
def test_a_run_without_a_frame_keeps_the_results_of_an_earlier_one(tmp_path, kind):
    path = tmp_path / "cam.json"

    def away(*frames):
        yield from frames
        raise DataError("the camera is away")

    path.write_text("earlier")
    with pytest.raises(DataError, match="away"):
        run_through(away(), [kind(path, SPEC)], Progress(), Counter(), alone=False)
    assert (path.read_text(), len(list(tmp_path.iterdir()))) == ("earlier", 1)
    # That nothing was found in a frame is a result too.
    with pytest.raises(DataError, match="away"):
        run_through(away(found("a")), [kind(path, SPEC)], Progress(), Counter(), alone=False)
    assert json.loads(path.read_text()) == ([] if kind is CocoResults else {"image": "a", "detections": []})


def test_a_lone_picture_that_is_none_is_the_error_and_so_are_none_at_all():
    with pytest.raises(DataError, match="a is empty"):
        run_through(iter([found("a", problem="a is empty")]), [], Progress(), Counter(), alone=True)
    with pytest.raises(DataError, match="None of the images"):
        run_through(iter([found("a", problem="a is empty")]), [], Progress(failed=1), Counter(), alone=False)


def test_who_looks_on_sees_the_rate(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    progress = Progress()
    for _ in range(3):
        progress.add(0.02)
    run_through(iter([found("a")]), [], progress, Counter(), alone=False)
    shown = capsys.readouterr().err
    assert "\r\x1b[K3 images  " in shown
    assert "  20 ms" in shown
    assert shown.endswith("\r\x1b[K")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("rtsp://10.0.0.2:554/door", "10.0.0.2_554_door"),
        ("/dev/video0", "video0"),
        ("nvarguscamerasrc sensor-id=0", "nvarguscamerasrc_sensor-id_0"),
        ("///", "camera"),
        ("http://cam/live?token=" + "ü" * 300, f"cam_live_token_{'ü' * 92}"),
    ],
)
def test_files_of_cameras_have_names_that_are_files(name, expected):
    assert results_name(Camera(name, lambda: iter([]))) == expected


@pytest.mark.parametrize(
    ("name", "results", "video"),
    [
        ("films/my clip.mp4", "my_clip.mp4", "my_clip.mp4"),
        ("films/my clip.MOV", "my_clip.MOV", "my_clip.MOV.mp4"),
        ("films/CLIP.MP4", "CLIP.MP4", "CLIP.MP4"),
        ("/dev/video0", "video0", "video0.mp4"),
        (os.fsdecode(b"\xb2\xe2.avi"), "xb2_xe2.avi", "xb2_xe2.avi.mp4"),
    ],
)
def test_the_files_of_a_video_keep_its_suffix(name, results, video):
    source = Camera(name, lambda: iter([]))
    assert (results_name(source), video_name(source)) == (results, video)


@pytest.mark.parametrize("track_ids", [None, [3, -1]])
def test_every_form_of_results_has_the_numbers_of_tracked_objects(tmp_path, track_ids):
    frame = make_frame(0, objects=2, track_ids=track_ids)
    expected = [None, None] if track_ids is None else [3, None]
    sinks = {
        "a.jsonl": JsonLines(tmp_path / "a.jsonl", SPEC),
        "a.coco.json": CocoResults(tmp_path / "a.coco.json", SPEC),
        "a.json": JsonObject(tmp_path / "a.json", SPEC, {}),
    }
    run_through(iter([frame]), list(sinks.values()), Progress(done=1), Counter(), alone=False)
    found = {name: json.loads((tmp_path / name).read_text()) for name in sinks}
    for rows in (found["a.jsonl"]["detections"], found["a.coco.json"], found["a.json"]["images"][0]["detections"]):
        assert [row.get("track_id") for row in rows] == expected


def test_pictures_have_one_file_of_results():
    assert results_name(ImageFiles([Path("a.jpg")], "photos")) == "detections"
