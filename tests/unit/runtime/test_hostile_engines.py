"""Engines that somebody else made: each is refused in one sentence, or ended, and none ends the process or hangs it."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest

from edge_effdet.artifacts import load_engine
from edge_effdet.backends import limited
from edge_effdet.backends.base import LoadOptions, Runner, load_runner
from edge_effdet.backends.limited import LimitedRunner
from edge_effdet.errors import EngineError, UsageError
from edge_effdet.runtime.contract import require_contract
from edge_effdet.runtime.detector import Detector
from edge_effdet.runtime.postprocess import detections_from_outputs
from tests.backends import BrightBoxRunner
from tests.hostile import HOSTILE, SPEC, endless_model, make_model, write_engine

BACKENDS = ("onnxruntime", "openvino")
PICTURE = np.full((64, 64, 3), 90, np.uint8)

BOXES = np.array([[[4, 4, 40, 40], [10, 8, 60, 50]]], np.float32)
SCORES = np.array([[0.9, 0.6]], np.float32)
CLASSES = np.array([[0, 5]], np.int32)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_model_that_the_others_are_made_from_is_a_detector(tmp_path: Path, backend: str):
    with Detector.load(write_engine(tmp_path, make_model(), backend)) as detector:
        found = detector(PICTURE)
    np.testing.assert_array_equal(found.boxes, BOXES[0])
    np.testing.assert_array_equal(found.class_ids, CLASSES[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wrong", HOSTILE)
def test_an_engine_that_is_none_is_refused_in_a_sentence(tmp_path: Path, backend: str, wrong: str):
    make, said = HOSTILE[wrong]
    # Where weights are in another file, it is there, and holds what makes the engine right.
    np.array([0.9, 0.6], np.float32).tofile(tmp_path / "scores.bin")
    folder = tmp_path / "engines"
    folder.mkdir()
    np.array([0.9, 0.6], np.float32).tofile(folder / "scores.bin")
    path = write_engine(folder, make(), backend)
    if (wrong, backend) == ("more memory than there is", "openvino"):
        # With one thread it asks for no memory now and then, and what comes out is boxes or none; only golden pictures would tell that it is wrong.
        with contextlib.suppress(EngineError), Detector.load(path) as detector:
            detector(PICTURE)
        return
    with pytest.raises(EngineError, match=said) as refused, Detector.load(path) as detector:
        detector(PICTURE)
    text = str(refused.value)
    assert "\n" not in text and text.endswith(".") and len(text) < 500, text


def test_there_are_enough_of_them():
    assert len(HOSTILE) >= 25 and all(count == 1 for count in Counter(map(str.casefold, HOSTILE)).values())


def test_a_batch_gets_a_row_for_each_picture(tmp_path: Path):
    """One row for two pictures would be an IndexError at the second."""
    model = make_model(taken=(("images", onnx.TensorProto.UINT8, ("batch", 3, 64, 64)),), shapes_known=False)
    with Detector.load(write_engine(tmp_path, model), batch_size=2) as detector:
        assert len(detector([PICTURE])) == 1
        with pytest.raises(EngineError, match="for 2 pictures"):
            detector([PICTURE] * 2)


def test_a_word_in_a_name_is_no_external_data(tmp_path: Path):
    """A class may be called ``location``, the word by which files with external data are found."""
    model = make_model()
    model.metadata_props.add(key="note", value="location")
    model.graph.node[0].name = "location"
    with Detector.load(write_engine(tmp_path, model)) as detector:
        assert len(detector(PICTURE)) == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"boxes": BOXES[0, :, ::-1].copy()}, "before its left or upper one"),
        ({"scores": np.array([1.5, 0.5], np.float32)}, "a score of 1.5"),
        ({"scores": np.array([np.nan, 0.5], np.float32)}, "not finite"),
        ({"boxes": np.full((2, 4), np.inf, np.float32)}, "not finite"),
        ({"class_ids": np.array([-1, 0], np.int32)}, "class -1, and its JSON names none below 0"),
        ({"class_ids": np.array([0, 6], np.int32)}, "class 6, and its JSON names the classes 0 to 5"),
    ],
)
def test_what_one_picture_gave_is_checked(change: dict, said: str):
    rows = {"boxes": BOXES[0], "scores": SCORES[0], "class_ids": CLASSES[0], **change}
    with pytest.raises(EngineError, match=said):
        detections_from_outputs(**rows, original=(64, 64), target=(64, 64), score_threshold=0.3, num_classes=6)


def test_rows_that_an_engine_leaves_empty_are_no_error():
    """TensorRT's plugin fills its rows up with the score -1, and what stands beside it means nothing."""
    found = detections_from_outputs(
        np.array([[4, 4, 40, 40], [9, 9, 1, 1]], np.float32),
        np.array([0.9, -1], np.float32),
        np.array([0, 99], np.int32),
        (64, 64),
        (64, 64),
        num_classes=6,
    )
    assert found.class_ids.tolist() == [0]
    none = np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32)
    assert len(detections_from_outputs(*none, (64, 64), (64, 64), num_classes=6)) == 0


def test_a_runner_of_another_kind_is_no_detector():
    with pytest.raises(EngineError, match="do not belong together"):
        require_contract(BrightBoxRunner(96), SPEC)
    require_contract(BrightBoxRunner(64), SPEC)


class SlowRunner(BrightBoxRunner):
    """Takes as long as ``seconds`` says, or until it is interrupted, where it can be."""

    def __init__(self, seconds: float, can_end: bool) -> None:
        super().__init__(64)
        self.seconds, self.can_end = seconds, can_end
        self.ended = threading.Event()
        self.closed = False

    def run(self, feeds):
        if self.ended.wait(self.seconds) and self.can_end:
            raise EngineError("it was ended.")
        return super().run(feeds)

    def interrupt(self, thread: int) -> None:
        assert any(each.ident == thread for each in threading.enumerate())
        if self.can_end:
            self.ended.set()

    def close(self) -> None:
        self.closed = True


FEEDS = {"images": np.zeros((1, 3, 64, 64), np.uint8)}


def test_a_run_that_takes_too_long_is_ended_and_the_next_one_runs():
    slow = SlowRunner(60, can_end=True)
    runner = LimitedRunner(slow, 0.05)
    with pytest.raises(EngineError, match=r"took more than 0\.05 s and was ended; .*`run_limit`"):
        runner.run(FEEDS)
    assert runner.usable and Detector(runner, SPEC).usable
    slow.seconds = 0
    slow.ended.clear()
    assert runner.run(FEEDS)["scores"].shape == (1, 1)
    runner.close()
    assert slow.closed


def test_a_run_that_cannot_be_ended_is_given_up_and_nothing_runs_after_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(limited, "GRACE", 0.05)
    slow = SlowRunner(60, can_end=False)
    runner = LimitedRunner(slow, 0.05)
    with pytest.raises(EngineError, match="could not be ended, so the engine is not run again"):
        runner.run(FEEDS)
    with pytest.raises(EngineError, match="An earlier run"):
        runner.run(FEEDS)
    assert not runner.usable and not Detector(runner, SPEC).usable
    runner.close()
    assert not slow.closed, "it is still running"
    slow.ended.set()


def test_a_limited_runner_is_what_it_limits(tmp_path: Path):
    path = write_engine(tmp_path, make_model())
    with load_runner(load_engine(path)) as plain, load_runner(load_engine(path), LoadOptions(run_limit=60)) as runner:
        assert isinstance(runner, LimitedRunner) and not isinstance(plain, LimitedRunner)
        assert (runner.inputs, runner.outputs, runner.concurrent) == (plain.inputs, plain.outputs, plain.concurrent)
        for name, value in runner.run(FEEDS).items():
            np.testing.assert_array_equal(value, plain.run(FEEDS)[name])
        with pytest.raises(EngineError, match="failed in a run"):
            runner.run({"images": np.zeros((1, 5), np.uint8)})
    with pytest.raises(UsageError, match="`run_limit` -1"):
        LoadOptions(run_limit=-1)


def test_callers_at_once_get_their_own_results_within_a_limit():
    class Echo(BrightBoxRunner):
        concurrent = True

        def run(self, feeds):
            time.sleep(0.002)
            return {**super().run(feeds), "scores": feeds["images"][:1, 0, :1, 0].astype(np.float32)}

    runner = LimitedRunner(Echo(64), 60)
    wrong: list[int] = []

    def work(number: int) -> None:
        feeds = {"images": np.full((1, 3, 64, 64), number, np.uint8)}
        wrong.extend(number for _ in range(20) if runner.run(feeds)["scores"].item() != number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    runner.close()


def test_an_endless_loop_in_onnxruntime_is_ended_and_the_engine_still_answers(tmp_path: Path):
    """Three times, for each is a run that onnxruntime itself ended."""
    with Detector.load(write_engine(tmp_path, endless_model()), run_limit=0.3) as detector:
        for _ in range(3):
            with pytest.raises(EngineError, match=r"took more than 0\.3 s and was ended"):
                detector(PICTURE)


ENDLESS = """
import sys
from edge_effdet.backends import limited
from edge_effdet.errors import EngineError
from edge_effdet.runtime.detector import Detector
import numpy as np

limited.GRACE = 0.5
detector = Detector.load(sys.argv[1], run_limit=0.5)
for _ in range(2):
    try:
        detector(np.zeros((64, 64, 3), np.uint8))
    except EngineError as error:
        print(error)
detector.close()
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_process_ends_after_an_endless_loop(tmp_path: Path, backend: str):
    """In a process of its own, because OpenVINO does not end a loop: the process has to end all the same."""
    path = write_engine(tmp_path, endless_model(), backend)
    done = subprocess.run(
        [sys.executable, "-c", ENDLESS, str(path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert "took more than 0.5 s" in first
    assert ("was ended" in second) if backend == "onnxruntime" else ("not run again" in second)


def test_an_engine_whose_loading_does_not_end_is_given_up(tmp_path: Path):
    """OpenVINO computes a constant loop when it loads it; onnxruntime leaves it for the run."""
    path = write_engine(tmp_path, endless_model(constant=True), "openvino")
    code = (
        "import sys; from edge_effdet.backends import limited; limited.LOAD_LIMIT = 3.0\n"
        "from edge_effdet.cli import Result, make_parser, run_verb\n"
        "from edge_effdet.runtime.detector import Detector\n"
        "def stage(arguments):\n"
        "    Detector.load(sys.argv[1], run_limit=1)\n"
        "    return Result('loaded')\n"
        "sys.exit(run_verb(make_parser('x', 'x', 'x'), stage, []))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 2, done.stderr
    assert f"error: Loading {path} took more than 3 s and cannot be ended" in done.stderr


def test_a_runner_that_cannot_end_a_run_says_nothing_of_it():
    assert Runner.interrupt(BrightBoxRunner(64), 1) is None
