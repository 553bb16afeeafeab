"""Find objects: ``(Engine, images) -> Detections``. What runs on the device; it imports no torch."""

from __future__ import annotations

import argparse
import logging
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edge_effdet.artifacts import Detections, Engine, ModelSpec, load_engine, write_json
from edge_effdet.backends.base import Runner, get_backend, require
from edge_effdet.cli import Result, make_parser, run_verb, table
from edge_effdet.detector import DetectOptions, Detector
from edge_effdet.errors import DataError, UsageError
from edge_effdet.images import list_images, read_image
from edge_effdet.preprocess import fill_input

logger = logging.getLogger("edge_effdet.detect")


def detect_image(runner: Runner, image: np.ndarray, spec: ModelSpec, score_threshold: float) -> Detections:
    """Find objects in one picture.

    Args:
        runner: a loaded engine with the graph's contract.
        image: uint8 [height, width, 3], RGB.
        spec: the engine's.
        score_threshold: lower scores are dropped.
    """
    return Detector(runner, spec, DetectOptions(score_threshold))(image)


def feeds_for_image(runner: Runner, image: np.ndarray, spec: ModelSpec) -> dict[str, np.ndarray]:
    """The engine's input for one picture: letterboxed, of the engine's type, repeated where its batch is fixed above 1."""
    batch = np.empty((max(1, runner.inputs[0].shape[0]), 3, *spec.image_size), np.uint8)
    for row in batch:
        fill_input(image, row, spec.preprocess)
    return {"images": batch.astype(runner.inputs[0].dtype, copy=False)}


def detect_files(
    engine: Engine, paths: Sequence[Path], score_threshold: float
) -> Iterator[tuple[Path, np.ndarray, Detections]]:
    """Each picture that can be decoded, with what was found in it; others are skipped with a warning."""
    with get_backend(engine.backend).load(engine) as runner:
        for path, image in readable_sources(paths):
            yield path, image, detect_image(runner, image, engine.spec, score_threshold)


def find_sources(source: Path) -> list[Path]:
    """The pictures that ``--source`` names: one file, or a folder's.

    Raises:
        DataError: nothing there, or a folder without pictures.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise DataError(f"There is no image or folder at {source}; check --source.")
    images = list_images(source)
    if not images:
        raise DataError(f"{source} holds no images (.jpg, .png, …); give another folder.")
    return images


def readable_sources(paths: Sequence[Path]) -> Iterator[tuple[Path, np.ndarray]]:
    """Each picture that can be decoded; others are skipped with a warning and counted.

    Raises:
        DataError: none could be decoded.
    """
    skipped = 0
    for path in paths:
        try:
            image = read_image(path)
        except DataError as error:
            if len(paths) == 1:
                raise
            skipped += 1
            logger.warning("skipped an image: %s", error)
            continue
        yield path, image
    if skipped == len(paths):
        raise DataError("None of the images could be decoded; check the files.")
    if skipped:
        logger.warning("%d of %d images could not be decoded and were left out", skipped, len(paths))


def picture_names(sources: Sequence[Path]) -> dict[Path, str]:
    """A file name for each annotated picture; a.jpg and a.png are two pictures."""
    stems = Counter(path.stem for path in sources)
    return {path: f"{path.stem if stems[path.stem] == 1 else path.name}.jpg" for path in sources}


def results_table(results: Sequence[dict[str, Any]]) -> str:
    """What ``detections_to_json`` gave of each picture, for people: one line a picture."""
    rows = [("image", "objects", "found")]
    for result in results:
        names = [item["class"] for item in result["detections"]]
        counts = ", ".join(f"{names.count(name)} {name}" for name in dict.fromkeys(names))
        rows.append((Path(result["image"]).name, str(len(names)), counts or "nothing"))
    return table(rows)


def add_picture_options(parser: argparse.ArgumentParser) -> None:
    """The flags of a verb that looks at pictures; ``check_picture_options`` refuses what makes no sense."""
    parser.add_argument("--source", type=Path, required=True, metavar="S", help="an image or a folder of images")
    parser.add_argument("--output", type=Path, metavar="DIR", help="write annotated pictures and detections.json here")
    parser.add_argument(
        "--score-threshold", type=float, default=0.3, metavar="X", help="lower scores are dropped (default: 0.3)"
    )


def check_picture_options(score_threshold: float, output: Path | None, sources: Sequence[Path]) -> None:
    """Raises UsageError for a threshold that is none, or an output folder whose pictures would be overwritten."""
    if not 0 <= score_threshold <= 1:
        raise UsageError(f"A score threshold of {score_threshold} is not between 0 and 1; 0.3 is usual.")
    if output and output.resolve() == sources[0].resolve().parent:
        raise UsageError(
            f"--output {output} is the folder of the images themselves, which the annotated ones would overwrite; give "
            "another folder."
        )


def detections_to_json(path: Path, detections: Detections, spec: ModelSpec) -> dict[str, object]:
    """One picture's detections for machines; boxes are xyxy in pixels of the original."""
    rows = zip(detections.boxes.tolist(), detections.scores.tolist(), detections.class_ids.tolist(), strict=True)
    return {
        "image": str(path),
        "detections": [
            {
                "box": [round(value, 2) for value in box],
                "score": round(score, 4),
                "class": spec.class_names[class_id],
                "class_id": class_id,
                "category_id": spec.category_ids[class_id],
            }
            for box, score, class_id in rows
        ],
    }


def make_argument_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "detect",
        "Find objects in images with an engine.",
        "python -m edge_effdet.detect --engine engines/quickstart.int8.onnx --source photos --output found",
    )
    parser.add_argument("--engine", type=Path, required=True, metavar="F", help="an engine that build_engine wrote")
    add_picture_options(parser)
    return parser


def _run(arguments: argparse.Namespace) -> Result:
    engine = load_engine(arguments.engine)
    require(engine.backend)
    sources = find_sources(arguments.source)
    check_picture_options(arguments.score_threshold, arguments.output, sources)
    names = picture_names(sources)
    results: list[dict[str, Any]] = []
    for path, image, found in detect_files(engine, sources, arguments.score_threshold):
        results.append(detections_to_json(path, found, engine.spec))
        if arguments.output:
            from edge_effdet.drawing import save_annotated

            save_annotated(arguments.output / names[path], image, found, engine.spec)
    data = {"engine": str(engine.path), "engine_sha256": engine.sha256, "images": results}
    if arguments.output:
        write_json(arguments.output / "detections.json", data)
    return Result(results_table(results), data)


def main(argv: Sequence[str] | None = None) -> int:
    return run_verb(make_argument_parser(), _run, argv)


if __name__ == "__main__":
    sys.exit(main())
