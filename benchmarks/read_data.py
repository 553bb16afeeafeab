"""Time reading and checking data sets in each format, and compare with an older commit.

python -m benchmarks.read_data --against ../older
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.latency import positive
from benchmarks.machine import save_result
from benchmarks.processes import ROOT
from edge_effdet.cli import Result, make_parser, progress, run_verb, table
from edge_effdet.data.base import Dataset, make_sample
from edge_effdet.data.convert import FORMATS, convert_dataset
from edge_effdet.errors import EdgeEffDetError

HEIGHT, WIDTH = 240, 320
BOXES = 5
CLASSES = ("disc", "bar", "ring")
DRAWN = 32
"""Number of pictures that are drawn. All others are copies of them, each with a tail of its own, which no decoder reads."""

_MEASURE = """
import contextlib, io, json, pathlib, sys, time
import edge_effdet
assert pathlib.Path(edge_effdet.__file__).is_relative_to(pathlib.Path.cwd()), edge_effdet.__file__
what, path = sys.argv[1:]
if what == "read":
    from edge_effdet.data.registry import read_dataset
    started = time.perf_counter()
    images = len(read_dataset(path, quiet=True).all_samples())
    seconds = time.perf_counter() - started
else:
    from edge_effdet.data.__main__ import main
    with contextlib.redirect_stdout(io.StringIO()) as said:
        assert main(["check", path, "--json"]) == 0
    images, seconds = json.loads(said.getvalue())["images"], None
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps({"images": images, "seconds": seconds, "peak_mb": int(peak.split()[1]) / 1024}))
"""
"""What a process of either commit runs. The peak is read from its status, since ``getrusage`` starts from the parent's."""


def make_sets(folder: Path, images: int, seed: int = 0) -> dict[str, Path]:
    """Write one data set in each format.

    Args:
        folder: where to; the pictures of all formats are hard links to one file.
        images: number of pictures, of which a fifth is in ``val``.
        seed: seed of pictures and boxes.

    Returns:
        The folder of each data set, by the name of its format.
    """
    rng = np.random.default_rng(seed)
    drawn = [_draw_picture(rng) for _ in range(DRAWN)]
    samples = []
    for number in range(images):
        path = folder / "pictures" / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        # Files of all lengths, as cameras write them: equal lengths would make the check compare the content.
        path.write_bytes(drawn[number % DRAWN] + number.to_bytes(4, "little") * (1 + number % 997))
        corners = rng.uniform(0, 0.7, (BOXES, 2)) * (WIDTH, HEIGHT)
        boxes = np.hstack([corners, corners + rng.uniform(0.05, 0.3, (BOXES, 2)) * (WIDTH, HEIGHT)]).round(1)
        rows = [(box, int(rng.integers(len(CLASSES))), False) for box in boxes.tolist()]
        samples.append(make_sample(path.stem, path, HEIGHT, WIDTH, rows, "generated"))
    held_out = max(1, images // 5)
    splits = {"train": tuple(samples[held_out:]), "val": tuple(samples[:held_out])}
    dataset = Dataset(folder / "pictures", "csv", CLASSES, tuple(range(1, len(CLASSES) + 1)), splits)
    for kind in FORMATS:
        convert_dataset(dataset, kind, folder / kind, link=True)
    _write_csv(dataset, folder / "csv")
    return {kind: folder / kind for kind in (*FORMATS, "csv")}


def _draw_picture(rng: np.random.Generator) -> bytes:
    pixels = rng.integers(0, 256, (HEIGHT // 8, WIDTH // 8, 3), np.uint8)
    content = io.BytesIO()
    Image.fromarray(pixels).resize((WIDTH, HEIGHT)).save(content, format="JPEG")
    return content.getvalue()


def _write_csv(dataset: Dataset, folder: Path) -> None:
    for split, samples in dataset.splits.items():
        (folder / split).mkdir(parents=True)
        with open(folder / f"{split}.csv", "w", newline="", encoding="utf-8") as stream:
            rows = csv.writer(stream)
            rows.writerow(("image_id", "x_min", "y_min", "x_max", "y_max", "label"))
            for sample in samples:
                os.link(sample.path, folder / split / sample.path.name)
                rows.writerows(
                    (sample.path.name, *(f"{value:.1f}" for value in box), CLASSES[class_id])
                    for box, class_id in zip(sample.boxes.tolist(), sample.class_ids.tolist(), strict=True)
                )


def measure(root: Path, what: str, data: Path) -> dict[str, Any]:
    """Read or check a data set in a process of the package in ``root``.

    Returns:
        The number of images, the peak of resident memory in MB, and the seconds: of reading alone, or of the whole command ``data check``.

    Raises:
        EdgeEffDetError: the process failed.
    """
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, what, data], cwd=root, stdout=subprocess.PIPE, text=True, check=False
    )
    seconds = time.perf_counter() - started
    if done.returncode:
        raise EdgeEffDetError(f"{what} of {data} failed in {root}; its own message stands above.")
    found = json.loads(done.stdout)
    return {**found, "seconds": seconds if found["seconds"] is None else found["seconds"]}


def compare(sets: dict[str, Path], roots: dict[str, Path], rounds: int) -> list[dict[str, Any]]:
    """Time each way in turns. One row a format, stage and way; ``over_before`` is the median by that of the way ``before``."""
    jobs = [(kind, what, way) for kind in sets for what in ("read", "check") for way in roots]
    found: dict[tuple[str, str, str], list[dict[str, Any]]] = {job: [] for job in jobs}
    for kind, what, way in progress(jobs * rounds, len(jobs) * rounds, "timing"):
        found[kind, what, way].append(measure(roots[way], what, sets[kind]))
    medians = {job: median(each["seconds"] for each in runs) for job, runs in found.items()}
    return [
        {
            "format": kind,
            "stage": what,
            "way": way,
            "images": found[kind, what, way][0]["images"],
            "seconds": [round(each["seconds"], 3) for each in found[kind, what, way]],
            "median_seconds": round(medians[kind, what, way], 3),
            "peak_mb": round(max(each["peak_mb"] for each in found[kind, what, way])),
            "over_before": round(medians[kind, what, way] / medians[kind, what, "before"], 3)
            if len(roots) > 1
            else None,
        }
        for kind, what, way in jobs
    ]


def _run(arguments: argparse.Namespace) -> Result:
    roots = {"now": ROOT} if arguments.against is None else {"before": arguments.against.resolve(), "now": ROOT}
    with tempfile.TemporaryDirectory(prefix="edge-effdet-") as folder:
        sets = make_sets(Path(folder), arguments.images)
        rows = compare(sets, roots, arguments.rounds)
    commits = {
        way: subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True, check=False
        ).stdout.strip()
        for way, root in roots.items()
    }
    setting = {"images": arguments.images, "boxes_an_image": BOXES, "rounds": arguments.rounds, "commits": commits}
    path = save_result("read-data", {**setting, "rows": rows})
    cells = [
        (
            row["format"], row["stage"], row["way"], f"{row['median_seconds']:.2f} s", f"{row['peak_mb']} MB",
            "" if row["over_before"] is None else f"{row['over_before']:.2f}",
        )
        for row in rows
    ]  # fmt: skip
    head = ("format", "stage", "way", "median", "peak memory", "time / before")
    return Result(f"{table([head, *cells])}\n\n{path}", {"result": str(path), "rows": rows})


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        "benchmarks", "Time reading and checking generated data sets.", "python -m benchmarks.read_data"
    )
    parser.add_argument(
        "--images", type=positive, default=10000, metavar="N", help="pictures of each data set (default: 10000)"
    )
    parser.add_argument("--rounds", type=positive, default=3, metavar="N", help="turns of each way (default: 3)")
    parser.add_argument("--against", type=Path, metavar="PATH", help="a working tree of an older commit")
    return run_verb(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
