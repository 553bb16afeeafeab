"""The one path from pixels to boxes, with a runner that finds what is bright: no engine is needed for that."""

from __future__ import annotations

import io
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edge_effdet.artifacts import ModelSpec
from edge_effdet.backends.base import LoadOptions, TensorSpec, load_runner
from edge_effdet.errors import DataError, EngineError, UsageError
from edge_effdet.runtime.detector import DetectOptions, Detector, detect_image
from edge_effdet.runtime.preprocess import feeds_for_image
from tests.backends import BrightBoxRunner

SPEC = ModelSpec("tf_efficientdet_lite0", (64, 64), ("thing",), (1,))


class OneAtATime(BrightBoxRunner):
    """Fails where two threads run it at once."""

    busy = False

    def run(self, feeds):
        assert not self.busy
        self.busy = True
        time.sleep(0.001)
        results = super().run(feeds)
        self.busy = False
        return results


def picture(x: int, size: tuple[int, int] = (100, 200)) -> np.ndarray:
    image = np.zeros((*size, 3), np.uint8)
    image[20:60, x : x + 40] = 255
    return image


def content(image: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, format="PNG")
    return stream.getvalue()


def test_one_picture_is_one_answer_and_a_list_is_a_list(tmp_path: Path):
    detector = Detector(BrightBoxRunner(64), SPEC)
    image = picture(50)
    (tmp_path / "a.png").write_bytes(content(image))
    # The letterbox makes 0.32 pixels of one, so a border is known to about three.
    for one in (image, Image.fromarray(image), content(image), tmp_path / "a.png", str(tmp_path / "a.png")):
        np.testing.assert_allclose(detector(one).boxes, [[50, 20, 90, 60]], atol=4)
    many = detector([image, tmp_path / "a.png", picture(150, (64, 256))])
    assert [len(found) for found in many] == [1, 1, 1]
    assert abs(many[2].boxes[0, 0] - 150) <= 4
    assert len(detector(np.stack([image] * 3))) == 3
    assert detector([]) == []


@pytest.mark.parametrize(
    ("batch", "asked", "runs"), [(-1, None, [1] * 5), (-1, 4, [4, 1]), (2, None, [2, 2, 2]), (1, 1, [1] * 5)]
)
def test_pictures_go_in_batches_that_the_engine_takes(batch, asked, runs):
    runner = BrightBoxRunner(64, batch)
    found = Detector(runner, SPEC, batch_size=asked)([picture(10 * x) for x in range(5)])
    assert runner.runs == runs
    assert [round(each.boxes[0, 0] / 10) for each in found] == [0, 1, 2, 3, 4]


def test_threads_get_their_own_answers_and_a_runner_that_takes_one_run_gets_one():
    detector = Detector(OneAtATime(64), SPEC)
    pictures = [picture(15 * x) for x in range(8)]
    expected = [detector(each).boxes.tolist() for each in pictures]
    wrong: list[int] = []

    def work(number: int) -> None:
        found = [detector(pictures[number]).boxes.tolist() for _ in range(20)]
        wrong.extend(number for boxes in found if boxes != expected[number])

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert wrong == []


def test_the_input_is_used_again_and_never_by_two():
    detector = Detector(BrightBoxRunner(64), SPEC)
    with detector.input_buffer() as first, detector.input_buffer() as second:
        assert first is not second
    with detector.input_buffer() as again:
        assert again is first or again is second


@pytest.mark.parametrize(
    "bad",
    [np.zeros((0, 5, 3), np.uint8), np.zeros((5, 5), np.uint8), np.zeros((5, 5, 3)), Image.new("RGB", (0, 4)), b""],
)
def test_what_is_no_picture_is_named(bad):
    with pytest.raises(DataError):
        Detector(BrightBoxRunner(64), SPEC)(bad)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"score_threshold": 2}, "between 0 and 1"),
        ({"iou_threshold": 0}, "`iou_threshold`"),
        ({"max_detections": 0}, "`max_detections`"),
        ({"reduced_decode": "some"}, "give off, close, fast"),
        ({"nms_kind": "none"}, "the kinds are class-aware"),
    ],
)
def test_an_option_that_makes_no_sense(options, said):
    with pytest.raises(UsageError, match=said):
        Detector(BrightBoxRunner(64), SPEC, DetectOptions(**options))


def test_a_batch_that_the_engine_does_not_take():
    with pytest.raises(UsageError, match="takes 2 images a run and not 3"):
        Detector(BrightBoxRunner(64, 2), SPEC, batch_size=3)
    with pytest.raises(UsageError, match="makes no sense"):
        Detector(BrightBoxRunner(64), SPEC, batch_size=0)


def test_an_engine_that_is_not_what_its_json_says():
    with pytest.raises(EngineError, match="do not belong together"):
        Detector(BrightBoxRunner(96), SPEC)
    raw = BrightBoxRunner(64)
    raw.outputs = (TensorSpec("class_3", (1, 9, 8, 8), np.dtype(np.float32)),)
    with pytest.raises(EngineError, match="no output boxes, class_ids, scores"):
        Detector(raw, SPEC)


def test_a_score_threshold_and_a_limit_are_obeyed():
    assert len(Detector(BrightBoxRunner(64, score=0.2), SPEC)(picture(5))) == 0
    assert len(Detector(BrightBoxRunner(64, score=0.2), SPEC, DetectOptions(0.1))(picture(5))) == 1


def test_a_function_for_one_picture_is_the_same_path():
    image = picture(30)
    assert (
        detect_image(BrightBoxRunner(64, 3), image, SPEC, 0.3).boxes.tolist()
        == Detector(BrightBoxRunner(64), SPEC)(image).boxes.tolist()
    )
    feeds = feeds_for_image(BrightBoxRunner(64, 3), image, SPEC)
    assert feeds["images"].shape == (3, 3, 64, 64)
    assert (feeds["images"][0] == feeds["images"][2]).all()


def test_a_backend_off_the_cpu_has_no_threads_to_choose(monkeypatch):
    from edge_effdet.artifacts import Engine
    from edge_effdet.backends import base
    from edge_effdet.backends.tensorrt import builder as tensorrt

    monkeypatch.setattr(tensorrt, "probe", lambda: base.Available("11", "a GPU that is not here"))
    engine = Engine(Path("x.engine"), SPEC, "tensorrt", "fp16")
    with pytest.raises(UsageError, match="does not compute on the CPU"):
        load_runner(engine, LoadOptions(threads=2))


@pytest.mark.parametrize(("kind", "height"), [("off", 400), ("close", 200), ("fast", 100)])
def test_a_jpeg_is_decoded_as_small_as_the_option_lets_it(tmp_path: Path, kind: str, height: int):
    Image.fromarray(picture(300, (400, 400))).save(tmp_path / "a.jpg")
    detector = Detector(BrightBoxRunner(64), SPEC, DetectOptions(reduced_decode=kind))
    decoded, size = detector.read(tmp_path / "a.jpg")
    assert (decoded.height, size) == (height, (400, 400))
    np.testing.assert_allclose(detector(tmp_path / "a.jpg").boxes, [[300, 20, 340, 60]], atol=10)
