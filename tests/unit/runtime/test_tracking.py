"""Numbers of objects: kept while objects move and hide, new for new objects, and none for pictures that are no video."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from edge_effdet.artifacts import Detections
from edge_effdet.backends.base import LoadOptions
from edge_effdet.errors import MissingDependency, UsageError
from edge_effdet.runtime.detector import DetectOptions, Detector
from edge_effdet.runtime.pipeline import Pipeline
from edge_effdet.runtime.run import follow_objects
from edge_effdet.runtime.sources import Camera, ImageFiles, open_source
from edge_effdet.runtime.tracking import Tracker, TrackOptions, make_tracker, refuse_pictures
from tests.backends import BrightBoxRunner
from tests.bench_backends import SPEC as ONE_CLASS

SIZE = (480, 640)


def seen(*objects: tuple[float, float, float, int]) -> Detections:
    """Detections of boxes 40 x 60, each by its centre, score and class; the best first."""
    rows = sorted(objects, key=lambda each: -each[2])
    table = np.array([[x - 20, y - 30, x + 20, y + 30] for x, y, _, _ in rows], np.float32).reshape(-1, 4)
    return Detections(
        table, np.array([each[2] for each in rows], np.float32), np.array([each[3] for each in rows], np.int32)
    )


def ids(found: Detections) -> list[int]:
    assert found.track_ids is not None and found.track_ids.dtype == np.int32
    return found.track_ids.tolist()


@pytest.fixture
def tracker() -> Tracker:
    pytest.importorskip("trackforge")
    found = make_tracker(TrackOptions(track=True))
    assert found is not None
    return found


def test_two_objects_that_pass_each_other_keep_their_numbers(tracker):
    """They move 8 pixels a frame in opposite directions, on paths that lie 100 pixels apart."""
    numbers = []
    for step in range(60):
        left, right = (60 + 8 * step, 150.0, 0.9, 0), (580 - 8 * step, 250.0, 0.8, 0)
        numbers.append(ids(tracker.update(seen(left, right), SIZE)))
    assert numbers == [[1, 2]] * 60


def test_what_was_found_stays_as_it_is(tracker):
    given = seen((100, 100, 0.9, 0), (300, 300, 0.3, 1))
    found = tracker.update(given, SIZE)
    assert found.boxes is given.boxes and found.scores is given.scores and found.class_ids is given.class_ids
    assert given.track_ids is None


def test_a_new_object_gets_a_new_number_and_a_lost_one_keeps_its_own_for_a_while(tracker):
    first = (100.0, 100.0, 0.9, 0)
    for _ in range(10):
        assert ids(tracker.update(seen(first), SIZE)) == [1]
    assert ids(tracker.update(seen(first, (400, 300, 0.8, 0)), SIZE)) == [1, 2]
    # Hidden for as many frames as objects are waited for.
    for _ in range(30):
        assert ids(tracker.update(seen((400, 300, 0.8, 0)), SIZE)) == [2]
    assert ids(tracker.update(seen(first, (400, 300, 0.8, 0)), SIZE)) == [1, 2]
    # Both gone for longer than objects are waited for.
    for _ in range(31):
        assert ids(tracker.update(seen(), SIZE)) == []
    assert ids(tracker.update(seen(first), SIZE)) == [3]


def test_a_faint_object_is_not_begun_with_but_followed(tracker):
    assert ids(tracker.update(seen((100, 100, 0.3, 0)), SIZE)) == [-1]
    assert ids(tracker.update(seen((100, 100, 0.9, 0)), SIZE)) == [1]
    assert ids(tracker.update(seen((102, 100, 0.3, 0)), SIZE)) == [1]


def test_no_object_takes_over_the_number_of_another_class(tracker):
    assert ids(tracker.update(seen((100, 100, 0.9, 0)), SIZE)) == [1]
    assert ids(tracker.update(seen((100, 100, 0.9, 1)), SIZE)) == [2]
    assert ids(tracker.update(seen((100, 100, 0.9, 0), (100, 100, 0.8, 1)), SIZE)) == [1, 2]


def test_another_size_of_the_frames_makes_all_objects_new(tracker):
    assert ids(tracker.update(seen((100, 100, 0.9, 0)), SIZE)) == [1]
    assert ids(tracker.update(seen((100, 100, 0.9, 0)), (240, 320))) == [2]


def test_many_objects_come_and_go(tracker):
    """Numbers of objects that are gone are forgotten, and those that are there stay."""
    for step in range(1500):
        passing = (60.0 * (step % 90), 400.0, 0.8, 0)
        found = ids(tracker.update(seen((100, 100, 0.9, 0), passing), SIZE))
        assert found[0] == 1
        assert len(tracker._known) <= 1001
    assert found[1] > 1000


def test_numbers_that_make_no_sense_are_refused():
    for wrong in ({"track_score": 0.0}, {"track_score": 1.5}, {"track_overlap": 0.0}, {"track_frames": 0}):
        with pytest.raises(UsageError, match=f"`{next(iter(wrong))}`"):
            TrackOptions(**wrong)


def test_without_the_option_there_is_none():
    assert make_tracker(TrackOptions()) is None


def test_a_missing_package_names_its_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "trackforge", None)
    with pytest.raises(MissingDependency, match=r"trackforge.*edge-effdet\[track\]"):
        make_tracker(TrackOptions(track=True))


def test_pictures_are_refused_and_cameras_are_not():
    pictures = ImageFiles([Path("a.jpg")], "photos")
    with pytest.raises(UsageError, match="`track`"):
        refuse_pictures(TrackOptions(track=True), pictures)
    refuse_pictures(TrackOptions(), pictures)
    refuse_pictures(TrackOptions(track=True), Camera("camera", lambda: iter([])))


def write_clip(path: Path, frames: list[np.ndarray]) -> Path:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt, stream.bit_rate = "yuv420p", 2_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def test_an_object_in_a_real_clip_keeps_its_number_until_another_comes(tracker, tmp_path):
    """A white square moves, is gone for two seconds, and another one comes at the other end."""
    frames = [np.zeros((64, 64, 3), np.uint8) for _ in range(90)]
    for step, frame in enumerate(frames):
        if step < 20:
            frame[4 + step : 20 + step, 4 + step : 20 + step] = 255
        elif step >= 70:
            frame[40:56, 100 - step : 116 - step] = 255
    source = open_source(str(write_clip(tmp_path / "clip.mp4", frames)))
    detector = Detector(BrightBoxRunner(64, 1), ONE_CLASS, DetectOptions(0.1))
    with detector, Pipeline(detector, source, loading=LoadOptions(1, 1)) as pipeline:
        found = [each.detections for each in follow_objects(pipeline, tracker) if each.detections is not None]
    assert len(found) == 90
    # The stand-in for an engine gives an empty box at the corner where it sees nothing.
    real = [[int(number) for number, box in zip(ids(each), each.boxes, strict=True) if box[2] > 8] for each in found]
    assert real[:20] == [[real[0][0]]] * 20
    assert real[70:] == [[real[70][0]]] * 20
    assert real[70][0] not in (real[0][0], -1)
