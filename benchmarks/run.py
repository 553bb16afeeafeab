"""Compare all ways from a JPEG file in memory to boxes at batch 1: effdet, what its users export, and ours.

python -m benchmarks.run
python -m benchmarks.run --models tests/assets/bccd_lite0.safetensors --name bccd

The ways take turns in one process. All have the same number of threads, except that the naive pipeline takes onnxruntime's default. A ratio
is that of the medians of two ways' turns in one round, and the median over the rounds is given.
"""

from __future__ import annotations

import argparse
import io
import logging
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.graph_subjects import Skipped, Subject, attempt, read_subject
from benchmarks.latency import summarize_times, time_ways
from benchmarks.machine import save_result, watch_load
from benchmarks.parser import make_parser
from benchmarks.peers.effdet_photo import Detect, make_compiled, make_eager
from benchmarks.peers.naive_pipeline import export_one_tensor, make_naive
from benchmarks.peers.raw_export import export_plainly, make_onnxruntime, make_openvino
from edge_effdet.artifacts import Detections, Engine, Graph, write_json
from edge_effdet.artifacts.record import Golden, record_to_json
from edge_effdet.backends.base import CompileOptions
from edge_effdet.backends.fingerprint import machine_fingerprint
from edge_effdet.building.engine import compile_engine
from edge_effdet.cli import Result, run_verb, table
from edge_effdet.data.registry import read_dataset
from edge_effdet.graph.export import ExportOptions, export_network
from edge_effdet.quant.calibration import FEWEST_IMAGES
from edge_effdet.quant.choose import load_calibration_images
from edge_effdet.quant.stage import QuantizeOptions, convert_to_fp16, draft_int8
from edge_effdet.quickstart import CALIBRATION_SPLIT, quickstart_photos
from edge_effdet.runtime.detector import DetectOptions, Detector

logger = logging.getLogger("edge_effdet.benchmarks.run")

MODELS = ("tf_efficientdet_lite0@320", "tf_efficientdet_d0@512")
BACKENDS = ("onnxruntime", "openvino")
FP32, FP16, INT8 = "", ", FP16", ", INT8"
"""What the name of our engine in a precision ends in."""

EAGER, COMPILED = "effdet, its transforms, eager torch", "effdet, its transforms, torch.compile"
PLAIN, PLAIN_OPENVINO = "plain export, onnxruntime", "plain export, OpenVINO"
OWN_PRECISION = "plain export, OpenVINO, its own precision"
NAIVE = "naive pipeline, onnxruntime"

PHOTO = (480, 640)
PHOTO_QUALITY = 90
RUNS = 10
SAME_PIXELS, SAME_SCORE = 0.5, 1e-3
"""How far the corners and the scores of two detections may differ where they are the same."""


def make_photo() -> bytes:
    """A photograph of a cup of coffee, 640x480, as JPEG. It has the detail and noise of a camera, which a drawing does not have."""
    from skimage.data import coffee

    stream = io.BytesIO()
    picture = Image.fromarray(coffee()).resize((PHOTO[1], PHOTO[0]), Image.Resampling.LANCZOS)
    picture.save(stream, format="JPEG", quality=PHOTO_QUALITY)
    return stream.getvalue()


def make_engines(subject: Subject, work: Path) -> Iterator[tuple[str, Callable[[], Engine]]]:
    """Our engines by name, each with a function that makes it with its JSON: each backend in FP32, FP16 and INT8.

    The INT8 engines are good for timing alone: they are calibrated on eight photographs of blood cells, and the weights may be random.
    """
    graph = export_network(subject.network, subject.spec, {}, work / "ours.fp32.onnx", ExportOptions()).graph
    graphs = {
        FP32: graph,
        FP16: convert_to_fp16(graph, work / "ours.fp16.onnx"),
        INT8: draft_on_photos(graph, QuantizeOptions(), work / "ours.int8.onnx"),
    }
    for precision, lowered in graphs.items():
        for backend in BACKENDS:
            path = work / f"{backend}.{lowered.precision}.onnx"
            yield f"ours, {backend}{precision}", partial(make_engine, lowered, backend, path)


def draft_on_photos(graph: Graph, options: QuantizeOptions, path: Path) -> Graph:
    """INT8 that is calibrated on eight of the shipped photographs, which are enough to know how fast it is."""
    _, samples = read_dataset(quickstart_photos()).choose_split(CALIBRATION_SPLIT, ())
    images = load_calibration_images(samples, graph.spec, FEWEST_IMAGES, seed=0)
    return draft_int8(graph, images, options, path)


def make_engine(graph: Graph, backend: str, path: Path) -> Engine:
    """Compile a graph for a backend of this machine, and write its JSON."""
    engine = compile_engine(graph, backend, CompileOptions(), path)
    # The engine stays on this machine, so it needs no golden check, and no warning at each load that it has none.
    golden = Golden(kind="none", fingerprint=machine_fingerprint(backend))
    engine = replace(engine, record=replace(engine.require_record(), golden=golden))
    write_json(engine.json_path, record_to_json(engine.require_record()))
    return engine


def make_ways(subject: Subject, threads: int, compiled: bool, work: Path) -> Iterator[tuple[str, Callable[[], Detect]]]:
    """All ways by name, each with a function that opens it."""
    network, spec = subject.network, subject.spec
    # effdet gives its hundred best detections of any score, so ours do too.
    options = DetectOptions(0.0)
    for name, make in make_engines(subject, work):
        yield name, lambda make=make: Detector.load(make(), threads=threads, options=options)
    yield EAGER, lambda: make_eager(network, spec)
    if compiled:
        yield COMPILED, lambda: make_compiled(network, spec)
    plain = attempt(lambda: export_plainly(network, spec, work / "plain.onnx"))

    def exported() -> Path:
        if isinstance(plain, Skipped):
            raise RuntimeError(plain.reason)
        return plain

    yield PLAIN, lambda: make_onnxruntime(network, spec, exported(), threads)
    yield PLAIN_OPENVINO, lambda: make_openvino(network, spec, exported(), threads)
    yield OWN_PRECISION, lambda: make_openvino(network, spec, exported(), threads, None)
    yield NAIVE, lambda: make_naive(spec, export_one_tensor(network, spec, work / "one-tensor.onnx"))


def compare_ways(
    subject: Subject, photo: bytes, threads: int, rounds: int, compiled: bool, work: Path
) -> dict[str, Any]:
    """Time all ways of one model on one photo.

    Returns:
        ``rows``, one a way, with how many of effdet's detections it finds; ``skipped``, why others cannot run here; ``load``, what
        else the machine did; ``ours`` and ``ours_reduced``, our fastest way in FP32 and in less; and how many times as long as each of
        the two a way takes.
    """
    import torch

    torch.set_num_threads(threads)
    expected = make_eager(subject.network, subject.spec)(photo)
    ways: dict[str, Detect] = {}
    skipped: dict[str, str] = {}
    agreeing: dict[str, str | None] = {}
    for name, make in make_ways(subject, threads, compiled, work):
        logger.info("%s: %s", subject.title, name)

        def start(make: Callable[[], Detect] = make) -> tuple[Detect, Detections]:
            way = make()
            return way, way(photo)

        started = attempt(start)
        if isinstance(started, Skipped):
            skipped[name] = started.reason
            continue
        ways[name], found = started
        # In less than FP32, scores of random weights differ by more than count_agreeing allows; benchmarks.accuracy measures AP.
        exact = not name.endswith((FP16, INT8, OWN_PRECISION))
        agreeing[name] = f"{count_agreeing(expected, found)} of {len(expected)}" if exact else None
    load = watch_load()
    times = time_ways({name: partial(way, photo) for name, way in ways.items()}, rounds, RUNS)
    turns = {name: np.median(own, axis=1) for name, own in times.items()}

    def fastest(endings: Sequence[str]) -> str | None:
        mine = [name for ending in endings for backend in BACKENDS if (name := f"ours, {backend}{ending}") in ways]
        return min(mine, key=lambda way: float(np.median(times[way])), default=None)

    def times_as_long(mine: str | None) -> dict[str, float]:
        return (
            {name: float(np.median(own / turns[mine])) for name, own in turns.items() if name != mine} if mine else {}
        )

    mine, reduced = fastest([FP32]), fastest([FP16, INT8])
    return {
        "rows": [{**row, "agreeing_with_effdet": agreeing[row["way"]]} for row in summarize_times(times, {})],
        "skipped": skipped,
        "load": load(),
        "ours": mine,
        "ours_reduced": reduced,
        "times_as_fast": times_as_long(mine),
        "times_as_fast_reduced": times_as_long(reduced),
    }


def count_agreeing(expected: Detections, found: Detections) -> int:
    """How many of the detections ``expected`` are in ``found`` at the same place, with the same class and the same score."""
    # IoU would not do: it is not defined for a box that clipping left without an area.
    same = np.abs(expected.boxes[:, None] - found.boxes[None]).max(axis=2) <= SAME_PIXELS
    same &= expected.class_ids[:, None] == found.class_ids[None]
    same &= np.abs(expected.scores[:, None] - found.scores[None]) <= SAME_SCORE
    return int(same.any(axis=1).sum())


def describe_ways(result: Mapping[str, Any]) -> str:
    """A table of the ways of each model, and why others were left out."""
    parts = []
    for each in result["models"]:
        latency = each["latency"]
        rows = [("way", "P50", "P90", "P99", "/ ours, FP32", "/ ours, less", "effdet's boxes")]
        rows += [
            (
                row["way"],
                *(f"{row[key]:.1f} ms" for key in ("median_ms", "p90_ms", "p99_ms")),
                *(_ratio(latency[key].get(row["way"])) for key in ("times_as_fast", "times_as_fast_reduced")),
                row["agreeing_with_effdet"] or "-",
            )
            for row in latency["rows"]
        ]
        lines = [f"{each['model']}, {'x'.join(map(str, each['image_size']))} px", "", table(rows)]
        lines += [f"{name} was left out: {reason}" for name, reason in latency["skipped"].items()]
        parts.append("\n".join(lines))
    others = f"Other processes took up to {100 * result['load']['others']:.0f} % of the processors meanwhile."
    return "\n\n".join([*parts, others])


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _run(arguments: argparse.Namespace) -> Result:
    subjects = [read_subject(text) for text in arguments.models]
    photo, models = make_photo(), []
    for subject in subjects:
        with tempfile.TemporaryDirectory(prefix="edge-effdet-") as folder:
            latency = compare_ways(subject, photo, arguments.threads, arguments.rounds, arguments.compile, Path(folder))
        models.append({"model": subject.spec.name, "image_size": list(subject.spec.image_size), "latency": latency})
    result = {
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "runs_a_round": RUNS,
        "photo": {"height": PHOTO[0], "width": PHOTO[1], "bytes": len(photo)},
        "weights": "random, seed 0, or the checkpoint that a model names",
        # The worst of the models, so that a busy machine is not averaged away.
        "load": max((each["latency"]["load"] for each in models), key=lambda load: load["others"]),
        "models": models,
    }
    path = save_result("run", result, arguments.name)
    return Result(f"{describe_ways(result)}\n\n{path}", result)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        "run",
        "Time all ways from JPEG bytes to boxes, effdet's and ours.",
        "--no-compile",
        models=MODELS,
        rounds=10,
        threads=True,
        name="run",
    )
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether torch.compile is timed, which takes minutes",
    )
    return run_verb(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
