"""AP of the very files that were timed, on the same labelled images, and the pictures in which two engines differ most."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from edge_effdet.artifacts import Detections, Engine, ModelSpec, printable
from edge_effdet.benchmarking.record import Difference, Found, Precision, Quality, Row
from edge_effdet.data.base import Sample
from edge_effdet.evaluation.intervals import RECALLS, drop_interval, precision_at_recalls
from edge_effdet.evaluation.matching import ClassMatches, match_within_classes
from edge_effdet.evaluation.metrics import coco_metrics
from edge_effdet.evaluation.run import SCORE_FLOOR
from edge_effdet.runtime.agreement import detection_distance
from edge_effdet.runtime.drawing import draw_detections
from edge_effdet.runtime.images import read_image

CURVES = (0.5, 0.75)
"""The overlaps of which precision over recall is shown."""

LEAST_IMAGES = 10
"""Images without which no interval is given: from fewer, hardly any two draws differ."""

SIDE = 640
"""The longer side of a picture in the report, in pixels; a larger one would make the page heavy."""

QUALITY = 80
"""The JPEG quality of a picture in the report."""


def measure_quality(engine: Engine, samples: Sequence[Sample], found: Sequence[Detections]) -> Quality:
    """COCO's numbers of one engine.

    Args:
        engine: the engine.
        samples: the images that could be decoded, with class ids of the engine's spec.
        found: what the engine found in each of them.

    Raises:
        DataError: no image has a labelled box.
        MissingDependency: faster-coco-eval is not installed.
    """
    metrics = coco_metrics(samples, found, engine.spec)
    matches = match_within_classes(samples, found, engine.spec.num_classes)

    def known(value: float) -> float | None:
        return None if value != value else value

    return Quality(
        AP=metrics.AP,
        AP50=metrics.AP50,
        AP75=metrics.AP75,
        AP_small=known(metrics.AP_small),
        AP_medium=known(metrics.AP_medium),
        AP_large=known(metrics.AP_large),
        per_class=dict(metrics.per_class),
        boxes_per_class=dict(metrics.boxes_per_class),
        images=metrics.images,
        score_floor=SCORE_FLOOR,
        engine_sha256=engine.sha256,
        curves=tuple(precision_curve(matches, iou) for iou in CURVES),
    )


def precision_curve(matches: Sequence[ClassMatches], iou: float) -> Precision:
    """Precision at 101 recalls, averaged over the classes that have boxes, as COCO reads it (the best precision at that recall or a higher one).

    Args:
        matches: one entry a class.
        iou: one of COCO's ten overlaps.
    """
    row = round((iou - 0.5) / 0.05)
    # Each image counts once.
    curves = [precision_at_recalls(own, np.ones_like(own.boxes))[row] for own in matches if own.boxes.any()]
    mean = np.mean(curves, axis=0) if curves else np.zeros(len(RECALLS))
    return Precision(iou=iou, precision=tuple(np.round(mean, 5).tolist()))


def compare_quality(
    rows: Sequence[Row],
    samples: Mapping[str, Sequence[Sample]],
    found: Mapping[str, Sequence[Detections]],
    classes: Mapping[str, Sequence[str]],
) -> tuple[Row, ...]:
    """Add to each row the points lost against the best FP32 row, or against the best row where none is FP32.

    Only engines with the same classes in the same order that could decode the same images are compared.

    Args:
        rows: all rows; those without AP stay as they are.
        samples: the images that each engine could decode, by the row's name.
        found: what each engine found in them.
        classes: the class names of each engine.
    """
    judged = [row for row in rows if row.quality is not None]
    if len(judged) < 2:
        return tuple(rows)
    reference = reference_row(judged)
    compared = []
    for row in rows:
        if row.quality is None or reference.quality is None or row is reference:
            compared.append(row)
            continue
        same_images = len(samples[row.name]) == len(samples[reference.name])
        if tuple(classes[row.name]) != tuple(classes[reference.name]) or not same_images:
            compared.append(row)
            continue
        interval = None
        if len(samples[row.name]) >= LEAST_IMAGES:
            own = found[reference.name], found[row.name]
            interval = drop_interval(samples[row.name], *own, num_classes=len(classes[row.name]))
        drop = 100 * (reference.quality.AP - row.quality.AP)
        quality = replace(row.quality, reference=reference.name, drop=drop, drop_interval=interval)
        compared.append(replace(row, quality=quality))
    return tuple(compared)


def reference_row(rows: Sequence[Row]) -> Row:
    """The row that the others are compared with: of those in FP32 the one with the best AP, where there is AP, else the fastest."""
    exact = [row for row in rows if row.precision == "fp32"] or list(rows)
    with_ap = [row for row in exact if row.quality is not None]
    if with_ap:
        return max(with_ap, key=lambda row: (round(row.quality.AP, 4) if row.quality else 0, -_median_ms(row)))
    return min(exact, key=_median_ms)


def _median_ms(row: Row) -> float:
    single = row.scenario("SingleStream")
    return float("inf") if single is None or single.p50_ms is None else single.p50_ms.value


def find_differences(
    samples: Sequence[Sample],
    spec: ModelSpec,
    first: tuple[str, Sequence[Detections]],
    second: tuple[str, Sequence[Detections]],
    threshold: float,
    limit: int,
) -> tuple[Difference, ...]:
    """The pictures in which two engines differ most, the worst first; none in which they find the same.

    Args:
        samples: the images.
        spec: names the classes.
        first: the name of a row, and what its engine found in each image.
        second: the same of another row.
        threshold: boxes with lower scores are not shown; a difference below it is no reason to show a picture.
        limit: how many pictures at most.
    """
    shown = [[found.above(threshold) for found in own] for _, own in (first, second)]
    ranked = sorted(
        (
            (detection_distance([before], [after]), index)
            for index, (before, after) in enumerate(zip(*shown, strict=True))
        ),
        key=lambda each: -each[0],
    )
    differences = []
    for distance, index in ranked[:limit]:
        if distance == 0:
            break
        own = [(name, found[index]) for (name, _), found in zip((first, second), shown, strict=True)]
        differences.append(
            Difference(
                image=printable(samples[index].path.name),
                distance=distance,
                text=", ".join(f"{name}: {len(found)} {'box' if len(found) == 1 else 'boxes'}" for name, found in own),
                jpeg=_side_by_side(samples[index], [found for _, found in own], spec),
                found=tuple(
                    Found(
                        row=name,
                        boxes=tuple(tuple(box) for box in np.round(found.boxes.astype(float), 2).tolist()),  # type: ignore[misc]
                        scores=tuple(np.round(found.scores.astype(float), 4).tolist()),
                        class_ids=tuple(found.class_ids.tolist()),
                    )
                    for name, found in own
                ),
            )
        )
    return tuple(differences)


def _side_by_side(sample: Sample, found: Sequence[Detections], spec: ModelSpec) -> str:
    """The picture twice, with the boxes of each engine, a JPEG file in base64."""
    image = read_image(sample.path)
    height, width = image.shape[:2]
    factor = min(1.0, SIDE / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    small = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS))
    scaled = [replace(each, boxes=each.boxes * np.float32(factor)) for each in found]
    gap = np.full((size[1], 8, 3), 255, np.uint8)
    left, right = (draw_detections(small, each, spec) for each in scaled)
    stream = io.BytesIO()
    Image.fromarray(np.concatenate([left, gap, right], axis=1)).save(stream, "JPEG", quality=QUALITY)
    return base64.b64encode(stream.getvalue()).decode()
