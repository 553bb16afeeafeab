"""AP of rows, their comparison, and the pictures in which two engines differ."""

from __future__ import annotations

import base64
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edge_effdet.artifacts import Detections, Engine, ModelSpec
from edge_effdet.benchmarking.quality import (
    compare_quality,
    find_differences,
    measure_quality,
    precision_curve,
    reference_row,
)
from edge_effdet.data.base import Sample, make_sample
from edge_effdet.errors import DataError
from edge_effdet.evaluation.matching import match_within_classes
from tests.reports import bare_row

SPEC = ModelSpec("tiny", (64, 64), ("cell", "plate"), (1, 2))
CLASSES = dict.fromkeys(("int8", "fp32", "skipped"), SPEC.class_names)
BOX = (10.0, 10.0, 40.0, 40.0)


def make_samples(folder: Path, count: int) -> list[Sample]:
    samples = []
    for number in range(count):
        path = folder / f"{number}.png"
        Image.new("RGB", (64, 64), (10 * number, 90, 90)).save(path)
        samples.append(make_sample(str(number), path, 64, 64, [(BOX, 0, False)], "x"))
    return samples


def found_at(box=BOX, score: float = 0.9) -> Detections:
    return Detections(np.array([box], np.float32), np.array([score], np.float32), np.array([0], np.int32))


NOTHING = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int32))


@pytest.fixture
def samples(tmp_path: Path) -> list[Sample]:
    return make_samples(tmp_path, 6)


def quality_of(samples: list[Sample], found: list[Detections]):
    return measure_quality(Engine(Path("x.onnx"), SPEC, "onnxruntime", "fp32", "ab" * 32), samples, found)


def test_a_perfect_detector_and_a_blind_one(samples):
    perfect, blind = quality_of(samples, [found_at()] * 6), quality_of(samples, [NOTHING] * 6)
    assert perfect.AP == pytest.approx(1) and perfect.curves[0].precision == (1.0,) * 101
    assert blind.AP == 0 and blind.curves[0].precision == (0.0,) * 101
    # No box is that large.
    assert perfect.AP_large is None
    assert perfect.engine_sha256 == "ab" * 32


def test_a_curve_is_that_of_the_evaluation(samples):
    """Half of the boxes are found: precision is 1 up to a recall of one half and 0 beyond; its mean is the AP of COCO at that overlap."""
    found = [found_at() if number % 2 else NOTHING for number in range(6)]
    curve = precision_curve(match_within_classes(samples, found, 2), 0.5)
    assert curve.precision[:51] == (1.0,) * 51 and curve.precision[51:] == (0.0,) * 50
    assert np.mean(curve.precision) == pytest.approx(quality_of(samples, found).AP50, abs=1e-4)


def test_without_a_labelled_box_there_is_no_ap(samples):
    empty = [
        replace(sample, boxes=sample.boxes[:0], class_ids=sample.class_ids[:0], ignore=sample.ignore[:0])
        for sample in samples
    ]
    with pytest.raises(DataError, match="labelled box"):
        quality_of(empty, [NOTHING] * 6)


def test_rows_are_compared_with_the_best_fp32_row(samples):
    exact, lossy = [found_at()] * 6, [found_at() if number else NOTHING for number in range(6)]
    rows = [
        replace(bare_row("int8"), precision="int8", quality=quality_of(samples, lossy)),
        replace(bare_row("fp32"), quality=quality_of(samples, exact)),
        bare_row("skipped"),
    ]
    assert reference_row(rows).name == "fp32"
    compared = compare_quality(rows, {"int8": samples, "fp32": samples}, {"int8": lossy, "fp32": exact}, CLASSES)
    quality = compared[0].quality
    assert quality.reference == "fp32" and quality.drop == pytest.approx(100 * (1 - quality.AP))
    # Six images give no interval.
    assert quality.drop_interval is None
    assert compared[1].quality.drop is None and compared[2].quality is None


def test_enough_images_give_an_interval(tmp_path: Path):
    samples = make_samples(tmp_path, 12)
    exact, lossy = [found_at()] * 12, [found_at() if number % 4 else NOTHING for number in range(12)]
    rows = [
        replace(bare_row("int8"), precision="int8", quality=quality_of(samples, lossy)),
        replace(bare_row("fp32"), quality=quality_of(samples, exact)),
    ]
    found = {"int8": lossy, "fp32": exact}
    quality = compare_quality(rows, {"int8": samples, "fp32": samples}, found, CLASSES)[0].quality
    assert quality.drop_interval[0] <= quality.drop <= quality.drop_interval[1]


def test_engines_with_other_classes_are_not_compared(samples):
    """The same class has another number there, so their detections cannot be held against the same boxes."""
    rows = [
        replace(bare_row("int8"), precision="int8", quality=quality_of(samples, [found_at()] * 6)),
        replace(bare_row("fp32"), quality=quality_of(samples, [found_at()] * 6)),
    ]
    found = dict.fromkeys(("int8", "fp32"), [found_at()] * 6)
    others = {**CLASSES, "int8": ("plate", "cell")}
    compared = compare_quality(rows, {"int8": samples, "fp32": samples}, found, others)
    assert compared[0].quality.drop is None and compared[0].quality.reference is None


def test_a_single_engine_is_compared_with_nothing(samples):
    rows = [replace(bare_row("fp32"), quality=quality_of(samples, [found_at()] * 6))]
    assert compare_quality(rows, {"fp32": samples}, {"fp32": [found_at()] * 6}, CLASSES) == tuple(rows)


def test_the_pictures_that_differ_most_come_first_and_the_same_ones_not_at_all(samples):
    first = [found_at()] * 6
    second = [found_at(), found_at(score=0.6), NOTHING, found_at(), found_at((0, 0, 9, 9)), found_at()]
    found = find_differences(samples, SPEC, ("fp32", first), ("int8", second), 0.3, 5)
    assert [each.image for each in found][-1] == "1.png" and {each.image for each in found} == {
        "1.png",
        "2.png",
        "4.png",
    }
    assert found[0].distance >= found[-1].distance > 0
    picture = Image.open(io.BytesIO(base64.b64decode(found[0].jpeg)))
    assert picture.format == "JPEG" and picture.size == (64 + 8 + 64, 64)
    assert found[0].found[0].row == "fp32" and len(found[0].found[0].boxes) == 1


def test_a_difference_below_the_threshold_is_no_reason_to_show_a_picture(samples):
    assert not find_differences(samples, SPEC, ("a", [found_at(score=0.2)] * 6), ("b", [NOTHING] * 6), 0.3, 5)
