"""The live view on folders, videos and cameras that go and come back, with a runner that finds what is bright."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from edge_effdet.artifacts import ModelSpec
from edge_effdet.backends.base import LoadOptions
from edge_effdet.errors import DataError, InputError
from edge_effdet.runtime import sources
from edge_effdet.runtime.detector import DetectOptions, Detector
from edge_effdet.runtime.pipeline import FrameResult
from edge_effdet.runtime.sources import Frame
from edge_effdet.runtime.tracking import Tracker, TrackOptions
from edge_effdet.serving import live
from edge_effdet.serving.live import Live, PacedSource
from tests.backends import BrightBoxRunner
from tests.cameras import NetworkCamera, PipeCamera
from tests.statuses import wait
from tests.unit.device.service.test_loop import write_raw_video
from tests.unit.runtime.test_sources import write_video

SPEC = ModelSpec("tf_efficientdet_lite0", (64, 64), ("thing",), (1,))


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(live, "FIRST_WAIT", 0.1)
    monkeypatch.setattr(live, "PICTURES_A_SECOND", 50.0)


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        Image.fromarray(picture(number)).save(folder / f"{number}.png")
    return folder


def picture(number: int) -> np.ndarray:
    image = np.zeros((64, 64, 3), np.uint8)
    image[10:20, 10 * number : 10 * number + 20] = 255
    return image


def make_detector(score: float = 0.8, options: DetectOptions | None = None) -> Detector:
    return Detector(BrightBoxRunner(64, score=score), SPEC, options)


@contextlib.contextmanager
def watching(source, detector: Detector | None = None, **options):
    view = Live(detector or make_detector(), str(source), LoadOptions(), **options)
    view.start()
    try:
        yield view
    finally:
        view.close()


class Kept:
    """A sink that keeps what it gets; ``problem`` is raised in its place."""

    def __init__(self, problem: Exception | None = None, at_end: Exception | None = None) -> None:
        self.problem, self.at_end = problem, at_end
        self.found: list[FrameResult] = []
        self.tried = 0
        self.closed = False

    def write(self, found: FrameResult) -> None:
        self.tried += 1
        if self.problem is not None:
            raise self.problem
        self.found.append(found)

    def close(self) -> None:
        self.closed = True
        if self.at_end is not None:
            raise self.at_end


class Played:
    """A source of frames with given times."""

    name, live, total = "played", False, None

    def __init__(self, seconds, rate=None) -> None:
        self.seconds, self.rate = seconds, rate
        self.stopped = False

    def __iter__(self):
        for number, each in enumerate(self.seconds):
            yield Frame(f"#{number}", picture(0), each, time.perf_counter())

    def stop(self):
        self.stopped = True


def paced(source) -> PacedSource:
    return PacedSource(source, lambda: source)


def take(source, count: int) -> list[Frame]:
    frames = iter(source)
    return [next(frames) for _ in range(count)]


def test_a_video_is_played_at_its_own_rate_and_again(tmp_path):
    path = write_video(tmp_path / "clip.avi", frames=6)
    source = paced(sources.open_source(str(path)))
    assert source.live
    assert source.rate == pytest.approx(10)
    begun = time.perf_counter()
    frames = take(source, 9)
    assert [frame.name.rpartition("#")[2] for frame in frames] == [*"012345", *"012"]
    # No sooner than its turn; how much later depends on the machine.
    assert all(frame.arrived - begun >= (frame.seconds or 0.0) for frame in frames)
    assert [frame.seconds for frame in frames] == pytest.approx(np.arange(9) / 10, abs=0.011)


def test_times_that_are_wrong_are_not_waited_for():
    without = take(paced(Played([0.0, 0.0, 0.0, 0.0], rate=100.0)), 4)
    jumping = take(paced(Played([5.0, 5.01, 9000.0, 9000.01, 1.0], rate=100.0)), 5)
    for frames in (without, jumping):
        assert np.diff([frame.seconds for frame in frames]) == pytest.approx(0.01)
        assert (np.diff([frame.arrived for frame in frames]) > 0).all()


def test_a_slow_reader_does_not_make_a_video_run_faster_later():
    frames = iter(paced(Played([number / 100 for number in range(200)], rate=100.0)))
    next(frames)
    time.sleep(live._LATE + 0.3)
    begun = time.perf_counter()
    late = [next(frames) for _ in range(20)]
    # The first may come at once, and each after it no sooner than its step.
    assert late[-1].arrived - begun > 0.15


def test_the_wait_for_the_next_frame_can_be_ended():
    played = Played([0.0, 4.0], rate=0.25)
    source = paced(played)
    frames = iter(source)
    next(frames)
    timer = threading.Timer(0.1, source.stop)
    timer.start()
    assert next(frames, None) is None
    assert played.stopped


def test_a_source_without_frames_is_refused():
    with pytest.raises(DataError, match="played holds no frame"):
        take(paced(Played([])), 1)


def test_the_newest_frame_is_kept_and_counted(pictures):
    with watching(pictures) as view:
        first = view.wait_newer(0, 60)
        later = view.wait_newer(first.number + 3, 60)
        assert later.number > first.number + 3
        assert view.newest().number >= later.number
        assert later.image.shape == (64, 64, 3)
        assert later.image.dtype == np.uint8
        number = int(Path(later.name).stem)
        np.testing.assert_array_equal(later.image, picture(number))
        np.testing.assert_allclose(later.detections.boxes, [[10 * number, 10, 10 * number + 20, 20]], atol=1)
        state = view.state()
        assert (state["state"], state["problem"], state["source"]) == ("running", "", str(pictures))
        assert state["number"] >= later.number
        assert state["rate"] > 0
        assert state["latency_ms"] > 0
        assert state["behind_ms"] is None
        view.note_sent(later)
        assert view.state()["behind_ms"] == view.state()["behind_ms_p90"] > 0
        json.dumps(state)
    assert view.state()["state"] == "stopped"
    assert not view.abandoned


def test_nothing_comes_where_nothing_is_new(pictures):
    with watching(pictures) as view:
        view.wait_newer(0, 60)
        assert view.wait_newer(1 << 40, 0.05) is None


def test_closing_ends_the_waits(pictures):
    view = Live(make_detector(), str(pictures), LoadOptions())
    answers = []
    waiting = threading.Thread(target=lambda: answers.append(view.wait_newer(1 << 40, 600)))
    waiting.start()
    view.start()
    view.wait_newer(0, 60)
    view.close()
    waiting.join(60)
    assert answers == [None]
    with pytest.raises(RuntimeError, match="started once"):
        view.start()


def test_viewers_may_ask_for_lower_scores_than_sinks_get(pictures):
    detector, sink = make_detector(score=0.1), Kept()
    with watching(pictures, detector, sinks=[sink]) as view:
        wait(lambda: len(sink.found) > 2)
        assert view.newest().detections.scores == pytest.approx([0.1])
    assert all(len(each.detections) == 0 for each in sink.found)
    assert sink.closed
    assert detector.options.score_threshold == 0.3


def test_scores_are_not_lowered_where_that_would_move_boxes():
    options = DetectOptions(nms_kind="fusion")
    detector = make_detector(options=options)
    assert live._with_low_scores(detector) is detector
    lower = live._with_low_scores(make_detector(options=replace(options, nms_kind="soft-linear")))
    assert lower.options.score_threshold == live.LOWEST_SCORE


def test_a_sink_that_fails_stops_neither_the_view_nor_the_other_sinks(pictures, caplog):
    failing, other = Kept(problem=ValueError("no broker"), at_end=InputError("the disk is full")), Kept()
    view = Live(make_detector(), str(pictures), LoadOptions(), sinks=[failing, other])
    view.start()
    wait(lambda: len(other.found) > 3)
    assert view.state()["state"] == "running"
    with pytest.raises(InputError, match="the disk is full"):
        view.close()
    assert failing.tried >= 3
    assert failing.closed
    assert other.closed
    assert [other.found[at].frame.name for at in range(3)] == [str(pictures / f"{at}.png") for at in range(3)]
    assert len([record for record in caplog.records if "no broker" in record.message]) == 1


def write_bright_video(path: Path) -> Path:
    """One second in which a bright box moves a little."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=10)
        stream.height, stream.width, stream.pix_fmt = 64, 64, "yuvj420p"
        for number in range(10):
            image = np.roll(picture(1), number, axis=1)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def test_objects_of_a_video_keep_their_numbers_and_pictures_have_none(pictures, tmp_path):
    pytest.importorskip("trackforge")

    def numbers(source: Path) -> list[list[int] | None]:
        sink = Kept()
        with watching(source, sinks=[sink], tracker=Tracker(TrackOptions(track=True))) as view:
            wait(lambda: len(sink.found) > 5)
            assert (view.newest().detections.track_ids is None) == (source == pictures)
        ids = [each.detections.track_ids for each in sink.found]
        return [None if each is None else each.tolist() for each in ids]

    assert numbers(write_bright_video(tmp_path / "clip.avi"))[:6] == [[1]] * 6
    assert set(numbers(pictures)) == {None}


def test_a_source_that_is_not_there_is_opened_again_until_it_is(pictures, caplog):
    away = pictures.with_name("away")
    with watching(away) as view:
        state = wait(lambda: (state := view.state())["reopened"] >= 2 and state)
        assert (state["state"], state["number"], state["age_ms"]) == ("waiting", 0, None)
        assert "There is no image or folder" in state["problem"]
        pictures.rename(away)
        assert view.wait_newer(0, 60) is not None
        assert view.state()["state"] == "running"
        away.rename(pictures)
        wait(lambda: view.state()["state"] == "waiting")
        pictures.rename(away)
        number = view.newest().number
        assert view.wait_newer(number, 60) is not None
    said = [record.message for record in caplog.records]
    assert len([each for each in said if "is opened again until it is back" in each]) == 2
    assert len([each for each in said if each.endswith("is back")]) == 2


def test_the_waits_grow_and_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "LONGEST_WAIT", 0.4)
    opened = []
    real = live.open_source

    def note(text):
        opened.append(time.monotonic())
        return real(text)

    monkeypatch.setattr(live, "open_source", note)
    with watching(tmp_path / "nowhere") as view:
        wait(lambda: view.state()["reopened"] >= 5)
    assert (np.diff(opened[:5]) >= [0.1, 0.2, 0.4, 0.4]).all()


def test_pictures_that_cannot_be_read_are_counted(pictures, caplog):
    (pictures / "1.png").write_bytes(b"no picture")
    with watching(pictures) as view:
        wait(lambda: view.state()["skipped"] >= 2)
        names: set[str] = set()
        # A busy machine leaves frames out, so that both may take a while to be seen.
        wait(lambda: names.add(Path(view.newest().name).name) or len(names) > 1)
        assert names == {"0.png", "2.png"}
    assert len([record for record in caplog.records if "left out a picture" in record.message]) == 1


def test_what_can_never_be_opened_here_is_not_tried_again(monkeypatch):
    monkeypatch.setattr(sources.shutil, "which", lambda name: None)
    with watching("nvarguscamerasrc ! nvvidconv") as view:
        state = wait(lambda: (state := view.state())["state"] == "failed" and state)
        assert "gst-launch-1.0 is not installed" in state["problem"]
        assert state["reopened"] == 0


def test_an_engine_that_fails_is_told_and_tried_again(pictures):
    class Failing(BrightBoxRunner):
        def run(self, feeds):
            if len(self.runs) == 2:
                self.runs.append(0)
                raise DataError("the accelerator is away")
            return super().run(feeds)

    with watching(pictures, Detector(Failing(64), SPEC)) as view:
        wait(lambda: view.state()["reopened"] == 1)
        number = view.newest().number
        assert view.wait_newer(number, 60) is not None


def test_a_network_camera_goes_and_comes_back_and_its_password_is_not_told(caplog):
    camera = NetworkCamera([picture(number) for number in range(3)])
    camera.switch_on()
    try:
        with watching(camera.address) as view:
            number = view.wait_newer(2, 60).number
            assert "127.0.0.1" in view.state()["source"]
            camera.switch_off()
            camera.switch_on()
            number = view.newest().number
            assert view.wait_newer(number + 3, 60) is not None
            assert "secret" not in json.dumps(view.state())
    finally:
        with contextlib.suppress(OSError):
            camera.switch_off()
    assert "secret" not in caplog.text


def test_a_camera_that_hangs_is_told_and_holds_up_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "SILENCE", 0.4)
    monkeypatch.setattr(live, "LAST_RUN", 0.5)
    camera = PipeCamera(tmp_path / "camera", write_raw_video(100))
    try:
        view = Live(make_detector(), str(camera.path), LoadOptions())
        view.start()
        view.wait_newer(0, 60)
        state = wait(lambda: (state := view.state())["state"] == "waiting" and state)
        assert "sent nothing" in state["problem"]
        assert "does not let go" in state["problem"]
        view.close()
        assert view.abandoned
        assert view.state()["state"] == "stopped"
    finally:
        camera.close()


def test_closing_does_not_wait_for_an_engine_that_hangs(pictures, monkeypatch):
    monkeypatch.setattr(live, "LAST_RUN", 0.5)

    class Hanging(BrightBoxRunner):
        released = threading.Event()
        held = False

        def run(self, feeds):
            if len(self.runs) > 2:
                self.held = True
                self.released.wait()
            return super().run(feeds)

    view = Live(Detector(Hanging(64), SPEC), str(pictures), LoadOptions())
    view.start()
    try:
        wait(lambda: view._detector._runner.held)
        view.close()
        assert view.abandoned
    finally:
        Hanging.released.set()


def test_a_view_that_was_never_started_can_be_closed(pictures):
    sink = Kept()
    Live(make_detector(), str(pictures), LoadOptions(), [sink]).close()
    assert sink.closed
