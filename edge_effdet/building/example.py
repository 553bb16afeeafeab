"""A picture for the eye: what an engine finds in a few annotated images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from edge_effdet.artifacts import Engine
from edge_effdet.backends.base import load_runner
from edge_effdet.data.base import Sample, readable_images
from edge_effdet.runtime.detector import detect_image

PICTURES = 4


PICTURE_THRESHOLD = 0.4


def save_example(engine: Engine, samples: Sequence[Sample], path: Path) -> None:
    """A sheet of a few annotated pictures: the ones with most objects."""
    from edge_effdet.runtime.drawing import contact_sheet, draw_detections, save_picture

    richest = sorted(samples, key=lambda sample: (-len(sample.boxes), sample.image_id))[:PICTURES]
    pictures = []
    with load_runner(engine) as runner:
        for _, image in readable_images(richest):
            found = detect_image(runner, image, engine.spec, PICTURE_THRESHOLD)
            pictures.append(draw_detections(image, found, engine.spec))
    if pictures:
        save_picture(path, contact_sheet(pictures, columns=2))
