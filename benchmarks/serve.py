"""What the HTTP service costs beside the engine, and what becomes of it under ten times the load that it can do.

python -m benchmarks.serve --engine engines/bccd.int8.onnx --data bccd

- rate: images a second with eight clients, JPEG in and JSON out, beside the bare pipeline on the same pictures and the same cores. Both take turns.
  The clients run on those cores too, and what they take counts against the service.
- overhead: milliseconds of a request of one client, beside ``Detector`` called in this process with the same bytes. Both take turns.
- overload: requests at ten times that rate; every one must be answered, by boxes or by 503 with Retry-After.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import save_result, watch_load
from benchmarks.parser import make_parser
from benchmarks.serve_client import ServerProcess, drive_closed, drive_open, request_bytes, start_server
from edge_effdet.artifacts import Engine, load_engine
from edge_effdet.cli import Result, run_verb, table
from edge_effdet.runtime.detector import Detector
from edge_effdet.runtime.images import list_images
from edge_effdet.runtime.pipeline import Pipeline, PipelineOptions, loading_for
from edge_effdet.runtime.sources import ImageFiles

PARTS = ("rate", "overhead", "overload")
CLIENTS = 8
PICTURES = 40


def measure_pipeline(engine: Engine, files: list[Path], seconds: float) -> float:
    """Images a second of the bare pipeline, from files to detections, without its start."""
    source = ImageFiles(files * 50, str(files[0].parent))
    options = PipelineOptions()
    loading = loading_for(engine.backend, source, options)
    with Detector.load(engine, loading=loading) as detector, Pipeline(detector, source, options, loading) as pipeline:
        begun, done = 0.0, 0
        for number, _ in enumerate(pipeline):
            if number == 20:
                begun = time.perf_counter()
            elif number > 20:
                done += 1
                if time.perf_counter() - begun > seconds:
                    break
        return done / (time.perf_counter() - begun)


def measure_rate(engine: Engine, files: list[Path], rounds: int, seconds: float) -> dict[str, Any]:
    """Images a second of the service and of the bare pipeline, in turns."""
    requests = [request_bytes("/detect", path.read_bytes()) for path in files]
    bare, served, client = [], [], 0.0
    with start_server(engine.path) as server:
        asyncio.run(drive_closed(server.host, server.port, requests, CLIENTS, 1.0))
        for _ in range(rounds):
            bare.append(measure_pipeline(engine, files, seconds))
            before = server.cpu_seconds(), time.process_time()
            answers, took = asyncio.run(drive_closed(server.host, server.port, requests, CLIENTS, seconds))
            if set(answers.statuses) != {200}:
                raise RuntimeError(f"not all requests were answered: {answers.statuses}")
            served.append(len(answers.seconds) / took)
            client = (time.process_time() - before[1]) / len(answers.seconds)
    ratios = np.array(served) / np.array(bare)
    return {
        "bare_per_s": float(np.median(bare)),
        "served_per_s": float(np.median(served)),
        "ratio": float(np.median(ratios)),
        "ratios": ratios.tolist(),
        "client_cpu_ms": 1000 * client,
    }


def measure_overhead(engine: Engine, files: list[Path], rounds: int, runs: int) -> dict[str, Any]:
    """Milliseconds of a request of one client more than ``Detector`` takes, in turns."""
    contents = [path.read_bytes() for path in files]
    requests = [request_bytes("/detect", content) for content in contents]
    own, served, differences = [], [], []

    async def ask(server: ServerProcess) -> list[float]:
        answers, _ = await drive_closed(server.host, server.port, requests, 1, 1.0)
        return answers.seconds

    with start_server(engine.path) as server, Detector.load(engine) as detector:
        asyncio.run(ask(server))
        for _ in range(rounds):
            times = []
            for number in range(runs):
                begun = time.perf_counter()
                detector(contents[number % len(contents)])
                times.append(time.perf_counter() - begun)
            own.append(float(np.median(times)))
            served.append(float(np.median(asyncio.run(ask(server)))))
            differences.append(served[-1] - own[-1])
    return {
        "detector_ms": 1000 * float(np.median(own)),
        "served_ms": 1000 * float(np.median(served)),
        "overhead_ms": 1000 * float(np.median(differences)),
        "overheads_ms": [1000 * each for each in differences],
    }


def measure_overload(engine: Engine, files: list[Path], seconds: float, times: float) -> dict[str, Any]:
    """What becomes of a service that is asked for many times what it can do."""
    requests = [request_bytes("/detect", path.read_bytes()) for path in files]
    with start_server(engine.path) as server:
        answers, took = asyncio.run(drive_closed(server.host, server.port, requests, CLIENTS, 5.0))
        rate = len(answers.seconds) / took
        # Once, so that what is taken at the first overload is not counted as growth.
        asyncio.run(drive_open(server.host, server.port, requests, times * rate, 10.0, 128))
        before, counted, memory = _metrics(server), time.perf_counter(), []
        parts, sent, statuses, waits, broken = 10, 0, {}, [], 0
        for _ in range(parts):
            answers, more = asyncio.run(
                drive_open(server.host, server.port, requests, times * rate, seconds / parts, 128)
            )
            sent, broken = sent + more, broken + answers.broken
            waits += answers.seconds
            for status, count in answers.statuses.items():
                statuses[status] = statuses.get(status, 0) + count
            memory.append(server.resident_mb())
        elapsed, after = time.perf_counter() - counted, _metrics(server)
        accepted = after["pictures"] - before["pictures"]
        most = after["most"]
    capacity = len(waits) / elapsed
    return {
        "asked_per_s": times * rate,
        "sent_per_s": sent / elapsed,
        "seconds": elapsed,
        "sent": sent,
        "statuses": {str(status): count for status, count in sorted(statuses.items())},
        "broken": broken,
        "accepted": accepted,
        "lost": accepted - len(waits),
        "p50_ms": 1000 * float(np.percentile(waits, 50)),
        "p99_ms": 1000 * float(np.percentile(waits, 99)),
        "bound_ms": 1000 * most / capacity,
        "answered_per_s": capacity,
        "alone_per_s": rate,
        "memory_mb": memory,
        "growth_mb": memory[-1] - memory[0],
    }


def _metrics(server: ServerProcess) -> dict[str, float]:
    with urllib.request.urlopen(f"http://{server.host}:{server.port}/metrics", timeout=60) as answer:
        lines = [line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if not line.startswith("#")]
    values = {name: float(value) for name, value in lines}
    return {
        "pictures": values['edge_effdet_stage_seconds_count{stage="infer"}'],
        "most": values["edge_effdet_most_pictures"],
    }


def _run(arguments: argparse.Namespace) -> Result:
    engine = load_engine(arguments.engine)
    files = list_images(arguments.data)[:PICTURES]
    load = watch_load()
    result: dict[str, Any] = {
        "engine_sha256": engine.sha256,
        "backend": engine.backend,
        "precision": engine.precision,
        "pictures": len(files),
    }
    rows = [("what", "measured", "asked")]
    if "rate" in arguments.parts:
        found = result["rate"] = measure_rate(engine, files, arguments.rounds, arguments.seconds)
        rows += [
            ("bare pipeline, images a second", f"{found['bare_per_s']:.1f}", ""),
            (f"service, {CLIENTS} clients, images a second", f"{found['served_per_s']:.1f}", ""),
            ("ratio", f"{found['ratio']:.3f}", "0.9 or more"),
            ("a client's CPU for a request, ms", f"{found['client_cpu_ms']:.2f}", ""),
        ]
    if "overhead" in arguments.parts:
        found = result["overhead"] = measure_overhead(engine, files, arguments.rounds, 60)
        rows += [
            ("Detector, one picture, ms", f"{found['detector_ms']:.2f}", ""),
            ("service, one client, ms", f"{found['served_ms']:.2f}", ""),
            ("overhead, ms", f"{found['overhead_ms']:.2f}", "1.5 or less"),
        ]
    if "overload" in arguments.parts:
        found = result["overload"] = measure_overload(engine, files, 60 * arguments.minutes, 10)
        rows += [
            ("requests sent a second", f"{found['sent_per_s']:.0f}", f"{found['asked_per_s']:.0f}"),
            ("answers by status", json.dumps(found["statuses"]), "200 and 503"),
            ("accepted and not answered", f"{found['lost']:.0f}", "0"),
            ("connections that broke", str(found["broken"]), "0"),
            ("P99 of the accepted, ms", f"{found['p99_ms']:.0f}", f"{found['bound_ms']:.0f} by the line"),
            ("answered a second, of alone", f"{found['answered_per_s']:.1f} of {found['alone_per_s']:.1f}", ""),
            ("growth of memory, MB", f"{found['growth_mb']:.1f}", "below 5"),
        ]
    result["load"] = load()
    path = save_result("serve", result, arguments.name)
    return Result(f"{table(rows)}\n\n{path}", result)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        "serve",
        "What the HTTP service costs, and what becomes of it under load.",
        "--engine engines/bccd.int8.onnx --data pictures",
    )
    parser.add_argument("--engine", type=Path, required=True, metavar="F", help="an engine that build_engine wrote")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="a folder of pictures")
    parser.add_argument(
        "--parts", nargs="+", default=list(PARTS), choices=PARTS, help="what is measured (default: all)"
    )
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="turns of each (default: 7)")
    parser.add_argument("--seconds", type=float, default=8.0, metavar="S", help="of a turn (default: 8)")
    parser.add_argument("--minutes", type=float, default=5.0, metavar="N", help="of the overload (default: 5)")
    parser.add_argument("--name", default="", metavar="NAME", help="the name of the result file, after serve-")
    return run_verb(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
