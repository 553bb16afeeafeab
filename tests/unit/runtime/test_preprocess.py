"""The letterbox: its pixels are the same as effdet's, and its geometry."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from edge_effdet.artifacts import PreprocessSpec
from edge_effdet.runtime.postprocess import detections_from_outputs
from edge_effdet.runtime.preprocess import fill_input, images_to_batch, letterbox, letterbox_size

SIDE = st.integers(1, 700)
TARGET = st.tuples(st.integers(2, 24), st.integers(2, 24)).map(lambda size: (32 * size[0], 32 * size[1]))


@pytest.mark.parametrize("size", [(48, 64), (64, 48), (63, 64), (200, 31), (10, 10), (64, 96)])
@pytest.mark.parametrize("target", [(64, 64), (64, 96), (128, 64)])
def test_letterbox_is_effdets(size, target):
    transforms = pytest.importorskip("effdet.data.transforms")
    preprocess = PreprocessSpec()
    pixels = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    reference = transforms.ResizePad(target, "bilinear", transforms.resolve_fill_color("mean", preprocess.mean))
    expected, annotations = reference(Image.fromarray(pixels), {})
    canvas, scale = letterbox(pixels, target, preprocess)
    np.testing.assert_array_equal(canvas, np.asarray(expected))
    assert scale == pytest.approx(1 / annotations["img_scale"])


def test_the_border_has_the_fill_colour_and_the_picture_stands_top_left():
    preprocess = PreprocessSpec((0.1, 0.2, 0.3))
    canvas, scale = letterbox(np.full((10, 20, 3), 200, np.uint8), (64, 96), preprocess)
    assert scale == pytest.approx(4.8)
    assert (canvas[:48, :96] == 200).all()
    assert (canvas[48:] == preprocess.fill_color).all()


def test_a_picture_of_the_right_size_is_not_changed():
    pixels = np.random.default_rng(2).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    canvas, scale = letterbox(pixels, (64, 96), PreprocessSpec())
    assert scale == 1
    np.testing.assert_array_equal(canvas, pixels)


@given(height=SIDE, width=SIDE, target=TARGET)
@settings(max_examples=100, deadline=None)
def test_the_scaled_picture_fits_and_touches_an_edge(height, width, target):
    scaled_height, scaled_width, scale = letterbox_size(height, width, target)
    assert 1 <= scaled_height <= target[0]
    assert 1 <= scaled_width <= target[1]
    # A side is rounded down from a product in floating point, which may be just below the target.
    assert scaled_height >= target[0] - 1 or scaled_width >= target[1] - 1
    assert height * scale <= target[0] + 1e-6
    assert width * scale <= target[1] + 1e-6


@given(height=SIDE, width=SIDE, target=TARGET, corners=st.lists(st.floats(0, 1), min_size=4, max_size=4))
@settings(max_examples=100, deadline=None)
def test_a_box_comes_back_from_the_letterbox(height, width, target, corners):
    x_min, x_max = sorted(corners[:2])
    y_min, y_max = sorted(corners[2:])
    box = np.array([[x_min * width, y_min * height, x_max * width, y_max * height]], np.float32)
    *_, scale = letterbox_size(height, width, target)
    outputs = box * np.float32(scale), np.ones(1, np.float32), np.zeros(1, np.int32)
    found = detections_from_outputs(*outputs, (height, width), target)
    np.testing.assert_allclose(found.boxes, box, rtol=1e-5, atol=1e-5 * max(height, width))


@given(height=st.integers(1, 80), width=st.integers(1, 80))
@settings(max_examples=30, deadline=None)
def test_any_picture_becomes_the_input(height, width):
    canvas, _ = letterbox(np.zeros((height, width, 3), np.uint8), (64, 64), PreprocessSpec())
    assert canvas.shape == (64, 64, 3)
    assert canvas.dtype == np.uint8


def test_a_batch_is_planar_and_contiguous():
    images = [np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8) for seed in range(2)]
    batch = images_to_batch(images)
    assert batch.shape == (2, 3, 4, 5)
    assert batch.flags.c_contiguous
    np.testing.assert_array_equal(batch[1, 2], images[1][..., 2])


def test_pictures_of_two_sizes_are_no_batch():
    with pytest.raises(ValueError, match="same shape"):
        images_to_batch([np.zeros((4, 5, 3), np.uint8), np.zeros((5, 4, 3), np.uint8)])


@given(height=st.integers(1, 120), width=st.integers(1, 120), seed=st.integers(0, 99))
@settings(max_examples=60, deadline=None)
def test_the_engines_input_is_filled_with_the_letterbox_bit_by_bit(height, width, seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    expected = images_to_batch([letterbox(pixels, (64, 96), PreprocessSpec())[0]])[0]
    for picture in (pixels, Image.fromarray(pixels)):
        # The row holds pixels of an earlier picture, which must be overwritten.
        row = np.full((3, 64, 96), 7, np.uint8)
        assert fill_input(picture, row, PreprocessSpec()) == (height, width)
        np.testing.assert_array_equal(row, expected)


def test_a_picture_decoded_small_is_letterboxed_as_the_original_would_be():
    smooth = np.linspace(0, 255, 200 * 400 * 3).reshape(200, 400, 3).astype(np.uint8)
    row, expected = np.empty((2, 3, 64, 96), np.uint8)
    fill_input(smooth, expected, PreprocessSpec())
    assert fill_input(Image.fromarray(smooth).reduce(2), row, PreprocessSpec(), (200, 400)) == (200, 400)
    assert np.abs(row.astype(int) - expected).max() <= 3
