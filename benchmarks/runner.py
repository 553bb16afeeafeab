"""Measure the runner: from JPEG bytes to boxes against what a user would run without it, a folder, cold start, memory and install.

python -m benchmarks.runner
python -m benchmarks.runner --models tests/assets/bccd_lite0.safetensors --skip growth install --name bccd

The ways that are compared take turns in one process, with the same number of threads, and a ratio is the median over paired rounds.
Cold start, memory and its growth are measured in processes of their own, which load nothing of the host side.
"""

from __future__ import annotations

import argparse
import io
import logging
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.graph import count_agreeing
from benchmarks.graph_subjects import Skipped, Subject, attempt, read_subject
from benchmarks.latency import positive, summarize_times, time_ways
from benchmarks.machine import save_result
from benchmarks.peers.effdet_photo import Detect, make_compiled, make_eager
from benchmarks.peers.raw_export import export_plainly, make_onnxruntime, make_openvino
from benchmarks.runner_process import measure_cold_start, measure_growth, measure_install
from benchmarks.runner_tables import describe_runner
from edge_effdet.artifacts import Engine, write_record
from edge_effdet.artifacts.record import Golden
from edge_effdet.backends.base import CompileOptions
from edge_effdet.backends.fingerprint import machine_fingerprint
from edge_effdet.building.engine import compile_engine
from edge_effdet.cli import Result, make_parser, progress, run_verb
from edge_effdet.data.registry import read_dataset
from edge_effdet.data.synthetic import write_scenes
from edge_effdet.graph.export import ExportOptions, export_network
from edge_effdet.quant.calibration import FEWEST_IMAGES
from edge_effdet.quant.choose import load_calibration_images
from edge_effdet.quant.stage import QuantizeOptions, convert_to_fp16, draft_int8
from edge_effdet.runtime.detector import DetectOptions, Detector
from edge_effdet.runtime.pipeline import Pipeline, PipelineOptions, loading_for
from edge_effdet.runtime.sources import ImageFiles

logger = logging.getLogger("edge_effdet.benchmarks.runner")

MODELS = ("tf_efficientdet_lite0@320", "tf_efficientdet_d0@512")
BACKENDS = ("onnxruntime", "openvino")
PARTS = ("latency", "folder", "process", "growth", "install")
HALF, INT8 = "openvino, FP16", "openvino, INT8"
REDUCED = (HALF, INT8)
OURS = {engine: f"ours, {engine}" for engine in (*BACKENDS, *REDUCED)}
EAGER, COMPILED = "effdet, its transforms, eager torch", "effdet, its transforms, torch.compile"
RAW = {
    "onnxruntime": "plain export, onnxruntime",
    "openvino": "plain export, OpenVINO",
    "chosen": "plain export, OpenVINO, its own precision",
}
LESS_THAN_FP32 = (OURS[HALF], OURS[INT8], RAW["chosen"])
PHOTO = (480, 640)
PHOTO_QUALITY = 90
FOLDER_PHOTOS = 24
THRESHOLD = 0.3


def make_photo() -> bytes:
    """A photograph of a cup of coffee, 640x480, as JPEG. It has the detail and noise of a camera, which a drawing does not have."""
    from skimage.data import coffee

    stream = io.BytesIO()
    picture = Image.fromarray(coffee()).resize((PHOTO[1], PHOTO[0]), Image.Resampling.LANCZOS)
    picture.save(stream, format="JPEG", quality=PHOTO_QUALITY)
    return stream.getvalue()


def make_engines(subject: Subject, work: Path) -> dict[str, Engine]:
    """Make our engines with their JSON: in FP32 for each backend that is installed, and in FP16 and INT8 for OpenVINO.

    The INT8 engine is good for timing alone: it is calibrated on eight drawn scenes, and its weights may be random.
    """
    graph = export_network(subject.network, subject.spec, {}, work / "ours.fp32.onnx", ExportOptions()).graph
    scenes = work / "scenes"
    write_scenes(scenes, {"train": FEWEST_IMAGES}, seed=0)
    images = load_calibration_images(read_dataset(scenes).all_samples(), subject.spec, FEWEST_IMAGES, seed=0)
    graphs = {
        **dict.fromkeys(BACKENDS, graph),
        HALF: convert_to_fp16(graph, work / "ours.fp16.onnx"),
        INT8: draft_int8(graph, images, QuantizeOptions(), work / "ours.int8.onnx"),
    }
    engines = {}
    for name, lowered in graphs.items():
        backend, path = name.split(",")[0], work / f"{name.replace(', ', '.')}.onnx"
        made = attempt(
            lambda lowered=lowered, backend=backend, path=path: compile_engine(lowered, backend, CompileOptions(), path)
        )
        if isinstance(made, Skipped):
            logger.warning("%s was left out: %s", name, made.reason)
            continue
        # The engine stays on this machine, so it needs no golden check, and no warning at each load that it has none.
        golden = Golden(kind="none", fingerprint=machine_fingerprint(backend))
        made = replace(made, record=replace(made.require_record(), golden=golden))
        write_record(made)
        engines[name] = made
    return engines


def compare_latency(
    subject: Subject, engines: dict[str, Engine], photo: bytes, threads: int, rounds: int, compiled: bool, work: Path
) -> dict[str, Any]:
    """Time the way from JPEG bytes to boxes at batch 1, one row a way, with ratios to our fastest engine in FP32 and in less."""
    import torch

    torch.set_num_threads(threads)
    makers: dict[str, Callable[[], Detect]] = {}
    # effdet gives its hundred best detections of any score, so ours do too.
    options = DetectOptions(0.0)
    for name, engine in engines.items():
        makers[OURS[name]] = lambda engine=engine: Detector.load(engine, threads=threads, options=options)
    makers[EAGER] = lambda: make_eager(subject.network, subject.spec)
    if compiled:
        makers[COMPILED] = lambda: make_compiled(subject.network, subject.spec)
    plain = attempt(lambda: export_plainly(subject.network, subject.spec, work / "plain.onnx"))
    if not isinstance(plain, Skipped):
        makers[RAW["onnxruntime"]] = lambda: make_onnxruntime(subject.network, subject.spec, plain, threads)
        makers[RAW["openvino"]] = lambda: make_openvino(subject.network, subject.spec, plain, threads)
        makers[RAW["chosen"]] = lambda: make_openvino(subject.network, subject.spec, plain, threads, None)
    ways: dict[str, Detect] = {}
    skipped: dict[str, str] = {} if not isinstance(plain, Skipped) else dict.fromkeys(RAW.values(), plain.reason)
    agreeing: dict[str, str | None] = {}
    expected = makers[EAGER]()(photo)
    for name, make in makers.items():
        logger.info("%s: %s", subject.title, name)
        way = attempt(make)
        found = way if isinstance(way, Skipped) else attempt(lambda way=way: way(photo))
        if isinstance(way, Skipped) or isinstance(found, Skipped):
            skipped[name] = (way if isinstance(way, Skipped) else found).reason  # type: ignore[union-attr]
            continue
        ways[name] = way
        # In less than FP32, scores of random weights differ by more than count_agreeing allows; benchmarks.accuracy measures AP.
        agreeing[name] = None if name in LESS_THAN_FP32 else f"{count_agreeing(expected, found)} of {len(expected)}"
    times = time_ways({name: (lambda way=way: way(photo)) for name, way in ways.items()}, rounds)
    rows = summarize_times(times, {f"{name}_over_this": name for name in ways if name in OURS.values()})
    turns = {name: np.median(own, axis=1) for name, own in times.items()}

    def fastest(engines: Sequence[str]) -> str | None:
        mine = [OURS[name] for name in engines if OURS[name] in ways]
        return min(mine, key=lambda way: float(np.median(times[way]))) if mine else None

    def times_as_fast(mine: str | None) -> dict[str, float]:
        return (
            {name: float(np.median(own / turns[mine])) for name, own in turns.items() if name != mine} if mine else {}
        )

    mine, reduced = fastest(BACKENDS), fastest(REDUCED)
    return {
        "rows": [{**row, "agreeing_with_effdet": agreeing[row["way"]]} for row in rows],
        "skipped": skipped,
        "ours": mine,
        "ours_reduced": reduced,
        "times_as_fast": times_as_fast(mine),
        "times_as_fast_reduced": times_as_fast(reduced),
        "not_the_network": {
            engine: split_time(way, photo, rounds)
            for engine, name in OURS.items()
            if isinstance(way := ways.get(name), Detector)
        },
    }


def split_time(detector: Detector, photo: bytes, rounds: int) -> dict[str, float]:
    """The median milliseconds of each stage of one picture at a score threshold of 0.3, and the share outside the network.

    Beside them stand the milliseconds that Pillow alone takes for decoding and for resizing, called as plain code would.
    """
    stages: dict[str, list[float]] = {name: [] for name in ("decode", "letterbox", "network", "suppress", "total")}
    plain: dict[str, list[float]] = {"plain_decode": [], "plain_resize": []}
    detector = Detector(detector._runner, detector.spec, DetectOptions(THRESHOLD))
    height, width = detector.spec.image_size
    with detector.input_buffer() as buffer:
        for number in progress(range(10 * rounds), 10 * rounds, "stages"):
            marks = [time.perf_counter()]
            picture, size = detector.read(photo)
            marks.append(time.perf_counter())
            detector.prepare(picture, size, buffer[0])
            marks.append(time.perf_counter())
            outputs = detector.run(buffer, 1)
            marks.append(time.perf_counter())
            detector.finish(outputs, 0, size)
            marks.append(time.perf_counter())
            own = time.perf_counter()
            decoded = np.asarray(Image.open(io.BytesIO(photo)).convert("RGB"))
            middle = time.perf_counter()
            np.asarray(Image.fromarray(decoded).resize((width, height * 3 // 4), Image.Resampling.BILINEAR))
            after = time.perf_counter()
            if number < rounds:
                continue
            plain["plain_decode"].append(middle - own)
            plain["plain_resize"].append(after - middle)
            for name, seconds in zip(stages, [*np.diff(marks), marks[-1] - marks[0]], strict=True):
                stages[name].append(float(seconds))
    medians = {name: 1000 * statistics.median(own) for name, own in (stages | plain).items()}
    outside = 1000 * statistics.median(np.array(stages["total"]) - np.array(stages["network"]))
    shares = (np.array(stages["total"]) - np.array(stages["network"])) / np.array(stages["total"])
    return {**medians, "outside_ms": outside, "outside_share": float(np.median(shares))}


def compare_folder(engine: Engine, photo: bytes, threads: int, rounds: int, work: Path) -> dict[str, Any]:
    """Images a second through a folder: the pipeline against a plain loop, each with all threads that it may use."""
    folder = work / "photos"
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number:03}.jpg" for number in range(FOLDER_PHOTOS)]
    for path in paths:
        path.write_bytes(photo)
    options = PipelineOptions(runs=threads)
    loading = loading_for(engine.backend, ImageFiles(paths, "photos"), options)
    with Detector.load(engine, threads=threads) as alone, Detector.load(engine, loading=loading) as shared:

        def loop() -> None:
            for path in paths:
                alone(path)

        def pipeline() -> None:
            for _ in Pipeline(shared, ImageFiles(paths, "photos"), options, loading):
                pass

        times = time_ways({"plain loop": loop, "pipeline": pipeline}, rounds, runs=1)
    turns = {name: np.median(own, axis=1) for name, own in times.items()}
    return {
        "photos": len(paths),
        "runs_at_once": loading.parallel_runs,
        "threads_a_run": loading.threads_of_a_run(),
        "images_per_second": {name: 1000 * len(paths) / float(np.median(own)) for name, own in times.items()},
        "pipeline_over_loop": float(np.median(turns["plain loop"] / turns["pipeline"])),
        "milliseconds": {name: np.round(own, 1).tolist() for name, own in times.items()},
    }


def measure_subject(subject: Subject, arguments: argparse.Namespace, photo: bytes, work: Path) -> dict[str, Any]:
    """All parts of one model that are not skipped, by the name of the part."""
    logger.info("%s: exporting", subject.title)
    engines = make_engines(subject, work)
    result: dict[str, Any] = {"model": subject.spec.name, "image_size": list(subject.spec.image_size)}
    if "latency" not in arguments.skip:
        result["latency"] = compare_latency(
            subject, engines, photo, arguments.threads, arguments.rounds, arguments.compile, work
        )
    if "folder" not in arguments.skip:
        logger.info("%s: a folder", subject.title)
        result["folder"] = {
            name: compare_folder(engine, photo, arguments.threads, arguments.rounds, work)
            for name, engine in engines.items()
        }
    jpeg = work / "photo.jpg"
    jpeg.write_bytes(photo)
    if "process" not in arguments.skip:
        logger.info("%s: cold starts", subject.title)
        result["process"] = {
            name: measure_cold_start(engine.path, jpeg, arguments.starts) for name, engine in engines.items()
        }
    if "growth" not in arguments.skip:
        logger.info("%s: %d images through one process", subject.title, arguments.growth_images)
        result["growth"] = measure_growth(engines["onnxruntime"].path, jpeg, arguments.growth_images)
    return result


def _run(arguments: argparse.Namespace) -> Result:
    subjects = [read_subject(text) for text in arguments.models]
    photo = make_photo()
    results = []
    for number, subject in enumerate(subjects):
        own = argparse.Namespace(**vars(arguments))
        if number:
            # What would grow is the memory of Python and of the runtime, so one network shows it.
            own.skip = [*arguments.skip, "growth"]
        with tempfile.TemporaryDirectory(prefix="edge-effdet-") as folder:
            results.append(measure_subject(subject, own, photo, Path(folder)))
    result: dict[str, Any] = {
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "photo": {"height": PHOTO[0], "width": PHOTO[1], "bytes": len(photo)},
        "weights": "random, seed 0, or the checkpoint that a model names",
        "models": results,
    }
    if "install" not in arguments.skip:
        logger.info("installing the device side")
        result["install"] = measure_install()
    path = save_result("-".join(filter(None, ("runner", arguments.name))), result)
    return Result(f"{describe_runner(result)}\n\n{path}", result)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        "benchmarks", "Measure the runner against its peers.", "python -m benchmarks.runner --skip growth"
    )
    parser.add_argument(
        "--models", nargs="+", default=list(MODELS), metavar="M",
        help=f"NAME@SIZE with random weights, or a .safetensors (default: {' '.join(MODELS)})",
    )  # fmt: skip
    cores = len(os.sched_getaffinity(0))
    parser.add_argument(
        "--threads", type=positive, default=cores, metavar="N", help=f"threads of each way (default: {cores})"
    )
    parser.add_argument("--rounds", type=positive, default=8, metavar="N", help="turns of each way (default: 8)")
    parser.add_argument(
        "--starts", type=positive, default=7, metavar="N", help="how many cold starts are measured (default: 7)"
    )
    parser.add_argument(
        "--growth-images",
        type=positive,
        default=20_000,
        metavar="N",
        help="images through one process (default: 20000)",
    )
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="whether torch.compile is timed, which takes minutes",
    )
    parser.add_argument("--skip", nargs="+", default=[], choices=PARTS, help="parts that are not measured")
    parser.add_argument("--name", default="", help="the name of the result file, after runner-")
    return run_verb(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
