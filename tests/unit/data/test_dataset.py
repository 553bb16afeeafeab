"""Splits, class matching, hashes and warnings, whatever the reader."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edge_effdet.artifacts import ModelSpec
from edge_effdet.data.dataset import (
    Dataset,
    hold_out,
    make_sample,
    manifest_sha256,
    match_classes,
    read_dataset,
    readable_images,
    samples_manifest,
    samples_sha256,
)
from edge_effdet.errors import DataError

SPEC = ModelSpec("tiny", (64, 64), ("Red", "green", "blue"), (10, 20, 30))


def make(image_id, *class_ids):
    rows = [((0, 0, 5, 5), class_id, False) for class_id in class_ids]
    return make_sample(image_id, Path(f"{image_id}.jpg"), 10, 10, rows, "test")


def dataset_of(class_names, category_ids, *samples, kind="voc"):
    return Dataset(Path("data"), kind, class_names, category_ids, {"train": samples})


def matched(class_names, category_ids, *class_ids, kind="voc"):
    dataset = match_classes(dataset_of(class_names, category_ids, make("a", *class_ids), kind=kind), SPEC)
    assert (dataset.class_names, dataset.category_ids) == (SPEC.class_names, SPEC.category_ids)
    return dataset.splits["train"][0].class_ids.tolist()


def test_classes_match_by_name_whatever_their_case_and_order():
    assert matched(("BLUE", "red", "Green"), (10, 20, 30), 0, 1, 2, 0) == [2, 0, 1, 2]


def test_ids_are_not_trusted_where_names_are_words():
    with pytest.raises(DataError, match=r"boxes of 'cyan', which the model does not know.*Red, green, blue"):
        matched(("cyan",), (10,), 0)
    with pytest.raises(DataError, match="'cyan'"):
        matched(("red", "cyan"), (10, 20), 0, 1)


def test_ids_of_a_coco_file_are_trusted_where_those_of_matching_names_agree():
    assert matched(("red", "cyan"), (10, 20), 0, 1, kind="coco") == [0, 1]
    with pytest.raises(DataError, match="'cyan'"):
        matched(("red", "cyan"), (11, 20), 0, 1, kind="coco")
    with pytest.raises(DataError, match="'cyan'"):
        matched(("cyan",), (10,), 0, kind="coco")
    with pytest.raises(DataError, match="'cyan'"):
        matched(("green", "cyan"), (20, 20), 0, 1, kind="coco")


def test_ids_are_trusted_where_names_are_numbers():
    assert matched(("1", "2"), (30, 10), 0, 1, 1) == [2, 0, 0]
    with pytest.raises(DataError, match="'2'"):
        matched(("1", "2"), (30, 11), 0, 1)


def test_a_class_without_boxes_does_not_matter():
    assert matched(("cyan", "green"), (1, 2), 1) == [1]
    assert matched(("cyan",), (1,)) == []


def test_many_unknown_classes_are_cut_short():
    names = tuple(f"class_{number}" for number in range(8))
    with pytest.raises(DataError) as caught:
        matched(names, tuple(range(8)), *range(8))
    assert "'class_4'" in str(caught.value)
    assert "'class_5'" not in str(caught.value)


def test_matching_leaves_the_given_data_set_alone():
    sample = make("a", 0)
    dataset = dataset_of(("blue",), (1,), sample)
    match_classes(dataset, SPEC)
    assert sample.class_ids.tolist() == [0]
    assert dataset.class_names == ("blue",)


def test_the_split_wanted_or_the_first_default_or_all():
    train, val = (make("b", 0),), (make("a", 0),)
    dataset = Dataset(Path("data"), "voc", ("x",), (1,), {"train": train, "val": val})
    assert dataset.choose_split("val", ("train",)) == ("val", val)
    assert dataset.choose_split(None, ("test", "val")) == ("val", val)
    assert dataset.choose_split(None, ("test",)) == ("all", val + train)
    with pytest.raises(DataError, match=r"data has no split 'test'; it has train, val"):
        dataset.choose_split("test", ("val",))


def test_an_empty_split_is_refused():
    dataset = Dataset(Path("data"), "voc", ("x",), (1,), {"train": (make("a", 0),), "val": ()})
    with pytest.raises(DataError, match="The split 'val' of data holds no usable image"):
        dataset.choose_split(None, ("val",))


def test_all_samples_hold_each_picture_once():
    one, two = make("b", 0), make("a", 0)
    dataset = Dataset(Path("data"), "voc", ("x",), (1,), {"trainval": (one, two), "train": (one,)})
    assert [sample.image_id for sample in dataset.all_samples()] == ["a", "b"]


@pytest.mark.parametrize(("count", "held"), [(2, 1), (3, 1), (5, 1), (10, 2), (11, 2), (13, 3)])
def test_a_fifth_is_held_out_whatever_the_order(count, held):
    samples = [make(f"{number:02}", 0) for number in range(count)]
    splits, note = hold_out(samples, Path("data"))
    assert len(splits["val"]) == held
    assert len(splits["train"]) == count - held
    assert f"{held} of {count} images" in note
    backwards, _ = hold_out(samples[::-1], Path("data"))
    assert [sample.image_id for sample in backwards["val"]] == [sample.image_id for sample in splits["val"]]


@pytest.mark.parametrize("box", [(0, 0, 0, 5), (5, 0, 4, 5), (-9, 0, -1, 5), (np.nan, 0, 5, 5), (0, 0, np.inf, 5)])
def test_what_is_no_box_is_skipped_with_its_source(caplog, box):
    rows = [(box, 0, False), ((1, 1, 2, 2), 1, True)]
    sample = make_sample("a", Path("a.jpg"), 10, 10, rows, "somewhere.xml")
    np.testing.assert_array_equal(sample.boxes, [[1, 1, 2, 2]])
    assert (sample.class_ids.tolist(), sample.ignore.tolist()) == ([1], [True])
    assert caplog.text.count("somewhere.xml") == 1


def test_no_rows_give_arrays_of_the_right_shape():
    sample = make_sample("a", Path("a.jpg"), 10, 10, [], "test")
    assert sample.boxes.shape == (0, 4)
    assert (sample.boxes.dtype, sample.class_ids.dtype, sample.ignore.dtype) == (np.float32, np.int64, bool)


def test_a_path_with_nothing_and_an_empty_folder_are_told_apart(tmp_path):
    with pytest.raises(DataError, match=r"no data at .*absent"):
        read_dataset(tmp_path / "absent")
    with pytest.raises(DataError, match="no data set of a known format"):
        read_dataset(tmp_path)


def test_a_truncated_picture_is_skipped_and_counted(tiny_voc, tmp_path, caplog):
    samples = read_dataset(tiny_voc).splits["train"][:3]
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(samples[1].path.read_bytes()[:-400])
    broken = [samples[0], replace(samples[1], path=cut), samples[2]]
    pairs = list(readable_images(broken))
    assert [sample.image_id for sample, _ in pairs] == [samples[0].image_id, samples[2].image_id]
    assert all(image.shape == (60, 80, 3) for _, image in pairs)
    assert str(cut) in caplog.text
    assert "1 image could not be decoded and were left out" in caplog.text


def test_a_manifest_names_files_by_content(tiny_voc):
    samples = read_dataset(tiny_voc).splits["train"]
    manifest = samples_manifest(samples)
    assert list(manifest) == sorted(sample.image_id for sample in samples)
    assert manifest_sha256(manifest) == manifest_sha256(dict(reversed(manifest.items())))
    assert samples_manifest([replace(samples[0], path=Path("absent.jpg"))]) == {}


def test_the_hash_of_samples_changes_with_pictures_and_boxes_only(tiny_voc, tmp_path):
    samples = read_dataset(tiny_voc).splits["train"]
    digest = samples_sha256(samples)
    assert samples_sha256(samples[::-1]) == digest
    copied = tmp_path / "copy.jpg"
    copied.write_bytes(samples[0].path.read_bytes())
    assert samples_sha256([replace(samples[0], path=copied), *samples[1:]]) == digest
    copied.write_bytes(samples[1].path.read_bytes())
    assert samples_sha256([replace(samples[0], path=copied), *samples[1:]]) != digest
    assert samples_sha256([replace(samples[0], boxes=samples[0].boxes + 1), *samples[1:]]) != digest
    assert samples_sha256(samples[1:]) != digest
