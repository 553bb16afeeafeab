"""Boxes move with the pixels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_effdet.artifacts import PreprocessSpec
from edge_effdet.data.transforms import MIN_VISIBLE_SIDE, flip_horizontally, flip_vertically, jitter_letterbox
from edge_effdet.runtime.preprocess import letterbox

PREPROCESS = PreprocessSpec()
SEED = st.integers(0, 2**32 - 1)
SIDE = st.integers(4, 200)


def random_picture(seed, height, width, count=3):
    rng = np.random.default_rng(seed)
    corners = np.sort(rng.uniform(0, 1, (count, 2, 2)), axis=1).reshape(count, 4)
    boxes = (corners * [width, height, width, height]).astype(np.float32)
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8), boxes


@pytest.mark.parametrize("flip", [flip_horizontally, flip_vertically])
@given(seed=SEED, height=SIDE, width=SIDE, count=st.integers(0, 4))
@settings(max_examples=25, deadline=None)
def test_flips_are_involutions(flip, seed, height, width, count):
    image, boxes = random_picture(seed, height, width, count)
    once = flip(image, boxes)
    assert (once[1][:, 2:] >= once[1][:, :2]).all()
    twice = flip(*once)
    np.testing.assert_array_equal(twice[0], image)
    np.testing.assert_allclose(twice[1], boxes, atol=1e-4)
    assert twice[1].dtype == np.float32


@pytest.mark.parametrize("flip", [flip_horizontally, flip_vertically])
def test_a_flipped_box_holds_the_same_pixels(flip):
    image = np.zeros((30, 50, 3), np.uint8)
    image[4:11, 20:45] = 255
    flipped, boxes = flip(image, np.array([[20, 4, 45, 11]], np.float32))
    x_min, y_min, x_max, y_max = boxes[0].astype(int)
    assert (flipped[y_min:y_max, x_min:x_max] == 255).all()
    assert flipped.sum() == image.sum()


@given(
    seed=SEED,
    height=SIDE,
    width=SIDE,
    scales=st.tuples(st.floats(0.3, 1), st.floats(1, 3)),
    target=st.sampled_from([(64, 64), (64, 96), (96, 64)]),
)
@settings(max_examples=60, deadline=None)
def test_boxes_stay_inside_and_belong_to_their_indices(seed, height, width, scales, target):
    image, boxes = random_picture(seed, height, width, count=5)
    canvas, moved, kept = jitter_letterbox(image, boxes, target, PREPROCESS, scales, np.random.default_rng(seed))
    assert canvas.shape == (*target, 3)
    assert canvas.dtype == np.uint8
    assert moved.dtype == np.float32
    assert len(moved) == len(kept)
    assert (moved >= 0).all()
    assert (moved <= [target[1], target[0]] * 2).all()
    assert (moved[:, 2:] - moved[:, :2] >= MIN_VISIBLE_SIDE).all()
    assert (np.diff(kept) > 0).all()
    original = boxes[kept][:, 2:] - boxes[kept][:, :2]
    # One factor on both axes, less what is cropped.
    factor = min(target[0] / height, target[1] / width)
    assert (moved[:, 2:] - moved[:, :2] <= original * factor * scales[1] * 1.001 + 1e-3).all()


@given(
    seed=SEED,
    corner=st.tuples(st.integers(0, 60), st.integers(0, 80)),
    sides=st.tuples(st.integers(20, 40), st.integers(20, 40)),
    scales=st.sampled_from([(0.5, 0.9), (1.0, 1.0), (1.1, 2.0), (0.7, 1.4)]),
)
@settings(max_examples=60, deadline=None)
def test_the_box_lies_where_the_object_is_seen(seed, corner, sides, scales):
    (y, x), (height, width) = corner, sides
    image = np.zeros((100, 120, 3), np.uint8)
    image[y : y + height, x : x + width] = 255
    box = np.array([[x, y, min(x + width, 120), min(y + height, 100)]], np.float32)
    black = PreprocessSpec((0.0, 0.0, 0.0))
    canvas, moved, kept = jitter_letterbox(image, box, (96, 96), black, scales, np.random.default_rng(seed))
    bright = canvas[..., 0] > 127
    if not len(kept):
        assert min(bright.any(axis=0).sum(), bright.any(axis=1).sum()) <= MIN_VISIBLE_SIDE + 1
        return
    rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
    seen = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    np.testing.assert_allclose(moved[0], seen, atol=1.1)


def test_at_scale_1_it_is_the_letterbox():
    image, boxes = random_picture(0, 48, 64)
    canvas, moved, kept = jitter_letterbox(image, boxes, (96, 128), PREPROCESS, (1.0, 1.0), np.random.default_rng(0))
    expected, scale = letterbox(image, (96, 128), PREPROCESS)
    np.testing.assert_array_equal(canvas, expected)
    np.testing.assert_allclose(moved, boxes[kept] * scale, rtol=1e-5)


def test_smaller_stands_in_the_corner_on_the_fill_colour():
    image = np.full((50, 50, 3), 255, np.uint8)
    canvas, *_ = jitter_letterbox(
        image, np.zeros((0, 4), np.float32), (64, 64), PREPROCESS, (0.5, 0.5), np.random.default_rng(0)
    )
    assert (canvas[:32, :32] == 255).all()
    assert (canvas[32:] == PREPROCESS.fill_color).all()
    assert (canvas[:, 32:] == PREPROCESS.fill_color).all()


def test_a_box_that_the_crop_leaves_too_thin_is_dropped():
    image = np.zeros((64, 64, 3), np.uint8)
    boxes = np.array([[0, 0, 1, 64], [0, 0, 64, 64]], np.float32)
    _, moved, kept = jitter_letterbox(image, boxes, (64, 64), PREPROCESS, (1.0, 1.0), np.random.default_rng(0))
    assert kept.tolist() == [1]
    np.testing.assert_array_equal(moved, [[0, 0, 64, 64]])


def test_a_seed_gives_the_same_again_and_another_seed_another():
    image, boxes = random_picture(0, 100, 150)
    results = [
        jitter_letterbox(image, boxes, (64, 64), PREPROCESS, (0.5, 2.0), np.random.default_rng(seed))
        for seed in (1, 1, 2)
    ]
    for one, two in zip(results[0], results[1], strict=True):
        np.testing.assert_array_equal(one, two)
    assert results[0][0].tobytes() != results[2][0].tobytes()


def test_a_picture_that_is_none_is_refused():
    with pytest.raises(ValueError, match="unpack"):
        jitter_letterbox(
            np.zeros(5, np.uint8), np.zeros((0, 4), np.float32), (64, 64), PREPROCESS, (1, 1), np.random.default_rng(0)
        )
