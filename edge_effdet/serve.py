"""``python -m edge_effdet.serve``: an engine behind HTTP, for other systems and for people. It runs on the device and imports no torch.

The work is in ``serving``: ``serving.server`` (the service), ``serving.app`` (the routes), ``serving.batching`` (the line of pictures) and
``serving.live`` (a camera that is watched).
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from edge_effdet.artifacts import load_engine
from edge_effdet.backends.base import require
from edge_effdet.cli import Result, add_options, make_parser, options_from, run_verb
from edge_effdet.errors import MissingDependency, UsageError
from edge_effdet.runtime.detector import DetectOptions
from edge_effdet.runtime.sources import open_source
from edge_effdet.runtime.tracking import TrackOptions, make_tracker, refuse_pictures
from edge_effdet.sending.options import SendOptions, make_senders, require_packages
from edge_effdet.sending.report import reports_of
from edge_effdet.serving.options import EngineOptions, LimitOptions, ServeOptions

if TYPE_CHECKING:
    from edge_effdet.serving.server import Service

logger = logging.getLogger("edge_effdet.serve")


def make_argument_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "serve",
        "Answer pictures with boxes over HTTP, and show a camera with its boxes in a page.",
        "python -m edge_effdet.serve --engine engines/quickstart.int8.onnx --source /dev/video0",
    )
    parser.add_argument("--engine", type=Path, required=True, metavar="F", help="an engine that build_engine wrote")
    parser.add_argument(
        "--source", metavar="S",
        help="watch this too: a camera (/dev/video0), a stream (rtsp://…), a video, a folder of images, or a GStreamer pipeline",
    )  # fmt: skip
    add_options(parser, ServeOptions, LimitOptions, DetectOptions, EngineOptions, TrackOptions, SendOptions)
    return parser


def _run(arguments: argparse.Namespace) -> Result:
    listening, limits = options_from(ServeOptions, arguments), options_from(LimitOptions, arguments)
    detection, running = options_from(DetectOptions, arguments), options_from(EngineOptions, arguments)
    tracking, sending = options_from(TrackOptions, arguments), options_from(SendOptions, arguments)
    if arguments.source is None and (tracking.track or sending.mqtt or sending.webhook or sending.ros):
        raise UsageError("Objects are followed, and detections sent, of a source that is watched; add `source`.")
    engine = load_engine(arguments.engine)
    require(engine.backend)
    require_packages(sending)
    source = None if arguments.source is None else open_source(arguments.source)
    tracker = None
    if source is not None:
        refuse_pictures(tracking, source)
        tracker = make_tracker(tracking)
    try:
        from edge_effdet.serving.server import Service, Serving, serve_engine
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("edge_effdet"):
            raise
        raise MissingDependency(error.name or "starlette", "serve", "to answer over HTTP") from error
    sinks = [] if source is None else make_senders(sending, engine.spec, source.name)
    service = Service(engine, Serving(listening, limits, running, detection), arguments.source, sinks, tracker)
    serve_engine(service, lambda address: _announce(service, address))
    reports = reports_of(sinks)
    told = ["what was accepted is answered, and the service has ended", *(report.text() for report in reports)]
    return Result("\n".join(told), {"sending": [asdict(report) for report in reports]})


def _announce(service: Service, address: str) -> None:
    engine = service.engine
    logger.info(
        "%s (%s in %s by %s) listens on %s: / is a page, /docs the interface; Ctrl-C ends it",
        service.name, engine.path.name, engine.precision.upper(), engine.backend, address,
    )  # fmt: skip
    if service.guard.token is not None and service.options.certificate is None:
        logger.warning(
            "the token travels without encryption; give --certificate and --private-key, or put a proxy with TLS before the service"
        )


def main(argv: Sequence[str] | None = None) -> int:
    return run_verb(make_argument_parser(), _run, argv)


if __name__ == "__main__":
    sys.exit(main())
