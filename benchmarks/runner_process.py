"""Measure the runner's cold start, its memory and the growth of it, and the size of what a device installs.

python -m benchmarks.runner_process ENGINE PHOTO IMAGES WARM_UP_IMAGES

Each is measured in a process of its own, which imports what a device imports.
"""

from __future__ import annotations

import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.processes import ROOT
from edge_effdet.artifacts import Detections, load_engine
from edge_effdet.backends.runtime_cache import SUFFIX
from edge_effdet.errors import EdgeEffDetError
from edge_effdet.runtime.detector import Detector
from edge_effdet.runtime.pipeline import Pipeline, PipelineOptions, loading_for
from edge_effdet.runtime.sources import ImageFiles

WARM_UP_IMAGES = 500
WATCHED_EVERY = 250

# The memory is read from the kernel's count for the process: getrusage gives the parent's peak where that was higher.
_FIRST_BOXES = """
import sys
from edge_effdet import Detector
detector = Detector.load(sys.argv[1])
found = detector(sys.argv[2])
print(len(found), flush=True)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(peak.split()[1], sorted(set(sys.modules) & {"torch", "onnx", "effdet"}))
"""


def measure_cold_start(engine: Path, photo: Path, starts: int) -> dict[str, Any]:
    """Measure the seconds from starting Python to the first boxes of a photo, and the peak of resident memory in megabytes.

    The first start reads the files from the disk and compiles what a runtime keeps for later starts, so it is given apart.

    Raises:
        EdgeEffDetError: a process failed, or imported something of the host side.
    """
    engine.with_name(engine.name + SUFFIX).unlink(missing_ok=True)
    seconds, memory = [], []
    for _ in range(starts + 1):
        started = time.perf_counter()
        command = [sys.executable, "-c", _FIRST_BOXES, str(engine), str(photo)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            first = process.stdout.readline()
            seconds.append(time.perf_counter() - started)
            rest = process.stdout.read()
        if process.returncode or not first.strip() or not rest.strip().endswith("[]"):
            raise EdgeEffDetError(
                f"A start of {engine.name} ended with {process.returncode} and {rest.strip() or 'nothing'}."
            )
        memory.append(int(rest.split()[0]) * 1024 / 1e6)
    counted = sorted(seconds[1:])
    return {
        "seconds": [round(value, 3) for value in seconds[1:]],
        "median_seconds": statistics.median(counted),
        "slowest_seconds": counted[-1],
        "first_seconds": seconds[0],
        "peak_mb": max(memory),
    }


def measure_growth(engine: Path, photo: Path, images: int, warm_up: int = WARM_UP_IMAGES) -> dict[str, Any]:
    """Measure resident megabytes after a warm-up and after ``images`` more pictures, in one process through the pipeline.

    Raises:
        EdgeEffDetError: the process failed.
    """
    words = (engine, photo, images, warm_up)
    command = [sys.executable, "-m", "benchmarks.runner_process", *map(str, words)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise EdgeEffDetError(f"{' '.join(command)} ended with {done.returncode}; its own message stands above.")
    return json.loads(done.stdout)


def run_and_watch(engine: Path, photo: Path, images: int, warm_up: int) -> dict[str, Any]:
    """Put one photo through a pipeline of this process many times and watch the memory. Every time the boxes must be the same.

    Raises:
        EdgeEffDetError: a picture has other boxes than the first.
    """
    loaded = load_engine(engine)
    source = ImageFiles([photo] * (warm_up + images), "photos")
    loading = loading_for(loaded.backend, source, PipelineOptions())
    watched: list[float] = []
    expected: Detections | None = None
    with Detector.load(loaded, loading=loading) as detector:
        for number, found in enumerate(Pipeline(detector, source, loading=loading)):
            assert found.detections is not None, found.problem
            expected = expected or found.detections
            if found.detections.boxes.tobytes() != expected.boxes.tobytes():
                raise EdgeEffDetError(
                    f"Picture {number} has other boxes than the first one, though it is the same photo."
                )
            if number >= warm_up and (number - warm_up) % WATCHED_EVERY == 0:
                gc.collect()
                watched.append(resident_mb())
        gc.collect()
        watched.append(resident_mb())
    return {
        "images": images,
        "warm_up_images": warm_up,
        "after_warm_up_mb": watched[0],
        "at_the_end_mb": watched[-1],
        "growth_mb": watched[-1] - watched[0],
        "largest_growth_mb": max(watched) - watched[0],
    }


def resident_mb() -> float:
    """The resident memory of this process in megabytes, by the kernel's count."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def measure_install() -> dict[str, Any]:
    """Megabytes of the package and of what it needs without a backend, as pip installs them, or why pip could not."""
    with tempfile.TemporaryDirectory(prefix="edge-effdet-") as folder:
        target = Path(folder) / "site"
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(target), str(ROOT)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            return {"skipped": done.stderr.strip().splitlines()[-1]}
        sizes = {
            entry.name: sum(file.stat().st_size for file in entry.rglob("*") if file.is_file()) / 1e6
            for entry in target.iterdir()
            if entry.is_dir()
        }
    return {
        "total_mb": sum(sizes.values()),
        "parts_mb": {
            name: round(size, 1) for name, size in sorted(sizes.items(), key=lambda item: -item[1]) if size > 0.1
        },
    }


if __name__ == "__main__":
    engine_path, photo_path, counted, before = sys.argv[1:]
    print(json.dumps(run_and_watch(Path(engine_path), Path(photo_path), int(counted), int(before))))
