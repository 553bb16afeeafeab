"""The figures of the runner's own processes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.runner_process import describe_processes, measure_cold_start, resident_mb
from edge_effdet.errors import EdgeEffDetError


def test_a_start_that_fails_is_an_error(tmp_path: Path):
    with pytest.raises(EdgeEffDetError, match=r"nowhere\.onnx ended with"):
        measure_cold_start(tmp_path / "nowhere.onnx", tmp_path / "nowhere.jpg", 1)


def test_resident_memory_is_that_of_this_process():
    before = resident_mb()
    held = np.ones(5_000_000)
    assert resident_mb() - before > 30
    assert len(held)


def test_the_table_holds_what_was_measured():
    start = {"median_seconds": 0.7, "slowest_seconds": 0.9, "first_seconds": 2.1, "peak_mb": 133.0}
    growth = {"images": 20000, "warm_up_images": 500, "after_warm_up_mb": 100.0, "at_the_end_mb": 101.5}
    growth |= {"growth_mb": 1.5, "largest_growth_mb": 1.75}
    model = {"model": "d0", "image_size": [512, 512], "process": {"onnxruntime": start}}
    result = {"models": [{**model, "growth": growth}], "install": {"total_mb": 101.7}}
    text = describe_processes(result)
    for said in ("d0", "0.70 s", "2.10 s", "133 MB", "101.7 MB"):
        assert said in text
    assert "20000 images after 500: memory from 100.0 to 101.5 MB, +1.5 (at most +1.8)" in text
    result = {"models": [model], "install": {"skipped": "no network"}}
    assert "not measured: no network" in describe_processes(result) and "images after" not in describe_processes(result)
