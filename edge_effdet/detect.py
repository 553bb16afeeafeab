"""Find objects: ``(Engine, pictures) -> Detections``. What runs on the device; it imports no torch.

The work is in ``detector`` (one picture), ``pipeline`` (many) and ``sources`` and ``sinks`` (where they come from and go to).
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from edge_effdet.artifacts import Detections, Engine, ModelSpec, load_engine
from edge_effdet.backends.base import Runner, require
from edge_effdet.cli import Result, add_options, make_parser, option, options_from, run_verb, table
from edge_effdet.detector import DetectOptions, Detector
from edge_effdet.errors import DataError, UsageError
from edge_effdet.pipeline import Found, Pipeline, PipelineOptions, Progress, loading_for
from edge_effdet.sinks import (
    RESULTS,
    AnnotatedPictures,
    AnnotatedVideo,
    CocoResults,
    JsonLines,
    JsonObject,
    Sink,
    picture_names,
    video_name,
)
from edge_effdet.sources import ImageFiles, Source, open_source

logger = logging.getLogger("edge_effdet.detect")

SHOWN_EVERY = 0.2
"""Seconds between two looks at the rate."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    threads: int = option(0, help="of one run on a CPU; 0 for the cores that this process may use, shared by the runs")
    batch_size: int | None = option(None, help="images a run, for an engine with a dynamic batch (default: 1)")
    limit: int = option(0, help="stop after so many images; 0 for all")
    results: str = option(
        "auto",
        help="the file of results in --output: detections.json for pictures and .jsonl, a line a frame, for video",
        choices=RESULTS,
    )
    draw: bool = option(True, help="write annotated pictures or an annotated video into --output")
    self_check: bool = option(
        True, help="on a machine of another kind than the engine was proven on, see first that it finds the same there"
    )

    def check(self) -> RunOptions:
        """These options. Raises UsageError for a number that makes no sense."""
        if self.threads < 0:
            raise UsageError(f"--threads {self.threads} makes no sense; give at least 1, or 0 for all cores.")
        if self.limit < 0:
            raise UsageError(f"--limit {self.limit} makes no sense; give 0 for all images, or a number.")
        return self


def detect_image(runner: Runner, image: np.ndarray, spec: ModelSpec, score_threshold: float) -> Detections:
    """Find objects in one picture.

    Args:
        runner: a loaded engine with the graph's contract.
        image: uint8 [height, width, 3], RGB.
        spec: the engine's.
        score_threshold: lower scores are dropped.
    """
    return Detector(runner, spec, DetectOptions(score_threshold))(image)


def results_table(results: Sequence[dict[str, Any]]) -> str:
    """What ``detections_to_json`` gave of each picture, for people: one line a picture."""
    rows = [("image", "objects", "found")]
    for result in results:
        names = [item["class"] for item in result["detections"]]
        counts = ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names))
        rows.append((Path(result["image"]).name, str(len(names)), counts or "nothing"))
    return table(rows)


def refuse_own_folder(output: Path | None, sources: Sequence[Path]) -> None:
    """Raises UsageError for an output folder whose pictures would be overwritten."""
    if output and output.resolve() == sources[0].resolve().parent:
        raise UsageError(
            f"--output {output} is the folder of the images themselves, which the annotated ones would overwrite; give "
            "another folder."
        )


def make_sinks(source: Source, engine: Engine, options: RunOptions, output: Path | None, as_json: bool) -> list[Sink]:
    """What the results go to. Where they are held in memory, a ``JsonObject`` comes first."""
    spec, pictures = engine.spec, isinstance(source, ImageFiles)
    kind = options.results if options.results != "auto" else "json" if pictures else "jsonl"
    name = "detections" if pictures else video_name(source)
    sinks: list[Sink] = []
    if kind == "json":
        head = {"engine": str(engine.path), "engine_sha256": engine.sha256}
        sinks.append(JsonObject(output / f"{name}.json" if output else None, spec, head))
    elif output and kind != "none":
        path = output / f"{name}.{'jsonl' if kind == 'jsonl' else 'coco.json'}"
        sinks.append(JsonLines(path, spec) if kind == "jsonl" else CocoResults(path, spec))
    if as_json and kind != "json":
        sinks.append(JsonLines(None, spec))
    if output and options.draw:
        if isinstance(source, ImageFiles):
            names = {str(path): name for path, name in picture_names(source.paths).items()}
            sinks.append(AnnotatedPictures(output, names, spec))
        else:
            sinks.append(AnnotatedVideo(output / f"{name}.mp4", spec, source.rate))
    return sinks


def run_through(
    pipeline: Iterator[Found], sinks: Sequence[Sink], progress: Progress, counts: Counter[str], alone: bool
) -> None:
    """Give every frame to every sink, close them whatever happens, and count what was found by class id.

    Args:
        pipeline: what is found.
        sinks: where it goes.
        progress: shown while it goes on, where a person is looking.
        counts: added to.
        alone: there is one picture only, and not to know what is in it is an error.

    Raises:
        DataError: the only picture, or every one, could not be decoded.
    """
    shown = 0.0
    visible = sys.stderr.isatty()
    with contextlib.ExitStack() as closing:
        for sink in sinks:
            closing.callback(sink.close)
        for found in pipeline:
            if found.detections is None:
                if alone:
                    raise DataError(found.problem)
                logger.warning("skipped an image: %s", found.problem)
            else:
                counts.update(found.detections.class_ids.tolist())
            for sink in sinks:
                sink.write(found)
            if visible and time.perf_counter() - shown > SHOWN_EVERY:
                shown = time.perf_counter()
                print(f"\r\x1b[K{progress.text()}", end="", file=sys.stderr, flush=True)
        if visible:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
    if progress.failed and not progress.done:
        raise DataError("None of the images could be decoded; check the files.")
    if progress.failed:
        total = progress.failed + progress.done
        logger.warning("%d of %d images could not be decoded and were left out", progress.failed, total)


def make_argument_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "detect",
        "Find objects with an engine: in an image, a folder of images, a video, or what a camera sees.",
        "python -m edge_effdet.detect --engine engines/quickstart.int8.onnx --source photos --output found",
    )
    parser.add_argument("--engine", type=Path, required=True, metavar="F", help="an engine that build_engine wrote")
    parser.add_argument(
        "--source", required=True, metavar="S",
        help="an image, a folder of images, a video, a camera (/dev/video0), a stream (rtsp://…), or a GStreamer pipeline",
    )  # fmt: skip
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="write annotated pictures or video and the results here"
    )
    add_options(parser, DetectOptions, RunOptions, PipelineOptions)
    return parser


def _run(arguments: argparse.Namespace) -> Result:
    options = options_from(DetectOptions, arguments).check()
    running, pipelining = options_from(RunOptions, arguments).check(), options_from(PipelineOptions, arguments).check()
    engine = load_engine(arguments.engine)
    require(engine.backend)
    source = open_source(arguments.source)
    output: Path | None = arguments.output
    if isinstance(source, ImageFiles):
        refuse_own_folder(output, source.paths)
    loading = loading_for(engine.backend, source, pipelining, running.threads)
    counts: Counter[str] = Counter()
    with Detector.load(
        engine, options=options, batch_size=running.batch_size, loading=loading, self_check=running.self_check
    ) as detector:
        # An engine that does not load leaves no folder behind; one that does shall not run for hours before it cannot write.
        sinks = make_sinks(source, engine, running, output, arguments.json)
        with Pipeline(detector, source, pipelining, loading, keep_images=_draws(sinks)) as pipeline:
            frames = islice(pipeline, running.limit or None)
            started = time.perf_counter()
            try:
                run_through(frames, sinks, pipeline.progress, counts, alone=source.total == 1)
            except KeyboardInterrupt:
                logger.warning("stopped: %s; what was done is kept", pipeline.progress.text())
                raise
            seconds = time.perf_counter() - started
    return _result(engine, source, sinks, pipeline.progress, seconds, counts, output)


def _draws(sinks: Sequence[Sink]) -> bool:
    return any(isinstance(sink, AnnotatedPictures | AnnotatedVideo) for sink in sinks)


def _result(
    engine: Engine,
    source: Source,
    sinks: Sequence[Sink],
    progress: Progress,
    seconds: float,
    counts: Counter[Any],
    output: Path | None,
) -> Result:
    if sinks and isinstance(sinks[0], JsonObject):
        return Result(results_table(sinks[0].data["images"]), sinks[0].data)
    data = {
        "engine": str(engine.path),
        "engine_sha256": engine.sha256,
        "source": source.name,
        "images": progress.done,
        "skipped": progress.failed,
        "dropped": progress.dropped,
        "seconds": round(seconds, 3),
        "objects": {engine.spec.class_names[class_id]: count for class_id, count in counts.most_common()},
    }
    rows = [("found", "number"), *((name, str(count)) for name, count in data["objects"].items())]
    text = f"{table(rows)}\n\n{progress.text()}, in {seconds:.1f} s"
    return Result(f"{text}\nwritten to {output}" if output else text, data)


def main(argv: Sequence[str] | None = None) -> int:
    return run_verb(make_argument_parser(), _run, argv)


if __name__ == "__main__":
    sys.exit(main())
