"""The synthetic scenes: the same seed gives the same bytes, boxes are exact, and no photograph of training is tested on."""

from __future__ import annotations

import builtins
import json

import numpy as np
import pytest
from PIL import Image

from edge_effdet.data import synthetic
from edge_effdet.data.registry import read_dataset
from edge_effdet.data.synthetic import (
    MIN_VISIBLE,
    PHOTOGRAPHS,
    SceneOptions,
    compose_scene,
    render_scene,
    scene_seed,
    visible_boxes,
    write_scenes,
)
from edge_effdet.data.synthetic_shapes import CLASS_NAMES
from edge_effdet.errors import MissingDependency, UsageError

SMALL = SceneOptions(image_size=(120, 160), max_side=100, max_objects=4)


@pytest.fixture(scope="module")
def scenes():
    """Forty scenes of the default size, without blur and noise."""
    return [compose_scene(SceneOptions(), np.random.default_rng(seed)) for seed in range(40)]


def test_a_seed_gives_the_same_scene_again_and_another_seed_another():
    first, again, other = (render_scene(SMALL, seed) for seed in (1, 1, 2))
    for one, two in zip(first, again, strict=True):
        assert one.tobytes() == two.tobytes()
    assert first[0].tobytes() != other[0].tobytes()


@pytest.mark.parametrize("image_size", [(480, 640), (320, 320), (200, 90)])
def test_scene_has_the_documented_shapes(image_size):
    pixels, boxes, class_ids = render_scene(SceneOptions(image_size=image_size), 3)
    assert pixels.shape == (*image_size, 3)
    assert pixels.dtype == np.uint8
    assert boxes.dtype == np.float32
    assert boxes.shape == (len(class_ids), 4)
    assert class_ids.dtype == np.int64
    assert len(class_ids) >= 1


def test_every_class_and_the_range_of_sizes_appear(scenes):
    assert {int(number) for scene in scenes for number in scene.class_ids} == set(range(len(CLASS_NAMES)))
    boxes = np.concatenate([visible_boxes(scene) for scene in scenes])
    sides = boxes[:, 2:] - boxes[:, :2]
    assert sides.min() >= 8
    assert sides.max() <= 300
    assert sides.min() <= 10
    assert sides.max() >= 250
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= (640, 480)).all()
    counts = {len(scene.class_ids) for scene in scenes}
    assert min(counts) <= 2
    assert max(counts) >= 10


def test_box_is_that_of_the_pixels_which_the_object_changed():
    options = SceneOptions(max_objects=1)
    checked = 0
    for seed in range(60):
        scene = compose_scene(options, np.random.default_rng(seed))
        if (scene.owner == -2).any():
            continue
        changed = np.abs(scene.image - scene.background).max(axis=2) > 0
        rows, columns = np.flatnonzero(changed.any(axis=1)), np.flatnonzero(changed.any(axis=0))
        truth = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        # A pixel that the object covers by less than half is changed, but does not belong to the object's box.
        np.testing.assert_allclose(visible_boxes(scene)[0], truth, atol=1)
        assert changed[scene.owner == 0].mean() > 0.99
        checked += 1
    assert checked >= 5


def test_box_is_that_of_the_visible_part():
    found = 0
    for seed in range(12):
        scene = compose_scene(SceneOptions(), np.random.default_rng(seed))
        for index, (x_min, y_min, x_max, y_max) in enumerate(visible_boxes(scene).astype(int)):
            seen = scene.owner == index
            assert seen[y_min:y_max, x_min:x_max].sum() == seen.sum()
            for edge in (seen[y_min, :], seen[y_max - 1, :], seen[:, x_min], seen[:, x_max - 1]):
                assert edge.any()
            inside = scene.owner[y_min:y_max, x_min:x_max]
            found += bool(np.isin(inside, [-1, index], invert=True).any())
    assert found >= 10, "hardly any object is overlapped, so occlusion went untested"


def test_what_would_hide_an_object_is_not_placed():
    options = SceneOptions(image_size=(120, 160), max_side=60)
    rng = np.random.default_rng(0)
    canvas = synthetic._Canvas(options, np.zeros((120, 160, 3), np.float32), np.full((120, 160), -1, np.int16), [], [])
    ball = synthetic.object_patch(0, 60, 50, rng)
    assert canvas.try_place(ball, 20, 20, 0)
    before = canvas.image.copy()
    assert not canvas.try_place(ball, 20, 20, 0)
    assert not canvas.try_place(ball, 22, 20, None)
    np.testing.assert_array_equal(canvas.image, before)
    assert canvas.try_place(ball, 20 + ball.alpha.shape[1] // 2, 20, None)
    assert MIN_VISIBLE * canvas.areas[0] <= (canvas.owner == 0).sum() < canvas.areas[0]


@pytest.mark.parametrize("angle", [0.0, 0.6, 1.57, 2.5])
def test_motion_blur_moves_nothing(angle):
    point = np.zeros((21, 21, 3), np.uint8)
    point[10, 10] = 250
    blurred = np.asarray(synthetic.blur_motion(Image.fromarray(point), angle), np.float64)[..., 0]
    assert (blurred > 0).sum() > 1
    np.testing.assert_array_equal(blurred, blurred[::-1, ::-1])


def test_no_split_shares_a_seed_or_train_a_photograph_with_a_held_out_split():
    seeds = [scene_seed(0, split, index) for split in PHOTOGRAPHS for index in range(100)]
    assert len(set(seeds)) == len(seeds)
    assert scene_seed(0, "train", 0) == 6411576139275575988, "old data sets can no longer be made again"
    train, val, test = (set(PHOTOGRAPHS[split]) for split in ("train", "val", "test"))
    # Left and right are two views of one motorcycle.
    assert {"motorcycle_left.png", "motorcycle_right.png"} <= train
    assert not train & val
    assert not train & test
    assert not val & test


def test_photographs_ship_with_the_wheel():
    for name in {name for names in PHOTOGRAPHS.values() for name in names}:
        assert min(synthetic._load_photograph(name).size) >= 150


def test_written_data_set_reads_back(tmp_path):
    counts = write_scenes(tmp_path / "one", {"train": 3, "val": 2, "test": 1}, 7, SMALL)
    dataset = read_dataset(tmp_path / "one")
    assert dataset.class_names == CLASS_NAMES
    assert dataset.category_ids == tuple(range(1, len(CLASS_NAMES) + 1))
    assert {name: len(samples) for name, samples in dataset.splits.items()} == {"train": 3, "val": 2, "test": 1}
    assert len(dataset.all_samples()) == 6, "two splits share an image id"
    for split, samples in dataset.splits.items():
        assert counts[split] == sum(len(sample.boxes) for sample in samples)
    options = SceneOptions((120, 160), 8, 100, 4, PHOTOGRAPHS["val"])
    pixels, boxes, class_ids = render_scene(options, scene_seed(7, "val", 1))
    sample = dataset.splits["val"][1]
    np.testing.assert_array_equal(sample.boxes, boxes)
    np.testing.assert_array_equal(sample.class_ids, class_ids)
    with Image.open(sample.path) as picture:
        difference = np.asarray(picture, np.float64) - pixels
    assert np.sqrt((difference**2).mean()) < 15


def test_writing_twice_gives_the_same_bytes(tmp_path):
    for name in ("one", "two"):
        write_scenes(tmp_path / name, {"train": 2}, 0, SMALL)
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*") if path.is_file())
    assert len(files) == 3
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_main_writes_the_splits_that_were_asked_for(tmp_path, capsys):
    command = ["--output", str(tmp_path), "--train", "2", "--val", "1", "--calibration", "1", "--test", "0", "--json"]
    assert synthetic.main([*command, "--image-size", "96x128", "--max-side", "64"]) == 0
    assert json.loads(capsys.readouterr().out)["pictures"] == {"train": 2, "val": 1, "calibration": 1}
    names = sorted(path.name for path in (tmp_path / "annotations").iterdir())
    assert names == ["instances_calibration.json", "instances_train.json", "instances_val.json"]


def test_sizes_that_leave_no_choice_are_refused(tmp_path, capsys):
    for wrong in ({"min_side": 100}, {"min_side": 2}, {"image_size": (30, 640)}, {"max_objects": 0}):
        with pytest.raises(UsageError):
            SceneOptions(**wrong)
    with pytest.raises(UsageError):
        write_scenes(tmp_path, {"train": 0}, 0)
    assert synthetic.main(["--output", str(tmp_path), "--min-side", "100"]) == 2
    assert "--min-side" in capsys.readouterr().err


def test_missing_scikit_image_names_the_command(monkeypatch):
    real = builtins.__import__

    def without_skimage(name, *rest, **named):
        if name == "skimage":
            raise ModuleNotFoundError("No module named 'skimage'", name="skimage")
        return real(name, *rest, **named)

    synthetic._load_photograph.cache_clear()
    monkeypatch.setattr(builtins, "__import__", without_skimage)
    with pytest.raises(MissingDependency, match=r"pip install 'edge-effdet\[train\]'"):
        render_scene(SMALL, 0)
