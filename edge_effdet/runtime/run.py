"""From a source to its sinks: what ``detect`` does with the frames of a pipeline."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edge_effdet.artifacts import Engine, refuse_overwrite, require_writable
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
    refuse_other_results,
    results_name,
    video_name,
)
from edge_effdet.runtime.sources import ImageFiles, Source
from edge_effdet.runtime.tracking import Tracker

logger = logging.getLogger("edge_effdet.detect")


SHOWN_EVERY = 0.2
"""Seconds between two looks at the rate."""

_SUFFIXES = {"json": ".json", "jsonl": ".jsonl", "coco": ".coco.json"}
"""How the file of results ends, by its kind."""


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


def output_files(source: Source, options: RunOptions, output: Path) -> list[Path]:
    """The files that a run writes into the folder ``output``."""
    kind = _results_kind(source, options)
    files = [] if kind == "none" else [output / f"{results_name(source)}{_SUFFIXES[kind]}"]
    if not options.draw:
        return files
    if isinstance(source, ImageFiles):
        return [*files, *(output / name for name in picture_names(source.paths).values())]
    return [*files, output / video_name(source)]


def prepare_output(output: Path, files: Sequence[Path], source: Source, models: Sequence[Path]) -> None:
    """See before the work that its results can be written, and that they take the place of nothing else.

    Args:
        output: a folder.
        files: what will be written into it.
        source: what is looked at.
        models: the files of what looks at it.

    Raises:
        UsageError: an input would be overwritten, annotated pictures would lie among those that are read, or the folder holds results of
            another source.
        InputError: the folder cannot be made or written.
    """
    read = source.paths if isinstance(source, ImageFiles) else [Path(source.name)]
    if isinstance(source, ImageFiles) and output.resolve() == source.paths[0].resolve().parent:
        raise UsageError(
            f"`output` {output} is the folder of the images themselves, which the annotated ones would overwrite; give "
            "another folder."
        )
    refuse_overwrite(files, [*read, *models])
    drawn = any(file.suffix.lower() in (".jpg", ".mp4") for file in files)
    for record in (output / f"{results_name(source)}{suffix}" for suffix in (".json", ".jsonl")):
        # Annotated pictures do not tell where they are from, but the results beside them do, in whatever form.
        if drawn or record in files:
            refuse_other_results(record, source)
    require_writable(output, keep=False)


def make_sinks(source: Source, engine: Engine, options: RunOptions, output: Path | None, as_json: bool) -> list[Sink]:
    """What the results go to. Where they are held in memory, a ``JsonObject`` comes first."""
    spec, kind = engine.spec, _results_kind(source, options)
    path = output / f"{results_name(source)}{_SUFFIXES[kind]}" if output and kind != "none" else None
    sinks: list[Sink] = []
    if kind == "json":
        sinks.append(JsonObject(path, spec, {"engine": str(engine.path), "engine_sha256": engine.sha256}))
    elif path is not None:
        sinks.append(JsonLines(path, spec) if kind == "jsonl" else CocoResults(path, spec))
    if as_json and kind != "json":
        sinks.append(JsonLines(None, spec))
    if output and options.draw:
        if isinstance(source, ImageFiles):
            names = {str(path): name for path, name in picture_names(source.paths).items()}
            sinks.append(AnnotatedPictures(output, names, spec))
        else:
            sinks.append(AnnotatedVideo(output / video_name(source), spec, source.rate))
    return sinks


def _results_kind(source: Source, options: RunOptions) -> str:
    if options.results != "auto":
        return options.results
    return "json" if isinstance(source, ImageFiles) else "jsonl"


def follow_objects(frames: Iterable[FrameResult], tracker: Tracker) -> Iterator[FrameResult]:
    """Number the objects of frames as they come through.

    Args:
        frames: of one video or camera, in their order.
        tracker: for this source alone.
    """
    for found in frames:
        yield track_frame(found, tracker)


def track_frame(found: FrameResult, tracker: Tracker) -> FrameResult:
    """Number the objects of the next frame of a video or a camera; see ``follow_objects``."""
    picture = found.frame.picture
    if found.detections is None or isinstance(picture, Path):
        return found
    return replace(found, detections=tracker.update(found.detections, (picture.shape[0], picture.shape[1])))


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
