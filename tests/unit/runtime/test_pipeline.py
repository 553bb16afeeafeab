"""Order, failures, batches, live sources and the end of a pipeline, with a runner that finds what is bright."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edge_effdet.artifacts import ModelSpec
from edge_effdet.backends.base import LoadOptions
from edge_effdet.errors import DataError, EngineError, UsageError
from edge_effdet.runtime import pipeline
from edge_effdet.runtime.detector import DetectOptions, Detector
from edge_effdet.runtime.pipeline import Pipeline, PipelineOptions, Progress, loading_for
from edge_effdet.runtime.sources import Camera, Frame, ImageFiles
from tests.backends import BrightBoxRunner

SPEC = ModelSpec("tf_efficientdet_lite0", (64, 64), ("thing",), (1,))


class Pictures:
    """A source of pictures in memory; ``error`` ends it."""

    name, live, rate = "pictures", False, None

    def __init__(self, images, error=None):
        self.images, self.error, self.total = images, error, len(images)
        self.given = 0

    def __iter__(self):
        for number, image in enumerate(self.images):
            self.given += 1
            yield Frame(f"#{number}", image, None, time.perf_counter())
        if self.error:
            raise self.error

    def stop(self):
        pass


class SlowAtFirst(BrightBoxRunner):
    """Every third run takes longer, so that the runs of several threads overtake each other."""

    concurrent = True

    def run(self, feeds):
        results = super().run(feeds)
        time.sleep(0.01 if len(self.runs) % 3 == 1 else 0)
        return results


def picture(number: int) -> np.ndarray:
    image = np.zeros((64, 640, 3), np.uint8)
    image[:, 10 * number : 10 * number + 30] = 255
    return image


def places(found) -> list[int]:
    """Which ``picture`` each was."""
    return [round(each.detections.boxes[0, 0] / 10) for each in found]


def threads_of_pipelines() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("edge-effdet")]


@pytest.mark.parametrize("runs", [1, 3])
@pytest.mark.parametrize(("batch", "asked"), [(-1, None), (-1, 4), (2, None)])
def test_all_are_found_in_order(runs, batch, asked):
    runner = SlowAtFirst(64, batch)
    detector = Detector(runner, SPEC, batch_size=asked)
    running = Pipeline(detector, Pictures([picture(number) for number in range(50)]), PipelineOptions(runs, decoders=3))
    found = list(running)
    assert places(found) == list(range(50))
    assert [each.frame.name for each in found] == [f"#{number}" for number in range(50)]
    assert (running.progress.done, running.progress.failed) == (50, 0)
    assert threads_of_pipelines() == []
    if asked:
        assert max(runner.runs) > 1


def test_the_results_are_those_of_the_detector():
    detector = Detector(BrightBoxRunner(64), SPEC)
    images = [picture(number) for number in range(9)]
    for one, each in zip(detector(images), Pipeline(detector, Pictures(images)), strict=True):
        np.testing.assert_array_equal(one.boxes, each.detections.boxes)


def test_what_cannot_be_decoded_is_said_in_its_place(tmp_path: Path):
    for number in range(6):
        Image.fromarray(picture(number)).save(tmp_path / f"{number}.png")
    (tmp_path / "2.png").write_bytes(b"")
    (tmp_path / "4.png").write_bytes((tmp_path / "4.png").read_bytes()[:60])
    paths = sorted(tmp_path.iterdir())
    running = Pipeline(Detector(BrightBoxRunner(64), SPEC), ImageFiles(paths, "x"), keep_images=True)
    found = list(running)
    assert [each.detections is None for each in found] == [False, False, True, False, True, False]
    assert "2.png is empty" in found[2].problem
    assert "4.png cannot be decoded" in found[4].problem
    assert (running.progress.done, running.progress.failed) == (4, 2)
    np.testing.assert_array_equal(found[5].image, picture(5))
    assert found[2].image is None


def test_images_are_kept_only_where_they_are_asked_for():
    detector = Detector(BrightBoxRunner(64), SPEC)
    assert all(each.image is None for each in Pipeline(detector, Pictures([picture(0)])))


def test_a_picture_that_is_kept_has_the_size_that_its_boxes_are_in(tmp_path: Path):
    Image.fromarray(picture(20)).save(tmp_path / "wide.jpg")
    detector = Detector(BrightBoxRunner(64), SPEC, DetectOptions(reduced_decode="fast"))
    (found,) = Pipeline(detector, ImageFiles([tmp_path / "wide.jpg"], "x"), keep_images=True)
    assert found.image.shape == (64, 640, 3)
    # Decoded at an eighth, and the letterbox is a tenth.
    np.testing.assert_allclose(found.detections.boxes, [[200, 0, 230, 64]], atol=12)


def test_no_more_is_read_than_there_is_room_for():
    source = Pictures([picture(0)] * 400)
    frames = iter(Pipeline(Detector(BrightBoxRunner(64), SPEC), source, PipelineOptions(1, 2)))
    next(frames)
    time.sleep(0.2)
    # One run and two decoders, twice, and the one that was taken.
    assert source.given <= 2 * 3 + 1
    frames.close()
    assert threads_of_pipelines() == []


def test_a_source_that_breaks_gives_what_came_before():
    running = Pipeline(
        Detector(SlowAtFirst(64), SPEC), Pictures([picture(number) for number in range(7)], DataError("it broke"))
    )
    found = []
    with pytest.raises(DataError, match="it broke"):
        found.extend(running)
    assert places(found) == list(range(7))
    assert threads_of_pipelines() == []


def test_an_engine_that_fails_ends_it():
    class Broken(BrightBoxRunner):
        def run(self, feeds):
            if len(self.runs) == 3:
                raise EngineError("it failed")
            return super().run(feeds)

    with pytest.raises(EngineError, match="it failed"):
        list(Pipeline(Detector(Broken(64), SPEC), Pictures([picture(0)] * 50)))
    assert threads_of_pipelines() == []


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, ValueError])
def test_an_interruption_ends_all_threads(interrupt):
    with (
        pytest.raises(interrupt),
        Pipeline(Detector(BrightBoxRunner(64), SPEC), Pictures([picture(0)] * 400), PipelineOptions(2)) as running,
    ):
        for number, _ in enumerate(running):
            if number == 5:
                raise interrupt
    assert threads_of_pipelines() == []


def test_a_pipeline_is_used_once():
    running = Pipeline(Detector(BrightBoxRunner(64), SPEC), Pictures([]))
    assert list(running) == []
    with pytest.raises(RuntimeError, match="make another"):
        list(running)


def test_a_batch_waits_no_longer_than_it_may():
    """Two pictures come, and the third only when their answer is there: without a limit both would wait for ever."""
    answered = threading.Event()

    class Halting(Pictures):
        def __iter__(self):
            for number, frame in enumerate(super().__iter__()):
                assert number < 2 or answered.wait(30)
                yield frame

    runner = BrightBoxRunner(64)
    source = Halting([picture(number) for number in range(3)])
    found = []
    for each in Pipeline(Detector(runner, SPEC, batch_size=8), source, PipelineOptions(batch_wait_ms=5)):
        found.append(each)
        if len(found) == 2:
            answered.set()
    assert places(found) == [0, 1, 2]


def test_a_camera_loses_its_old_frames_and_never_its_order():
    class Slow(BrightBoxRunner):
        def run(self, feeds):
            time.sleep(0.02)
            return super().run(feeds)

    def images():
        for number in range(60):
            yield picture(number)
            time.sleep(0.002)
        raise OSError("gone")

    running = Pipeline(Detector(Slow(64), SPEC), Camera("camera", images, attempts=0))
    found = []
    with pytest.raises(DataError, match="went away"):
        found.extend(running)
    numbers = places(found)
    assert numbers == sorted(set(numbers))
    assert len(numbers) < 60
    assert running.progress.dropped == 60 - len(numbers)
    # The last frame is the newest when the camera ends.
    assert numbers[-1] == 59


def test_a_silent_camera_does_not_hold_the_end():
    silent = threading.Event()

    def images():
        yield picture(0)
        silent.wait(60)

    running = Pipeline(Detector(BrightBoxRunner(64), SPEC), Camera("camera", images, attempts=0))
    with running:
        frames = iter(running)
        assert next(frames).detections is not None
        started = time.perf_counter()
    assert time.perf_counter() - started < 30
    silent.set()


@pytest.mark.parametrize(
    ("cores", "threads", "runs"), [(1, 1, 1), (2, 1, 2), (4, 1, 4), (5, 2, 3), (6, 2, 3), (8, 2, 4), (16, 4, 4)]
)
def test_runs_and_threads_for_many_pictures(cores, threads, runs, monkeypatch):
    monkeypatch.setattr(pipeline, "usable_cores", lambda: cores)
    many = Pictures([picture(0)] * 9)
    assert loading_for("onnxruntime", many, PipelineOptions()) == LoadOptions(threads, runs, spinning=False)
    assert threads * runs >= cores
    assert loading_for("onnxruntime", many, PipelineOptions(), threads=cores) == LoadOptions(cores, 1, spinning=False)


def test_a_camera_and_a_single_picture_get_all_threads_and_what_is_asked_for_is_done():
    one, camera = Pictures([picture(0)]), Camera("camera", lambda: iter([]))
    assert loading_for("onnxruntime", one, PipelineOptions()) == LoadOptions(0, 1, spinning=True)
    assert loading_for("onnxruntime", camera, PipelineOptions()) == LoadOptions(0, 1, spinning=False)
    many = Pictures([picture(0)] * 9)
    assert loading_for("onnxruntime", many, PipelineOptions(runs=7), threads=3) == LoadOptions(3, 7, spinning=False)
    assert loading_for("tensorrt", many, PipelineOptions()).parallel_runs == 1


@pytest.mark.parametrize("options", [{"runs": -1}, {"decoders": -1}, {"batch_wait_ms": -1.0}])
def test_options_that_make_no_sense(options):
    with pytest.raises(UsageError, match="give 0 or more"):
        PipelineOptions(**options)


def test_progress_in_words():
    progress = Progress()
    assert progress.text() == "0 images  0.0/s  0 ms"
    for _ in range(3):
        progress.add(0.5)
    progress.failed, progress.dropped = 1, 7
    assert progress.text().startswith("3 images  ")
    assert progress.text().endswith("500 ms  1 failed  7 dropped")
    assert progress.rate() > 0


class Stalled(Pictures):
    """Gives three pictures, and then nothing until it is let go; ``stop`` does not wake it, as nothing wakes a read from a network."""

    def __init__(self):
        super().__init__([picture(number) for number in range(3)])
        self.let_go = threading.Event()

    def __iter__(self):
        yield from super().__iter__()
        self.let_go.wait()


def test_a_source_that_hangs_does_not_hold_the_end(monkeypatch):
    monkeypatch.setattr(pipeline, "LONGEST_WAIT", 0.2)
    source = Stalled()
    running = Pipeline(Detector(BrightBoxRunner(64), SPEC), source, PipelineOptions(2, decoders=2))
    frames = iter(running)
    assert places([next(frames) for _ in range(3)]) == [0, 1, 2]
    started = time.perf_counter()
    frames.close()
    running.close()
    assert time.perf_counter() - started < 5
    # The stages after it have ended, and it does when it is let go.
    assert {name.rstrip("0123456789-") for name in threads_of_pipelines()} == {"edge-effdet-decode"}
    source.let_go.set()
    until = time.perf_counter() + 10
    while threads_of_pipelines() and time.perf_counter() < until:
        time.sleep(0.01)
    assert threads_of_pipelines() == []
