"""The benchmark of the runner: its photo, its stages, the figures of its processes, and its tables."""

from __future__ import annotations

import io
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.runner import make_photo, split_time
from benchmarks.runner_process import measure_cold_start, resident_mb
from benchmarks.runner_tables import describe_runner
from edge_effdet.artifacts import ModelSpec
from edge_effdet.errors import EdgeEffDetError
from edge_effdet.runtime.detector import Detector
from tests.backends import BrightBoxRunner

SPEC = ModelSpec("tf_efficientdet_lite0", (64, 64), ("thing",), (1,))


def test_the_photo_is_a_jpeg_and_the_same_each_time():
    photo = make_photo()
    assert photo == make_photo()
    picture = Image.open(io.BytesIO(photo))
    assert (picture.format, picture.size) == ("JPEG", (640, 480))
    # A camera's photo of this size has tens of kilobytes; a drawing would be decoded too fast.
    assert len(photo) > 40_000


def test_the_share_outside_is_what_the_network_leaves():
    class Slow(BrightBoxRunner):
        def run(self, feeds):
            time.sleep(0.01)
            return super().run(feeds)

    stages = split_time(Detector(Slow(64), SPEC), make_photo(), 1)
    assert stages["network"] >= 10
    outside = stages["decode"] + stages["letterbox"] + stages["suppress"]
    assert stages["outside_ms"] == pytest.approx(outside, rel=0.5)
    assert 0 < stages["outside_share"] < 1
    assert stages["total"] > stages["network"]


def test_a_start_that_fails_is_an_error(tmp_path: Path):
    with pytest.raises(EdgeEffDetError, match=r"nowhere\.onnx ended with"):
        measure_cold_start(tmp_path / "nowhere.onnx", tmp_path / "nowhere.jpg", 1)


def test_resident_memory_is_that_of_this_process():
    before = resident_mb()
    held = np.ones(5_000_000)
    assert resident_mb() - before > 30
    assert len(held)


def test_the_tables_hold_what_was_measured():
    way = {"median_ms": 12.5, "p90_ms": 14.0, "agreeing_with_effdet": "9 of 10"}
    stages = dict.fromkeys(
        ("decode", "letterbox", "network", "suppress", "total", "outside_ms", "plain_decode", "plain_resize"), 1.0
    )
    result = {
        "threads": 2,
        "photo": {"height": 480, "width": 640, "bytes": 9},
        "models": [
            {
                "model": "d0",
                "image_size": [512, 512],
                "latency": {
                    "rows": [{"way": "ours", **way}, {"way": "theirs", **way}],
                    "skipped": {"a third": "it is not installed"},
                    "ours": "ours",
                    "ours_reduced": "ours, FP16",
                    "times_as_fast": {"theirs": 5.25},
                    "times_as_fast_reduced": {"ours": 1.5, "theirs": 7.75},
                    "not_the_network": {"onnxruntime": {**stages, "outside_share": 0.098}},
                },
                "folder": {
                    "onnxruntime": {
                        "images_per_second": {"plain loop": 10.0, "pipeline": 12.0},
                        "pipeline_over_loop": 1.2,
                        "runs_at_once": 2,
                        "threads_a_run": 1,
                    }
                },
                "process": {
                    "onnxruntime": {
                        "median_seconds": 0.7,
                        "slowest_seconds": 0.9,
                        "first_seconds": 2.1,
                        "peak_mb": 133.0,
                    }
                },
                "growth": {
                    "images": 20000,
                    "warm_up_images": 500,
                    "after_warm_up_mb": 100.0,
                    "at_the_end_mb": 101.5,
                    "growth_mb": 1.5,
                    "largest_growth_mb": 1.75,
                },
            }
        ],
        "install": {"total_mb": 101.7, "parts_mb": {"numpy": 42.7}},
    }
    text = describe_runner(result)
    for said in (
        "5.25",
        "7.75",
        "9 of 10",
        "a third was left out: it is not installed",
        "9.8 %",
        "1.20",
        "2 of 1 threads",
        "133 MB",
    ):
        assert said in text
    assert "20000 images after 500: memory from 100.0 to 101.5 MB, +1.5 (at most +1.8)" in text
    assert "101.7 MB (numpy 42.7)" in text
    result["install"] = {"skipped": "no network"}
    assert "not measured: no network" in describe_runner(result)
