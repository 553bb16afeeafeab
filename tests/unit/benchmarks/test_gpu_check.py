"""The GPU check without a GPU: it ends and says why, and its computations are right."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks import gpu_check, gpu_check_parts
from benchmarks.gpu_check_engines import Way, find_onnxruntime_cuda, probe_flavor_here
from benchmarks.gpu_check_subject import compare_outputs, read_pictures, suppress
from benchmarks.gpu_check_torch import find_gpu
from benchmarks.graph_subjects import Skipped
from edge_effdet.graph import cost

ROOT = Path(__file__).resolve().parents[3]
TASK = {"model": "tf_efficientdet_lite0@128", "batches": [1], "precisions": ["fp32"]}

no_gpu = pytest.mark.skipif(not isinstance(find_gpu(), Skipped), reason="there is a GPU here")


def make_outputs(images=2, count=40, seed=0):
    random = np.random.default_rng(seed)
    corners = random.uniform(0, 400, (images, count, 2))
    boxes = np.concatenate([corners, corners + random.uniform(20, 100, (images, count, 2))], axis=2)
    return {
        "boxes": boxes.astype(np.float32),
        "scores": -np.sort(-random.uniform(0.1, 0.9, (images, count))).astype(np.float32),
        "class_ids": random.integers(0, 3, (images, count)).astype(np.int32),
    }


@no_gpu
@pytest.mark.parametrize("part", list(gpu_check_parts.PARTS))
def test_without_a_gpu_every_part_says_why(tmp_path, part):
    task = gpu_check_parts.Task(**TASK, work=tmp_path, output=tmp_path / "part.json", deadline=time.monotonic() + 60)
    answer = gpu_check_parts.PARTS[part](task)
    assert isinstance(answer, Skipped)
    assert ("pycuda" if part == "cuda" else "GPU") in answer.reason
    assert task.rows == []


@no_gpu
def test_without_a_gpu_it_ends_with_the_reasons_and_exit_code_3(tmp_path, capsys):
    output = tmp_path / "result.json"
    words = ["--parts", "cuda", "training", "--minutes", "5", "--output", str(output), "--work", str(tmp_path / "work")]
    assert gpu_check.main(words) == 3
    parts = json.loads(output.read_text())["parts"]
    assert list(parts) == ["cuda", "training"]
    assert all(found["skipped"] and not found["rows"] for found in parts.values())
    said = capsys.readouterr().err
    assert "training: skipped: " in said
    assert "No part of the GPU check could run here" in said


def test_a_part_is_not_begun_when_the_time_is_up(tmp_path):
    started = time.monotonic()
    results = gpu_check.run_parts(["floor", "training"], TASK, tmp_path, minutes=0.1)
    assert time.monotonic() - started < 5
    assert {part: found["skipped"] for part, found in results.items()} == {
        "floor": gpu_check.LATE,
        "training": gpu_check.LATE,
    }


def test_both_tables_have_the_same_parts_in_the_same_order():
    assert list(gpu_check.PARTS) == list(gpu_check_parts.PARTS)
    assert set(gpu_check_parts.BACKENDS) < set(gpu_check_parts.PARTS)
    assert all(part.seconds > gpu_check.LEAST_SECONDS for part in gpu_check.PARTS.values())


STAND_IN = """
import json, os, subprocess, sys, time
from pathlib import Path

task = json.loads(sys.argv[-1])
output = Path(task["output"])
if task["part"] == "floor":
    output.write_text('{"rows": [{"way": "measured before it died"}]}')
    os.kill(os.getpid(), 9)
if task["part"] == "torch":
    started = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    output.write_text(json.dumps({"rows": [{"way": "measured before it hung", "child": started.pid}]}))
    time.sleep(600)
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """In place of a part, a program that dies in ``floor``, hangs in ``torch`` with a process of its own, and does nothing in the others."""
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)
    started = subprocess.Popen
    monkeypatch.setattr(
        gpu_check.subprocess,
        "Popen",
        lambda words, **options: started([sys.executable, str(script), words[-1]], **options),
    )


def is_alive(pid):
    """Whether a process runs: one that has ended and was not waited for is none."""
    try:
        return "(zombie)" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_what_dies_or_hangs_keeps_its_rows_and_the_others_go_on(tmp_path, monkeypatch, stand_in):
    monkeypatch.setattr(gpu_check, "LEAST_SECONDS", 0)
    monkeypatch.setitem(gpu_check.PARTS, "torch", gpu_check.Part(2, (), ""))
    (tmp_path / "training.json").write_text('{"rows": [{"way": "of an earlier run"}]}')
    kept = []
    results = gpu_check.run_parts(
        ["floor", "torch", "training"], TASK, tmp_path, 5, lambda found: kept.append(json.dumps(found))
    )
    (died,), (hung,) = results["floor"]["rows"], results["torch"]["rows"]
    assert died == {"way": "measured before it died"}
    assert "ended with exit code -9" in results["floor"]["skipped"]
    assert hung["way"] == "measured before it hung"
    assert "stopped when the time was up" in results["torch"]["skipped"]
    assert not is_alive(hung["child"])
    assert results["training"]["rows"] == [] and "skipped" not in results["training"]
    # The row was there while the part still ran.
    assert any("before it hung" in text and "stopped when" not in text for text in kept)


def test_what_was_found_is_in_the_file_when_all_of_it_is_killed(tmp_path):
    script, output = tmp_path / "stand_in.py", tmp_path / "result.json"
    script.write_text(STAND_IN)
    code = (
        "import subprocess, sys\n"
        "from benchmarks import gpu_check\n"
        "started = subprocess.Popen\n"
        f"subprocess.Popen = lambda words, **options: started([sys.executable, {str(script)!r}, words[-1]], **options)\n"
        f"gpu_check.main(['--parts', 'floor', 'torch', '--work', {str(tmp_path)!r}, '--output', {str(output)!r}])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        ends = time.monotonic() + 60
        while time.monotonic() < ends and not (output.is_file() and "before it hung" in output.read_text()):
            time.sleep(0.1)
    finally:
        process.kill()
        process.wait()
    parts = json.loads(output.read_text())["parts"]
    hung = parts["torch"]["rows"][0]
    assert parts["floor"]["rows"] == [{"way": "measured before it died"}]
    # Nothing ends a part whose check was killed by a signal that cannot be caught.
    for pid in (hung["child"], os.getpgid(hung["child"])):
        os.kill(pid, signal.SIGKILL)


def test_each_part_gets_its_seconds_and_no_more_than_is_left(tmp_path, monkeypatch):
    given = {}

    def note(task, seconds, output, note):
        given[task["part"]] = seconds

    monkeypatch.setattr(gpu_check, "_run_process", note)
    gpu_check.run_parts(list(gpu_check.PARTS), TASK, tmp_path, minutes=32)
    assert given == {name: part.seconds for name, part in gpu_check.PARTS.items()}
    gpu_check.run_parts(["compiled"], TASK, tmp_path, minutes=1)
    assert given["compiled"] == pytest.approx(60, abs=1)


def test_the_plan_says_what_each_part_proves_and_what_is_missing_here(capsys):
    assert gpu_check.main(["--plan"]) == 0
    said = capsys.readouterr().out
    for name, part in gpu_check.PARTS.items():
        (line,) = (line for line in said.splitlines() if line.split()[0] == name)
        assert part.proves in line
    monkey = gpu_check.show_plan(["cuda"]).splitlines()[-1]
    assert ("pycuda" in monkey.partition("tests/gpu")[0]) == (not gpu_check._is_here("pycuda"))


def test_pictures_are_photographs_in_the_networks_size():
    from edge_effdet.models.zoo import model_spec

    pictures = read_pictures(model_spec("tf_efficientdet_lite0", image_size=(128, 128)), 3)
    assert pictures.shape == (3, 3, 128, 128)
    assert pictures.dtype == np.uint8
    assert all(picture.std() > 10 for picture in pictures)


def test_a_part_that_fails_says_how(tmp_path):
    task = TASK | {"model": "no_such_model"}
    words = {**task, "part": "torch", "seconds": 60, "work": str(tmp_path), "output": str(tmp_path / "out.json")}
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(gpu_check_parts, "find_gpu", lambda: {"name": "none", "torch": "none"})
        assert gpu_check_parts.main([json.dumps(words)]) == 0
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["rows"] == []
    assert "no_such_model" in written["skipped"]


@pytest.mark.parametrize("words", [["--minutes", "0"], ["--batches", "0"], ["--prepare"]])
def test_options_that_make_no_sense(words):
    assert gpu_check.main(words) == 2


def test_equal_results_agree_in_any_order():
    reference = make_outputs()
    order = np.random.default_rng(1).permutation(40)
    shuffled = {name: values[:, order] for name, values in reference.items()}
    assert compare_outputs(reference, shuffled).matched == 1
    assert compare_outputs(reference, shuffled).score_error == 0
    one = {name: values[:1] for name, values in reference.items()}
    assert compare_outputs(reference, one).matched == 1


@pytest.mark.parametrize(
    ("name", "change"),
    [("class_ids", lambda ids: (ids + 1) % 3), ("boxes", lambda boxes: boxes + 30), ("boxes", lambda boxes: boxes * 0)],
)
def test_other_results_do_not_agree(name, change):
    reference = make_outputs()
    assert compare_outputs(reference, reference | {name: change(reference[name])}).matched < 0.5


def test_scores_that_differ_are_told():
    reference = make_outputs()
    found = compare_outputs(reference, reference | {"scores": reference["scores"] + np.float32(0.01)})
    assert found.matched == 1
    assert found.score_error == pytest.approx(0.01, rel=1e-3)


def test_only_the_best_detections_count():
    reference = make_outputs(images=1)
    found = {name: values[:, :10] for name, values in reference.items()}
    assert compare_outputs(reference, found, compared=10).matched == 1
    assert compare_outputs(reference, found, compared=40).matched == 0.25


def test_suppressed_results_are_compared_with_the_hosts_suppression():
    reference = make_outputs(count=60)
    kept = suppress(reference, (500, 500), kept=50)
    counts = (kept["scores"] > 0).sum(axis=1)
    assert all(20 < count < 60 for count in counts)
    assert kept["boxes"].shape == (2, 50, 4)
    assert all((kept["scores"][image, count:] == -1).all() for image, count in enumerate(counts))
    assert compare_outputs(kept, kept, compared=50).matched == 1
    assert compare_outputs(kept, reference, compared=50).matched == 1
    assert compare_outputs(reference, kept, compared=60).matched < 1


def test_ways_are_timed_end_to_end_and_on_the_device():
    slow = Way(lambda images: time.sleep(0.01) or {}, lambda: 5.0, lambda: None)
    quick = Way(lambda images: {}, lambda: None, lambda: None)
    first, second = gpu_check_parts.measure_ways({"slow": slow, "quick": quick}, np.zeros((2, 3, 4, 4)), rounds=2)
    assert first["way"] == "slow"
    assert first["median_ms"] >= 10 > second["median_ms"]
    assert first["device_ms"] == 5
    assert second["device_ms"] is None
    assert first["images_per_second"] == pytest.approx(2000 / first["median_ms"])
    assert gpu_check_parts.measure_ways({}, np.zeros(1)) == []


@pytest.mark.parametrize(
    ("dense", "keep_us", "dense_us", "right"),
    [(True, 10, 5, True), (False, 10, 5, False), (False, 10, 9.5, True), (True, 5, 10, False)],
)
def test_the_cost_model_is_judged_by_what_its_choice_costs(dense, keep_us, dense_us, right):
    measured = {"keep_us": keep_us, "dense_us": dense_us}
    assert gpu_check_parts.judge_decision({"dense": dense}, measured) == right


def test_a_measured_gpu_serves_the_cost_model():
    floor = {"tf32_tflops": 400.0, "fp16_tflops": 800.0, "int8_tops": 1500.0, "fp32_tflops": 50.0}
    gpu = {"name": "Some GPU", "compute_capability": [9, 0], "multiprocessors": 132}
    target = gpu_check_parts.measured_target(gpu, floor | {"memory_gbs": 3000.0, "empty_kernel_us": 1.5})
    pair = cost.SeparablePair("p", 64, 64, (3, 3), (1, 1), 64, 64)
    times = [function(pair, target, "fp16") for function in (cost.depthwise_us, cost.pointwise_us, cost.dense_us)]
    assert all(1.5 < value < 100 for value in times)


def test_the_table_shows_what_was_timed_found_and_skipped():
    timed = {
        "way": "tensorrt", "precision": "fp16", "batch": 8, "median_ms": 1.25, "p90_ms": 1.5, "device_ms": None,
        "images_per_second": 6400.0, "matched": 0.5, "score_error": 1e-3, "agrees": False,
    }  # fmt: skip
    text = gpu_check.show_results(
        {
            "tensorrt": {"rows": [timed, {"way": "torch eager", "skipped": "no INT8"}]},
            "floor": {"rows": [{"memory_gbs": 3000.123}]},
            "cuda": {"rows": [], "skipped": "no PyCUDA"},
        }
    )
    assert "1.250 ms" in text
    assert "50.0% (too few)" in text
    assert "floor: memory_gbs 3000" in text
    assert "tensorrt: way torch eager, skipped no INT8" in text
    assert "cuda: skipped: no PyCUDA" in text


def test_a_build_of_onnxruntime_without_cuda_is_not_timed():
    answer = find_onnxruntime_cuda()
    assert isinstance(answer, Skipped)
    assert "ort-cuda" in answer.reason


def test_rtx_is_tried_on_a_gpu_that_its_matrix_lacks(monkeypatch):
    from edge_effdet.backends.tensorrt import cuda

    pytest.importorskip("tensorrt_rtx")
    monkeypatch.setattr(cuda, "probe_gpu", lambda: cuda.Gpu("NVIDIA H100", (9, 0)))
    found = probe_flavor_here("tensorrt-rtx")
    assert not isinstance(found, Skipped)
    flavor, said = found
    assert not said["runs_here"]
    assert flavor.default_target == ""
    assert isinstance(probe_flavor_here("tensorrt"), Skipped)


def test_the_wrapper_is_a_valid_script():
    path = ROOT / "benchmarks" / "gpu_check.sh"
    assert subprocess.run(["sh", "-n", str(path)], env=os.environ, check=False).returncode == 0
