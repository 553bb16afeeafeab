"""Measure the runner's cold start, its memory and the growth of it, and the size of what a device installs.

python -m benchmarks.runner_process

Each is measured in a process of its own, which imports what a device imports.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.latency import positive
from benchmarks.machine import save_result
from benchmarks.parser import make_parser
from benchmarks.processes import ROOT, run_module
from edge_effdet.artifacts import Detections, load_engine
from edge_effdet.backends.runtime_cache import SUFFIX
from edge_effdet.cli import Result, run_verb, table
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
    return run_module("benchmarks.runner_process", ["--watch", engine, photo, images, warm_up])


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


def _run(arguments: argparse.Namespace) -> Result:
    if arguments.watch:
        engine, photo, images, warm_up = arguments.watch
        return Result("", run_and_watch(Path(engine), Path(photo), int(images), int(warm_up)))
    from benchmarks.graph_subjects import read_subject
    from benchmarks.run import make_engines, make_photo

    models: list[dict[str, Any]] = []
    for text in arguments.models:
        subject, starts = read_subject(text), {}
        models.append({"model": subject.spec.name, "image_size": list(subject.spec.image_size), "process": starts})
        with tempfile.TemporaryDirectory(prefix="edge-effdet-") as folder:
            photo = Path(folder) / "photo.jpg"
            photo.write_bytes(make_photo())
            for way, make in make_engines(subject, Path(folder)):
                engine = make().path
                starts[way.removeprefix("ours, ")] = measure_cold_start(engine, photo, arguments.starts)
                # What would grow is the memory of Python and of the runtime, so one engine shows it.
                if arguments.growth_images and len(models) == len(starts) == 1:
                    models[0]["growth"] = measure_growth(engine, photo, arguments.growth_images)
    result = {"models": models, "install": measure_install()}
    path = save_result("runner-process", result, arguments.name)
    return Result(f"{describe_processes(result)}\n\n{path}", result)


def describe_processes(result: Mapping[str, Any]) -> str:
    """A table of the cold starts, and a sentence each on the growth of memory and on the install."""
    shown = [("model", "backend", "to first boxes", "slowest", "the very first", "peak memory")]
    shown += [
        (
            each["model"],
            backend,
            *(f"{start[f'{name}_seconds']:.2f} s" for name in ("median", "slowest", "first")),
            f"{start['peak_mb']:.0f} MB",
        )
        for each in result["models"]
        for backend, start in each["process"].items()
    ]
    lines = [table(shown)]
    lines += [
        "{images} images after {warm_up_images}: memory from {after_warm_up_mb:.1f} to {at_the_end_mb:.1f} MB, "
        "{growth_mb:+.1f} (at most {largest_growth_mb:+.1f})".format(**each["growth"])
        for each in result["models"]
        if "growth" in each
    ]
    install = result["install"]
    if "skipped" in install:
        lines.append(f"The device install was not measured: {install['skipped']}")
    else:
        lines.append(f"The device install without a backend: {install['total_mb']:.1f} MB")
    return "\n\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        "runner_process",
        "Measure cold starts, memory and the install.",
        "--growth-images 0",
        models=("tf_efficientdet_lite0@320", "tf_efficientdet_d0@512"),
        name="runner-process",
    )
    parser.add_argument("--starts", type=positive, default=7, metavar="N", help="starts of each engine (default: 7)")
    parser.add_argument(
        "--growth-images",
        type=int,
        default=20_000,
        metavar="N",
        help="images through one process, 0 for none (default: 20000)",
    )
    parser.add_argument("--watch", nargs=4, help=argparse.SUPPRESS)
    return run_verb(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
