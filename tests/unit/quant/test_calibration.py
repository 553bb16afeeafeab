"""Calibration images: real, chosen by a seed, named by hash, and never too few."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_effdet.artifacts import ModelSpec, file_sha256
from edge_effdet.data.base import manifest_sha256
from edge_effdet.data.registry import read_dataset
from edge_effdet.errors import DataError, UsageError
from edge_effdet.quant.calibration import FEWEST_IMAGES, refuse_overlap
from edge_effdet.quant.choose import choose_k_centers, choose_samples, load_calibration_images
from edge_effdet.runtime.images import read_image
from edge_effdet.runtime.preprocess import letterbox

SPEC = ModelSpec("tiny", (64, 96), ("bar", "disc"), (1, 2))


@pytest.fixture(scope="module")
def samples(tiny_voc):
    return read_dataset(tiny_voc).all_samples()


@pytest.fixture
def with_broken(samples, tmp_path):
    """The twelve samples, where the files of the first so many are truncated."""

    def cut(count):
        broken = []
        for sample in samples[:count]:
            path = tmp_path / sample.path.name
            path.write_bytes(sample.path.read_bytes()[:300])
            broken.append(replace(sample, path=path))
        return [*broken, *samples[count:]]

    return cut


def test_pixels_are_those_that_the_device_sends(samples):
    images = load_calibration_images(samples, SPEC, 100, 0)
    assert len(images) == 12
    for pixels, sample in zip(images, samples, strict=True):
        canvas, _ = letterbox(read_image(sample.path), SPEC.image_size, SPEC.preprocess)
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels[0], canvas.transpose(2, 0, 1))


def test_the_record_names_them(samples):
    images = load_calibration_images(samples, SPEC, 9, 5)
    assert images.manifest == {
        sample.image_id: file_sha256(sample.path) for sample in samples if sample.image_id in images.manifest
    }
    record = images.record("entropy")
    assert (record["method"], record["images"], record["seed"]) == ("entropy", 9, 5)
    assert record["manifest_sha256"] == manifest_sha256(images.manifest)
    assert len(record["manifest"]) == 9


@given(count=st.integers(1, 14), seed=st.integers(0, 100))
@settings(max_examples=25, deadline=None)
def test_the_choice_depends_on_the_seed_alone(samples, count, seed):
    chosen = choose_samples(samples, count, seed)
    ids = [sample.image_id for sample in chosen]
    assert ids == sorted(set(ids))
    assert len(ids) == min(count, len(samples))
    assert ids == [sample.image_id for sample in choose_samples(samples[::-1], count, seed)]


def test_another_seed_chooses_others(samples):
    choices = {tuple(sample.image_id for sample in choose_samples(samples, 6, seed)) for seed in range(5)}
    assert len(choices) > 1


@pytest.mark.parametrize("count", [-1, 0, 1, FEWEST_IMAGES - 1])
def test_too_few_wanted_are_refused(samples, count):
    with pytest.raises(UsageError, match=rf"{count} calibration images are too few.*at least 8"):
        load_calibration_images(samples, SPEC, count, 0)


def test_too_few_given_are_refused(samples):
    with pytest.raises(DataError, match=r"Only 7 calibration images could be read and 8 are the least.*never made up"):
        load_calibration_images(samples[:7], SPEC, 100, 0)
    with pytest.raises(DataError, match="Only 0 calibration images"):
        load_calibration_images([], SPEC, 100, 0)


def test_a_broken_picture_is_left_out_and_counted(with_broken, caplog):
    images = load_calibration_images(with_broken(4), SPEC, 100, 0)
    assert len(images) == len(list(images)) == len(images.manifest) == 8
    assert "scene_00.jpg" in caplog.text
    assert "4 images could not be decoded" in caplog.text
    with pytest.raises(DataError, match="Only 7 calibration images"):
        load_calibration_images(with_broken(5), SPEC, 100, 0)


def test_an_image_of_the_evaluation_is_refused_whatever_its_name():
    refuse_overlap({"a": "1", "b": "2"}, {"a": "3", "b": "4"})
    refuse_overlap({}, {})
    with pytest.raises(DataError, match=r"1 calibration images are also evaluation images \(first: b\)"):
        refuse_overlap({"a": "1", "b": "2"}, {"z": "2", "a": "9"})


def test_few_images_are_taken_where_that_is_asked_for(samples, caplog):
    images = load_calibration_images(samples[:3], SPEC, 100, 0, few=True)
    assert len(images) == 3
    assert "3 calibration images are few" in caplog.text


def test_a_part_of_them_is_spread_over_all(samples):
    images = load_calibration_images(samples, SPEC, 100, 0)
    ids = [sample.image_id for sample in images.samples]
    assert [sample.image_id for sample in images.first(4).samples] == ids[::3]
    assert images.first(99) is images


@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 12))
@settings(max_examples=30, deadline=None)
def test_k_centre_leaves_no_point_farther_than_twice_the_best_possible(seed, count):
    """Gonzalez's bound: no point is farther from the chosen ones than the last chosen point was from those before it."""
    points = np.random.default_rng(seed).normal(size=(12, 3))
    chosen = choose_k_centers(points, count, seed)
    assert len(set(chosen)) == count
    distances = np.linalg.norm(points[:, None] - points[chosen], axis=2)
    radius = distances.min(axis=1).max()
    apart = np.linalg.norm(points[chosen][:, None] - points[chosen], axis=2)[~np.eye(count, dtype=bool)]
    assert count == 1 or radius <= apart.min() + 1e-12
