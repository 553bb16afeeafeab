"""Images a second over HTTP with eight clients: NVIDIA's Triton Inference Server, our own service, and the bare pipeline, with the same engine.

python -m benchmarks.triton --engine engines/bccd.int8.onnx --data bccd/JPEGImages

The server is that of ``tests/triton_install.sh``, with the repository that ``deploy --format triton`` writes. Both services get the same bytes: the
Open Inference Protocol, a JPEG in, binary tensors out; ours is also asked by ``/detect``, which answers JSON. All take turns in one run. The clients
run on the same cores, and what they take counts against the service; it is measured too. Before the first turn each answer is held against what
``Detector`` finds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import struct
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.machine import save_result, watch_load
from benchmarks.parser import make_parser
from benchmarks.serve import measure_pipeline
from benchmarks.serve_client import drive_closed, request_bytes, start_server
from edge_effdet.artifacts import Engine, load_engine
from edge_effdet.cli import Result, add_options, options_from, progress, run_verb, table
from edge_effdet.deploying.triton import write_triton_repository
from edge_effdet.deploying.triton_config import TritonOptions
from edge_effdet.errors import InputError
from edge_effdet.runtime.detector import Detector
from edge_effdet.runtime.images import list_images
from edge_effdet.serving.protocol import HEADER_LENGTH, pack_detections
from tests.triton import TritonInstallation, running_server

CLIENTS = 8
PICTURES = 40
NAME = "engine"
BARE, TRITON, OURS, OURS_JSON = "bare pipeline", "Triton", "ours", "ours, /detect"


def infer_request(picture: bytes) -> bytes:
    """A request to infer as it goes over the wire, with the picture and the answer's tensors as binary data."""
    tensor = struct.pack("<I", len(picture)) + picture
    told = {
        "inputs": [
            {"name": "IMAGE", "shape": [1, 1], "datatype": "BYTES", "parameters": {"binary_data_size": len(tensor)}}
        ],
        "parameters": {"binary_data_output": True},
    }
    head = json.dumps(told).encode()
    request = request_bytes(f"/v2/models/{NAME}/infer", head + tensor)
    return request.replace(b"\r\n", f"\r\n{HEADER_LENGTH}: {len(head)}\r\n".encode(), 1)


def read_boxes(address: tuple[str, int], picture: bytes) -> np.ndarray:
    """The boxes that a service finds in a picture, by the same protocol; float32 [N, 4]."""
    head, _, body = infer_request(picture).partition(b"\r\n\r\n")
    headers = dict(line.split(": ", 1) for line in head.decode().split("\r\n")[1:])
    request = urllib.request.Request(f"http://{address[0]}:{address[1]}/v2/models/{NAME}/infer", body, headers)
    with urllib.request.urlopen(request, timeout=60) as answer:
        length, content = int(answer.headers[HEADER_LENGTH]), answer.read()
    start = length
    for output in json.loads(content[:length])["outputs"]:
        size = output["parameters"]["binary_data_size"]
        if output["name"] == "BOXES":
            return np.frombuffer(content[start : start + size], "<f4").reshape(output["shape"])[0]
        start += size
    raise RuntimeError("the answer has no boxes")


def _drive(address: tuple[str, int], requests: Sequence[bytes], seconds: float) -> dict[str, float]:
    """Images a second, and what a request costs the clients."""
    before = time.process_time()
    answers, took = asyncio.run(drive_closed(*address, requests, CLIENTS, seconds))
    if set(answers.statuses) != {200}:
        raise RuntimeError(f"not all requests were answered: {answers.statuses}")
    done = len(answers.seconds)
    return {
        "images_per_s": done / took,
        "client_cpu_ms": 1000 * (time.process_time() - before) / done,
        "p50_ms": 1000 * float(np.percentile(answers.seconds, 50)),
        "p99_ms": 1000 * float(np.percentile(answers.seconds, 99)),
    }


def _see_same_boxes(engine: Engine, files: Sequence[Path], services: Mapping[str, tuple[str, int]]) -> None:
    """Raises RuntimeError where a service finds other boxes than ``Detector``."""
    with Detector.load(engine) as detector:
        for file in files:
            wanted = pack_detections([detector(file)])["BOXES"][0]
            for name, address in services.items():
                if not np.array_equal(read_boxes(address, file.read_bytes()), wanted):
                    raise RuntimeError(f"{name} finds other boxes in {file.name}")


def _run(arguments: argparse.Namespace) -> Result:
    engine, options = load_engine(arguments.engine), options_from(TritonOptions, arguments)
    installation = TritonInstallation.find()
    if installation is None:
        raise InputError("There is no tritonserver here; run tests/triton_install.sh.")
    files = list_images(arguments.data)[:PICTURES]
    contents = [path.read_bytes() for path in files]
    infer, detect = [infer_request(each) for each in contents], [request_bytes("/detect", each) for each in contents]
    result = watch_load()
    with tempfile.TemporaryDirectory(prefix="edge-effdet-") as place, ExitStack() as stack:
        home = Path(place)
        folder = write_triton_repository(engine, home / "models", options, NAME)
        venv = installation.make_venv(home / "venv", next((folder / "environment").glob("*.whl")))
        triton = stack.enter_context(running_server(installation, home / "models", home, venv))
        triton.load(NAME)
        ours = stack.enter_context(start_server(engine.path, ["--name", NAME]))
        host, _, port = triton.http.rpartition(":")
        addresses = {TRITON: (host, int(port)), OURS: (ours.host, ours.port)}
        _see_same_boxes(engine, files[:10], addresses)
        ways: dict[str, Callable[[], dict[str, float]]] = {
            BARE: lambda: {"images_per_s": measure_pipeline(engine, files, arguments.seconds)},
            TRITON: lambda: _drive(addresses[TRITON], infer, arguments.seconds),
            OURS: lambda: _drive(addresses[OURS], infer, arguments.seconds),
            OURS_JSON: lambda: _drive(addresses[OURS], detect, arguments.seconds),
        }
        for way in (TRITON, OURS, OURS_JSON):
            # The first requests of a service are slower than all others.
            _drive(addresses.get(way, addresses[OURS]), detect if way is OURS_JSON else infer, 1.0)
        turns: dict[str, list[dict[str, float]]] = {way: [] for way in ways}
        for number in progress(range(arguments.rounds), arguments.rounds, "rounds"):
            for way in list(ways)[:: -1 if number % 2 else 1]:
                turns[way].append(ways[way]())
        batches = triton.batches(NAME)
        server = triton.ask("/v2")["version"]
    return _result(engine, arguments, turns, batches, {"triton": server, **result()})


def _result(
    engine: Engine,
    arguments: argparse.Namespace,
    turns: Mapping[str, Sequence[Mapping[str, float]]],
    batches: Mapping[int, int],
    more: Mapping[str, Any],
) -> Result:
    rates = {way: np.array([turn["images_per_s"] for turn in found]) for way, found in turns.items()}
    medians = {
        way: {key: float(np.median([turn[key] for turn in found])) for key in found[0]} for way, found in turns.items()
    }
    for way, found in medians.items():
        found["ratio to Triton"] = float(np.median(rates[way] / rates[TRITON]))
        found["ratio to bare"] = float(np.median(rates[way] / rates[BARE]))
    data = {
        "engine_sha256": engine.sha256,
        "backend": engine.backend,
        "precision": engine.precision,
        "clients": CLIENTS,
        "ways": medians,
        "turns": turns,
        "batches": {str(size): count for size, count in sorted(batches.items())},
        **more,
    }
    rows = [("way", "images/s", "of the bare", "of Triton", "P50 ms", "P99 ms", "client's CPU, ms a request")]
    for way, found in medians.items():
        p50, p99, cost = (f"{found[key]:.2f}" if key in found else "-" for key in ("p50_ms", "p99_ms", "client_cpu_ms"))
        bare, triton = (f"{found[key]:.3f}" for key in ("ratio to bare", "ratio to Triton"))
        rows.append((way, f"{found['images_per_s']:.1f}", bare, triton, p50, p99, cost))
    path = save_result("triton", data, arguments.name)
    return Result(f"{table(rows)}\n\nTriton's batches: {data['batches']}\n{path}", data)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        "triton",
        "Images a second over HTTP with eight clients: Triton, our service, and the bare pipeline.",
        "--engine engines/bccd.int8.onnx --data bccd/JPEGImages",
        rounds=7,
        name="triton",
    )
    parser.add_argument("--engine", type=Path, required=True, metavar="F", help="an engine of onnxruntime")
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="a folder of pictures")
    parser.add_argument("--seconds", type=float, default=8.0, metavar="S", help="of a turn (default: 8)")
    add_options(parser, TritonOptions)
    return run_verb(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
