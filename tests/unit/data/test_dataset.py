"""What all readers share: splits, folds, class matching, hashes and warnings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from edge_effdet.artifacts import ModelSpec
from edge_effdet.data.base import (
    PROBLEM_KINDS,
    Dataset,
    hold_out,
    make_sample,
    manifest_sha256,
    match_classes,
    readable_images,
    samples_manifest,
    samples_sha256,
    split_in_name,
)
from edge_effdet.data.registry import _similar_class_names, read_dataset
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


@pytest.mark.parametrize("renumbered", [False, True])
def test_one_image_more_or_less_moves_at_most_one_other_into_what_is_held_out(renumbered):
    samples = [make(f"{number:02}", 0) for number in range(40)]
    trained = {sample.path for sample in hold_out(samples, Path("data"))[0]["train"]}
    for changed in (*([*samples[:place], *samples[place + 1 :]] for place in range(40)), [*samples, make("more", 0)]):
        if renumbered:
            changed = [replace(sample, image_id=str(number)) for number, sample in enumerate(changed)]
        assert len(trained & {sample.path for sample in hold_out(changed, Path("data"))[0]["val"]}) <= 1


def test_images_of_one_name_in_many_folders_are_held_out_here_and_there():
    samples = [replace(make(f"{number:02}/a", 0), path=Path(f"{number:02}/a.jpg")) for number in range(40)]
    held = [sample.image_id for sample in hold_out(samples, Path("data"))[0]["val"]]
    assert len(held) == 8 and held != [sample.image_id for sample in samples[:8]]


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


def test_problems_are_handed_over_where_they_are_wanted(caplog):
    problems = []
    rows = [((0, 0, 0, 5), 0, False), ((-2, 0, 5, 5), 0, False), ((1, 1, 2, 2), 0, False), ((1, 1, 2, 2), 1, False)]
    make_sample("a", Path("a.jpg"), 10, 10, rows, lambda row: f"file:{row + 5}", problems)
    assert [(problem.kind, problem.where) for problem in problems] == [("degenerate", "file:5"), ("outside", "file:6")]
    assert caplog.text == ""


@given(
    st.lists(st.tuples(*[st.floats(-20, 40)] * 4), max_size=4),
    st.integers(1, 20),
    st.integers(1, 20),
)
@example([(10.0, 0.0, 10.0 + 1e-9, 5.0)], 20, 20)
def test_boxes_are_inside_and_each_that_is_missing_is_a_problem(boxes, height, width):
    problems = []
    rows = [(box, 0, False) for box in boxes]
    sample = make_sample("a", Path("a.jpg"), height, width, rows, "here", problems)
    assert {problem.kind for problem in problems} <= PROBLEM_KINDS.keys()
    assert len(sample.boxes) + sum(problem.kind in ("degenerate", "swapped") for problem in problems) == len(boxes)
    assert (sample.boxes >= 0).all()
    assert (sample.boxes <= (width, height, width, height)).all()
    assert (sample.boxes[:, 2:] > sample.boxes[:, :2]).all()


@pytest.mark.parametrize(
    ("names", "counts", "alike"),
    [
        (("disc", "Disc ", "bar"), (2, 1, 1), ["'Disc ' (1 boxes) is not the class 'disc' (2 boxes)"]),
        (("stop sign", "stopsign"), (0, 1), ["'stop sign' (0 boxes) is not the class 'stopsign' (1 boxes)"]),
        (("disc", "discs"), (1, 1), []),
    ],
)
def test_classes_that_are_most_likely_one_are_told(names, counts, alike):
    samples = [make(f"{index}", *[index] * count) for index, count in enumerate(counts)]
    problems = _similar_class_names(dataset_of(names, tuple(range(len(names))), *samples))
    assert [problem.kind for problem in problems] == ["class_names"] * len(alike)
    assert all(text in problem.text for text, problem in zip(alike, problems, strict=True))


def folds_of(*numbers, **others):
    splits = {f"fold{number}": (make(f"{number}", 0),) for number in numbers}
    return Dataset(Path("boxes.csv"), "csv", ("x",), (1,), {**splits, **others})


def test_a_fold_becomes_val_and_the_others_train():
    test = (make("t", 0),)
    dataset = folds_of(0, 1, 10, test=test).with_fold(1)
    assert [sample.image_id for sample in dataset.splits["train"]] == ["0", "10"]
    assert [sample.image_id for sample in dataset.splits["val"]] == ["1"]
    assert dataset.splits["test"] == test
    assert (dataset.folds, dataset.notes) == ((), ())


def test_a_split_that_a_fold_replaces_is_told():
    dataset = folds_of(0, 1, val=(make("v", 0),)).with_fold(0)
    assert [sample.image_id for sample in dataset.splits["val"]] == ["0"]
    assert "take the place of the split val" in dataset.notes[0]


@pytest.mark.parametrize(
    ("numbers", "k", "message"),
    [
        ((), 0, r"boxes\.csv has no folds.*column fold.*instances_fold0\.json"),
        ((0, 1, 3), 2, r"has no fold 2; it has 0, 1, 3"),
        ((2,), 2, r"no fold but 2, so nothing is left to train on"),
    ],
)
def test_a_fold_that_is_not_there_is_refused(numbers, k, message):
    with pytest.raises(DataError, match=message):
        folds_of(*numbers, test=(make("t", 0),)).with_fold(k)


@pytest.mark.parametrize("wanted", ["train", "val"])
def test_a_folded_data_set_asks_for_the_fold(wanted):
    with pytest.raises(DataError, match=rf"no split '{wanted}' but the folds 0, 1; give `fold` K"):
        folds_of(0, 1).choose_split(wanted, ("train",))
    with pytest.raises(DataError, match="no split 'other'; it has fold0, fold1"):
        folds_of(0, 1).choose_split("other", ())


@pytest.mark.parametrize(
    ("names", "split"),
    [
        (("instances_val2017",), "val"),
        (("Validation-set", "train"), "val"),
        (("labels", "training"), "train"),
        (("latest", "trained", "values"), None),
    ],
)
def test_the_split_is_read_from_words(names, split):
    assert split_in_name(*names) == split


def test_an_unknown_format_names_all_and_what_is_there(tmp_path):
    (tmp_path / "photos").mkdir()
    for name in ("a.heic", "b.heic", "notes.docx"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(
        DataError,
        match=r"it holds 2 \.heic, 1 \.docx, the folder photos\. .* COCO.*Pascal VOC.*YOLO.*CSV.*docs/data\.md",
    ):
        read_dataset(tmp_path)


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
