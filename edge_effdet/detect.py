"""``python -m edge_effdet.detect``: find objects with an engine. It runs on the device and imports no torch.

The work is in ``runtime``: ``runtime.detector`` (one picture), ``runtime.pipeline`` (many), ``runtime.sources``
(where pictures come from), ``runtime.sinks`` (where results go), ``runtime.tracking`` and ``sending`` (results over a wire).
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

from edge_effdet.artifacts import Engine, load_engine
from edge_effdet.backends.base import require
from edge_effdet.cli import Result, add_options, make_parser, options_from, run_verb, table
from edge_effdet.runtime.detector import DetectOptions, Detector
from edge_effdet.runtime.pipeline import FrameResult, Pipeline, PipelineOptions, Progress, loading_for
from edge_effdet.runtime.run import (
    RunOptions,
    _draws,
    follow_objects,
    make_sinks,
    output_files,
    prepare_output,
    results_table,
    run_through,
)
from edge_effdet.runtime.sinks import (
    JsonObject,
    Sink,
)
from edge_effdet.runtime.sources import Source, open_source
from edge_effdet.runtime.tracking import TrackOptions, make_tracker, refuse_pictures
from edge_effdet.sending.options import SendOptions, make_senders, require_packages, spool_beside
from edge_effdet.sending.report import reports_of

logger = logging.getLogger("edge_effdet.detect")


def make_argument_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "detect",
        "Find objects with an engine in an image, a folder of images, a video, or the stream of a camera.",
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
    add_options(parser, DetectOptions, RunOptions, PipelineOptions, TrackOptions, SendOptions)
    return parser


def _run(arguments: argparse.Namespace) -> Result:
    options = options_from(DetectOptions, arguments)
    running, pipelining = options_from(RunOptions, arguments), options_from(PipelineOptions, arguments)
    tracking, sending = options_from(TrackOptions, arguments), options_from(SendOptions, arguments)
    engine = load_engine(arguments.engine)
    require(engine.backend)
    require_packages(sending)
    source = open_source(arguments.source)
    refuse_pictures(tracking, source)
    tracker = make_tracker(tracking)
    output: Path | None = arguments.output
    if output is not None:
        files = output_files(source, running, output)
        prepare_output(output, files, source, [engine.path, engine.json_path])
    loading = loading_for(engine.backend, source, pipelining, running.threads)
    counts: Counter[str] = Counter()
    with Detector.load(
        engine, options=options, batch_size=running.batch_size, loading=loading, self_check=running.self_check
    ) as detector:
        # The sinks are opened after loading, so that an engine that fails to load leaves no folder.
        sinks = make_sinks(source, engine, running, output, arguments.json)
        sinks += make_senders(sending, engine.spec, source.name, None if output is None else spool_beside(output))
        with Pipeline(detector, source, pipelining, loading, keep_images=_draws(sinks)) as pipeline:
            frames: Iterator[FrameResult] = islice(pipeline, running.limit or None)
            if tracker is not None:
                frames = follow_objects(frames, tracker)
            started = time.perf_counter()
            try:
                run_through(frames, sinks, pipeline.progress, counts, alone=source.total == 1)
            except KeyboardInterrupt:
                logger.warning("stopped: %s; what was done is kept", pipeline.progress.text())
                for report in reports_of(sinks):
                    logger.warning("%s", report.text())
                raise
            seconds = time.perf_counter() - started
    return _result(engine, source, sinks, pipeline.progress, seconds, counts, output)


def _result(
    engine: Engine,
    source: Source,
    sinks: Sequence[Sink],
    progress: Progress,
    seconds: float,
    counts: Counter[Any],
    output: Path | None,
) -> Result:
    reports = reports_of(sinks)
    told = "".join(f"\n{report.text()}" for report in reports)
    sent = {"sending": [asdict(report) for report in reports]} if reports else {}
    if sinks and isinstance(sinks[0], JsonObject):
        return Result(results_table(sinks[0].data["images"]) + told, {**sinks[0].data, **sent})
    data: dict[str, Any] = {
        "engine": str(engine.path),
        "engine_sha256": engine.sha256,
        "source": source.name,
        "images": progress.done,
        "skipped": progress.failed,
        "dropped": progress.dropped,
        "seconds": round(seconds, 3),
        "objects": {engine.spec.class_names[class_id]: count for class_id, count in counts.most_common()},
        **sent,
    }
    rows = [("found", "number"), *((name, str(count)) for name, count in data["objects"].items())]
    text = f"{table(rows)}\n\n{progress.text()}, in {seconds:.1f} s{told}"
    return Result(f"{text}\nwritten to {output}" if output else text, data)


def main(argv: Sequence[str] | None = None) -> int:
    return run_verb(make_argument_parser(), _run, argv)


if __name__ == "__main__":
    sys.exit(main())
