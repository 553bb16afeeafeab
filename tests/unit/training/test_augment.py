"""An augmented sample: boxes on their objects, inside the picture, the same for the same seed, never lost for nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from edge_effdet.artifacts import PreprocessSpec
from edge_effdet.runtime.nms import iou_matrix
from edge_effdet.training.augment import augment_sample, make_mosaic
from edge_effdet.training.options import AugmentOptions

PREPROCESS = PreprocessSpec()
TARGET = (96, 128)
COLORS = ((255, 0, 0), (0, 255, 0), (0, 0, 255))
MANY = AugmentOptions(flip="both", brightness=0, contrast=0, affine_share=1)


def draw_discs(seed: int, height: int = 150, width: int = 200):
    """Three discs of their own colours that do not touch, with their boxes and classes."""
    rng = np.random.default_rng(seed)
    picture = Image.new("RGB", (width, height), (124, 116, 104))
    brush = ImageDraw.Draw(picture)
    boxes = []
    for number, color in enumerate(COLORS):
        side = int(rng.integers(30, 50))
        x, y = number * width // 3 + int(rng.integers(2, 14)), int(rng.integers(5, height - side - 5))
        brush.ellipse((x, y, x + side - 1, y + side - 1), fill=color)
        boxes.append([x, y, x + side, y + side])
    return np.asarray(picture), np.array(boxes, np.float32), np.arange(3)


def no_more():
    raise AssertionError("only a mosaic asks for another picture")


def pixels_of(image: np.ndarray, color) -> np.ndarray | None:
    """The box around the pixels of a colour, or None where there are few."""
    rows, columns = np.nonzero((np.abs(image.astype(int) - color) < 60).all(axis=2))
    if len(rows) < 20:
        return None
    return np.array([[columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]], np.float32)


@given(seed=st.integers(0, 10_000), mosaic=st.sampled_from([0.0, 1.0]))
@settings(max_examples=60, deadline=None)
def test_boxes_stay_on_their_objects(seed: int, mosaic: float):
    options = replace(MANY, mosaic=mosaic)
    sample = draw_discs(seed)
    rng = np.random.default_rng(seed)
    blank = (np.full((50, 60, 3), 124, np.uint8), np.empty((0, 4), np.float32), np.empty(0, np.int64))
    image, boxes, class_ids = augment_sample(sample, lambda: blank, TARGET, PREPROCESS, options, rng)
    assert image.shape == (*TARGET, 3) and image.dtype == np.uint8
    assert boxes.dtype == np.float32 and len(boxes) == len(class_ids) == len(set(class_ids.tolist()))
    assert (boxes >= 0).all() and (boxes <= [TARGET[1], TARGET[0]] * 2).all()
    for box, class_id in zip(boxes, class_ids, strict=True):
        seen = pixels_of(image, COLORS[class_id])
        whole = (box > 1).all() and (box[2:] < [TARGET[1] - 1, TARGET[0] - 1]).all()
        if seen is not None and whole and mosaic == 0 and min(box[2:] - box[:2]) > 12:
            # A disc cut by the first crop keeps a box around what an ellipse of the cut size would be, hence not 0.9.
            assert iou_matrix(box[None], seen)[0, 0] > 0.55


def test_a_whole_disc_keeps_a_tight_box_at_any_angle():
    image, boxes, class_ids = draw_discs(3)
    turned = AugmentOptions(
        scale_min=0.8, scale_max=1, flip="none", brightness=0, contrast=0, shift=0, zoom=0, rotate=25, affine_share=1
    )
    for seed in range(20):
        rng = np.random.default_rng(seed)
        canvas, moved, kept = augment_sample((image, boxes, class_ids), no_more, TARGET, PREPROCESS, turned, rng)
        for box, class_id in zip(moved, kept, strict=True):
            seen = pixels_of(canvas, COLORS[class_id])
            if (box > 1).all() and (box[2:] < [TARGET[1] - 1, TARGET[0] - 1]).all() and seen is not None:
                assert iou_matrix(box[None], seen)[0, 0] > 0.75


def test_the_same_seed_gives_the_same_sample():
    sample = draw_discs(0)
    first, second, other = (
        augment_sample(sample, no_more, TARGET, PREPROCESS, AugmentOptions(affine_share=1), np.random.default_rng(seed))
        for seed in (5, 5, 6)
    )
    for one, two in zip(first, second, strict=True):
        np.testing.assert_array_equal(one, two)
    assert not np.array_equal(first[0], other[0])


def test_a_sample_that_loses_its_boxes_is_drawn_again_and_in_the_end_letterboxed():
    image = np.zeros((400, 400, 3), np.uint8)
    # A crop at 8 times the scale shows a 64th of the picture: this corner is hardly ever in it.
    corner = np.array([[0, 0, 12, 12]], np.float32)
    far = AugmentOptions(scale_min=8, scale_max=8, flip="none")
    calls = [
        augment_sample(
            (image, corner, np.array([4])),
            no_more,
            TARGET,
            PREPROCESS,
            far,
            np.random.default_rng(seed),
        )
        for seed in range(10)
    ]
    assert all(len(boxes) == 1 and class_ids.tolist() == [4] for _, boxes, class_ids in calls)


def test_an_image_without_boxes_stays_without():
    image = np.zeros((40, 50, 3), np.uint8)
    empty = (image, np.empty((0, 4), np.float32), np.empty(0, np.int64))
    canvas, boxes, class_ids = augment_sample(empty, no_more, TARGET, PREPROCESS, MANY, np.random.default_rng(0))
    assert canvas.shape == (*TARGET, 3) and boxes.shape == (0, 4) and len(class_ids) == 0


@pytest.mark.parametrize("seed", range(4))
def test_a_mosaic_shows_four_pictures_with_their_boxes(seed: int):
    parts = []
    for number in range(4):
        image = np.full((60, 80, 3), 50 * number, np.uint8)
        parts.append((image, np.array([[20, 20, 60, 40]], np.float32), np.array([number])))
    canvas, boxes, class_ids = make_mosaic(parts, TARGET, PREPROCESS, np.random.default_rng(seed))
    assert canvas.shape == (*TARGET, 3)
    assert set(class_ids.tolist()) <= set(range(4)) and len(boxes) == len(class_ids) >= 1
    for box, class_id in zip(boxes, class_ids, strict=True):
        x, y = ((box[:2] + box[2:]) / 2).astype(int)
        assert canvas[y, x].tolist() == [50 * class_id] * 3
