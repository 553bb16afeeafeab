"""From a source to its sinks: what ``detect`` does with the frames of a pipeline."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_effdet.artifacts import Engine
from edge_effdet.cli import table
from edge_effdet.errors import DataError, UsageError
from edge_effdet.options import option
from edge_effdet.runtime.pipeline import FrameResult, Progress
from edge_effdet.runtime.sinks import (
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
from edge_effdet.runtime.sources import ImageFiles, Source

logger = logging.getLogger("edge_effdet.detect")


SHOWN_EVERY = 0.2
"""Seconds between two looks at the rate."""


@dataclass(frozen=True, slots=True)
class RunOptions:
    """How the engine runs and what is written.

    Raises:
        UsageError: a number makes no sense.
    """

    threads: int = option(
        0, help="threads of one run on a CPU; 0 for the cores that this process may use, shared by the runs"
    )
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

    def __post_init__(self) -> None:
        if self.threads < 0:
            raise UsageError(f"`threads` {self.threads} makes no sense; give at least 1, or 0 for all cores.")
        if self.limit < 0:
            raise UsageError(f"`limit` {self.limit} makes no sense; give 0 for all images, or a number.")


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
            f"`output` {output} is the folder of the images themselves, which the annotated ones would overwrite; give "
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
    pipeline: Iterator[FrameResult], sinks: Sequence[Sink], progress: Progress, counts: Counter[str], alone: bool
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


def _draws(sinks: Sequence[Sink]) -> bool:
    return any(isinstance(sink, AnnotatedPictures | AnnotatedVideo) for sink in sinks)
