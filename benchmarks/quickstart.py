"""What ``make engine`` builds on this machine: AP before and after INT8, and how fast the network is, for the README's table by processor.

python -m benchmarks.quickstart
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from benchmarks.machine import save_result, watch_load
from benchmarks.parser import make_parser
from edge_effdet.artifacts import temporary_folder
from edge_effdet.building.chain import build
from edge_effdet.building.options import BuildConfig
from edge_effdet.building.summary import summary_table
from edge_effdet.cli import Result, run_verb


def _run(arguments: argparse.Namespace) -> Result:
    load = watch_load()
    started = time.perf_counter()
    with temporary_folder() as folder:
        config = BuildConfig(precision="int8", backend=arguments.backend, fall_back=True, output=folder)
        engine = build(None, config)
        seconds = time.perf_counter() - started
        shown = summary_table(engine)
    record = engine.require_record()
    accuracy, reference, latency = record.accuracy, record.reference, record.latency
    assert accuracy is not None and reference is not None and latency is not None
    result = {
        "graph_sha256": reference.sha256,
        "precision": engine.precision,
        "backend": engine.backend,
        "images": accuracy.images,
        "AP": accuracy.AP,
        "reference_AP": accuracy.reference_AP,
        "drop": accuracy.drop,
        "drop_interval": accuracy.drop_interval,
        "int8_mac_fraction": record.proof.int8_mac_fraction,
        "median_ms": latency.median_ms,
        "reference_median_ms": reference.latency.median_ms,
        "seconds": round(seconds, 1),
        "load": load(),
    }
    saved = save_result("quickstart", result, arguments.name)
    return Result(f"{shown}\n\nbuilt and proven in {seconds:.0f} s\n{saved}", result)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser("quickstart", "Build the shipped model and note its AP and speed here.", name="quickstart")
    shown = "the backend, or fastest for the one that wins the race here (default: fastest)"
    parser.add_argument("--backend", default="fastest", metavar="NAME", help=shown)
    return run_verb(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
