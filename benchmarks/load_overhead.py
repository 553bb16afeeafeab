"""What driving an engine costs beside the engine: LoadGen and our own code against a backend that answers at once.

python -m benchmarks.load_overhead --engine engines/bccd.fp32.onnx

All of the time of a query is then overhead. It is given as a share of the engine's own median time for an image, from JPEG bytes to
boxes, measured in the same process before and after.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import save_result
from benchmarks.parser import make_parser
from edge_effdet.artifacts import load_engine
from edge_effdet.benchmarking.load import STREAMS, Load, Pool, drive
from edge_effdet.cli import Result, run_verb, table
from edge_effdet.runtime.detector import Detector
from edge_effdet.runtime.golden import draw_pictures, encode_picture
from edge_effdet.runtime.latency import Turns, time_in_turns

SECONDS = 3.0


def measure_overhead(scenario: str, own_loop: bool) -> dict[str, Any]:
    """Microseconds of a query and of an image with a backend that answers at once: wall time by the median, and CPU time on average."""
    with Pool(lambda _: None, 2) as pool:
        load = Load(scenario, SECONDS, 1000, 20e-6 * (STREAMS if scenario == "MultiStream" else 1), rate=200.0)
        busy = time.process_time()
        driven = drive(load, lambda _: None, 64, None if scenario == "SingleStream" else pool, own_loop)
        busy = time.process_time() - busy
    queries = len(driven.seconds)
    elapsed = driven.ended - driven.started
    return {
        "scenario": scenario,
        "driven_by": driven.driven_by,
        "queries": queries,
        "median_us": 1e6 * float(np.median(driven.seconds)) if scenario != "Offline" else None,
        # Between the queries too; in Server the driver waits for the next arrival, which is no overhead.
        "elapsed_us_an_image": None if scenario == "Server" else 1e6 * elapsed / driven.images,
        "cpu_us_an_image": 1e6 * busy / driven.images,
    }


def _run(arguments: argparse.Namespace) -> Result:
    engine = load_engine(arguments.engine)
    picture = encode_picture(draw_pictures(engine.spec.image_size, 1)[0])
    with Detector.load(engine) as detector:

        def median_us() -> float:
            (own,) = time_in_turns([lambda: detector(picture)], Turns(rounds=5, runs=20))
            return 1e6 * float(np.median(np.concatenate(own)))

        before = median_us()
        rows = [
            measure_overhead(name, own)
            for name in ("SingleStream", "MultiStream", "Offline", "Server")
            for own in (False, True)
        ]
        image_us = float(np.mean([before, median_us()]))
    for row in rows:
        row["share_of_an_image"] = (row["elapsed_us_an_image"] or row["cpu_us_an_image"]) / image_us
    result = {
        "engine_sha256": engine.sha256,
        "model": engine.spec.name,
        "backend": engine.backend,
        "image_us": image_us,
        "rows": rows,
    }
    path = save_result("load-overhead", result)
    shown = [("scenario", "driven by", "queries", "us an image, elapsed", "us an image, CPU", "share")]
    for row in rows:
        elapsed = row["elapsed_us_an_image"]
        cells = (
            "-" if elapsed is None else f"{elapsed:.1f}",
            f"{row['cpu_us_an_image']:.1f}",
            f"{100 * row['share_of_an_image']:.2f} %",
        )
        shown.append((row["scenario"], row["driven_by"], str(row["queries"]), *cells))
    return Result(f"{table(shown)}\n\nan image takes {image_us / 1000:.1f} ms\n{path}", result)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser("load_overhead", "What driving an engine costs beside it.", "--engine engines/bccd.fp32.onnx")
    parser.add_argument("--engine", type=Path, required=True, metavar="F", help="an engine that build_engine wrote")
    return run_verb(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
