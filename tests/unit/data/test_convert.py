"""Writing a data set in another format: what is read back is what was read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edge_effdet.data.__main__ import main
from edge_effdet.data.base import Dataset, make_sample
from edge_effdet.data.convert import FORMATS, convert_dataset
from edge_effdet.data.registry import read_dataset
from edge_effdet.errors import DataError, InputError, UsageError

NAMES = ("hen", "duck (2)", "Gänse")
BOXES = ((10, 10, 40, 40), (1.5, 2.25, 30.125, 60.0))
YAML = "path: .\ntrain: images/train\nval: images/val\nnames: [bird, fish]\n"


def content_of(dataset: Dataset) -> dict[str, list[list[tuple[str, list[float], bool]]]]:
    """Of each picture of each split the class, the corners to a tenth of a pixel, and ignore of each box, all sorted."""
    content = {}
    for split, samples in dataset.splits.items():
        rows = [
            zip(sample.class_ids.tolist(), sample.boxes.round(1).tolist(), sample.ignore.tolist(), strict=True)
            for sample in samples
        ]
        content[split] = sorted(sorted((dataset.class_names[number], *rest) for number, *rest in each) for each in rows)
    return content


def pictures(folder: Path, draw) -> list[Path]:
    return [draw(folder / f"{name}.png", size=(64, 96), shade=40 * number) for number, name in enumerate(NAMES)]


def coco(root: Path, draw, write) -> None:
    for split in ("train", "val"):
        images = [
            {"id": number, "file_name": path.name, "width": 96, "height": 64}
            for number, path in enumerate(pictures(root / split, draw))
        ]
        annotations = [
            {"id": number, "image_id": 0, "category_id": 7 + number, "bbox": [x, y, a - x, b - y], "iscrowd": number}
            for number, (x, y, a, b) in enumerate(BOXES)
        ]
        categories = [{"id": 7, "name": "bird"}, {"id": 8, "name": "fish"}]
        content = {"images": images, "annotations": annotations, "categories": categories}
        write(root / "annotations" / f"instances_{split}.json", json.dumps(content))


def voc(root: Path, draw, write) -> None:
    item = "<object><name>{}</name><difficult>{}</difficult><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"
    objects = [
        item.format("bird", 0, *BOXES[0]) + item.format("fish", 1, *BOXES[1]),
        item.format("bird", 0, *BOXES[1]),
        "",
    ]
    for path, text in zip(pictures(root / "JPEGImages", draw), objects, strict=True):
        write(
            root / "Annotations" / f"{path.stem}.xml",
            f"<annotation><filename>{path.name}</filename>{text}</annotation>",
        )
    write(root / "ImageSets" / "Main" / "train.txt", f"{NAMES[0]}\n{NAMES[1]}\n")
    write(root / "ImageSets" / "Main" / "val.txt", f"{NAMES[2]}\n")


def yolo(root: Path, draw, write) -> None:
    write(root / "data.yaml", YAML)
    for split in ("train", "val"):
        for path in pictures(root / "images" / split, draw):
            write(root / "labels" / split / f"{path.stem}.txt", "0 0.260417 0.390625 0.3125 0.46875\n1 0.5 0.5 1 1\n")


def table(root: Path, draw, write) -> None:
    rows = "".join(f"{name}.png,{','.join(map(str, BOXES[0]))},bird\n" for name in NAMES[:2])
    for split in ("train", "val"):
        pictures(root / split, draw)
        write(root / f"{split}.csv", f"image_id,x_min,y_min,x_max,y_max,label\n{rows}{NAMES[2]}.png,,,,,\n")


def labelme(root: Path, draw, write) -> None:
    for path in pictures(root, draw):
        shapes = [
            {"label": label, "points": [box[:2], box[2:]], "shape_type": "rectangle"}
            for label, box in zip(("bird", "fish"), BOXES, strict=True)
        ]
        content = {"shapes": shapes, "imagePath": path.name, "imageHeight": 64, "imageWidth": 96}
        write(path.with_suffix(".json"), json.dumps(content))


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("reader", [coco, voc, yolo, table, labelme])
def test_what_is_read_back_is_what_was_read(tmp_path, draw, write, reader, to):
    reader(tmp_path / "given", draw, write)
    given = read_dataset(tmp_path / "given")
    assert given.problems == ()
    written = convert_dataset(given, to, tmp_path / "written")
    back = read_dataset(tmp_path / "written")
    assert (back.kind, back.problems, written.kind) == (to, (), to)
    expected = content_of(given)
    if to == "yolo":
        expected = {split: [[box for box in each if not box[2]] for each in found] for split, found in expected.items()}
    assert content_of(back) == expected
    told = {"default": back.all_samples()} if given.held_out and to != "yolo" else back.splits
    assert written.images == {split: len(samples) for split, samples in told.items()}
    assert back.held_out == (given.held_out and to != "yolo"), (
        "what is held out is for training, and no split of the data"
    )
    assert written.boxes == {split: sum(len(each.boxes) for each in samples) for split, samples in told.items()}


def sample_of(path: Path, *boxes: tuple[tuple[float, ...], int, bool]):
    with Image.open(path) as image:
        return make_sample(path.stem, path, image.height, image.width, boxes, "test")


def shade_of(path: Path) -> int:
    with Image.open(path) as image:
        return int(np.asarray(image)[0, 0, 0])


def dataset_of(root: Path, names=("bird", "fish"), **splits) -> Dataset:
    return Dataset(root, "csv", names, tuple(range(3, 3 + len(names))), splits)


def test_coco_keeps_the_numbers_of_its_classes_and_those_without_a_box(tmp_path, draw):
    sample = sample_of(draw(tmp_path / "in" / "a.png"), ((1, 1, 9, 9), 1, False))
    convert_dataset(dataset_of(tmp_path / "in", train=(sample,)), "coco", tmp_path / "out")
    back = read_dataset(tmp_path / "out")
    assert (back.class_names, back.category_ids) == (("bird", "fish"), (3, 4))


def test_voc_says_which_class_is_lost(tmp_path, draw):
    sample = sample_of(draw(tmp_path / "in" / "a.png"), ((1, 1, 9, 9), 1, False))
    written = convert_dataset(dataset_of(tmp_path / "in", train=(sample,)), "voc", tmp_path / "out")
    assert written.notes == ("Pascal VOC has no list of classes: bird without a box is lost.",)


def test_yolo_leaves_crowds_out_and_says_so(tmp_path, draw):
    sample = sample_of(draw(tmp_path / "in" / "a.png"), ((1, 1, 9, 9), 0, True), ((2, 2, 9, 9), 1, False))
    written = convert_dataset(dataset_of(tmp_path / "in", train=(sample,)), "yolo", tmp_path / "out")
    assert written.boxes == {"train": 1}
    assert "1 are left out" in written.notes[0]


def test_yolo_takes_any_name_of_a_class(tmp_path, draw):
    names = ('鸟 "groß"', "a: b #c", "no", "tab\tand\nnewline")
    boxes = [((1, 1, 9, 9 + number), number, False) for number in range(len(names))]
    dataset = dataset_of(tmp_path / "in", names, train=(sample_of(draw(tmp_path / "in" / "a.png"), *boxes),))
    convert_dataset(dataset, "yolo", tmp_path / "out")
    assert read_dataset(tmp_path / "out").class_names == names


@pytest.fixture
def folded(tmp_path, draw):
    samples = [sample_of(draw(tmp_path / "in" / f"{n}.png", shade=n), ((1, 1, 9, 9), n % 2, False)) for n in range(4)]
    return dataset_of(tmp_path / "in", fold0=tuple(samples[:2]), fold1=tuple(samples[2:3]), test=tuple(samples[3:]))


def test_coco_keeps_folds(folded, tmp_path):
    written = convert_dataset(folded, "coco", tmp_path / "out")
    assert (written.images, written.notes) == ({"fold0": 2, "fold1": 1, "test": 1}, ())
    assert content_of(read_dataset(tmp_path / "out")) == content_of(folded)


def test_yolo_has_no_folds(folded, tmp_path):
    written = convert_dataset(folded, "yolo", tmp_path / "out")
    assert written.images == {"train": 3, "test": 1}
    assert written.notes == ("YOLO has no splits fold0, fold1: their pictures are train.",)
    assert "fold0" not in content_of(read_dataset(tmp_path / "out"))


def test_a_split_that_is_the_sum_of_others_is_not_written_twice(folded, tmp_path):
    train, val = folded.splits["fold0"], folded.splits["fold1"]
    sums = replace(folded, splits={"train": train, "val": val, "trainval": train + val})
    assert convert_dataset(sums, "yolo", tmp_path / "yolo").images == {"train": 2, "val": 1}
    convert_dataset(sums, "coco", tmp_path / "coco")
    assert len(list((tmp_path / "coco" / "images").iterdir())) == 3
    more = replace(sums, splits={**sums.splits, "all": folded.splits["test"]})
    written = convert_dataset(more, "yolo", tmp_path / "more")
    assert written.notes == (
        "YOLO has the splits train, val and test: 1 pictures that are only in trainval, all are left out.",
    )


def test_a_picture_that_its_exif_data_turns_is_copied_as_it_is_and_declared_upright(tmp_path):
    (tmp_path / "in").mkdir()
    exif = Image.Exif()
    exif[0x112] = 6
    Image.new("RGB", (96, 64)).save(tmp_path / "in" / "a.jpg", exif=exif)
    (tmp_path / "in" / "train.csv").write_text("image_id,x_min,y_min,x_max,y_max,label\na.jpg,2,60,50,90,bird\n")
    for to in FORMATS:
        convert_dataset(read_dataset(tmp_path / "in"), to, tmp_path / to)
        back = read_dataset(tmp_path / to)
        (sample,) = back.splits["train"]
        assert (back.problems, sample.height, sample.width) == ((), 96, 64)
        np.testing.assert_allclose(sample.boxes, [[2, 60, 50, 90]], atol=1e-4)
        assert sample.path.read_bytes() == (tmp_path / "in" / "a.jpg").read_bytes()


def test_names_that_are_not_unique_get_a_number(tmp_path, draw):
    paths = [draw(tmp_path / "in" / name, shade=shade) for shade, name in enumerate(("a/1.png", "b/1.png", "b/1.bmp"))]
    dataset = dataset_of(tmp_path / "in", train=tuple(sample_of(path, ((1, 1, 9, 9), 0, False)) for path in paths))
    written = convert_dataset(dataset, "voc", tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out" / "JPEGImages").iterdir()) == ["1.png", "1_2.bmp", "1_3.png"]
    assert written.notes[-1].startswith("2 pictures have other names there")
    back = read_dataset(tmp_path / "out")
    shades = {shade_of(sample.path) for sample in back.splits["train"]}
    assert shades == {0, 1, 2}


def test_links_are_no_copies(tmp_path, draw):
    path = draw(tmp_path / "in" / "a.png")
    dataset = dataset_of(tmp_path / "in", train=(sample_of(path, ((1, 1, 9, 9), 0, False)),))
    convert_dataset(dataset, "coco", tmp_path / "linked", link=True)
    convert_dataset(dataset, "coco", tmp_path / "copied")
    assert (tmp_path / "linked" / "images" / "a.png").samefile(path)
    assert not (tmp_path / "copied" / "images" / "a.png").samefile(path)


def test_an_output_that_cannot_be_is_refused_before_a_byte_is_written(tmp_path, draw, write):
    path = draw(tmp_path / "in" / "a.png")
    dataset = dataset_of(tmp_path / "in", train=(sample_of(path, ((1, 1, 9, 9), 0, False)),))
    write(tmp_path / "full" / "mine.txt", "words")
    with pytest.raises(UsageError, match="is there already; give `output`"):
        convert_dataset(dataset, "coco", tmp_path / "full")
    with pytest.raises(UsageError, match="is there already"):
        convert_dataset(dataset, "coco", tmp_path / "full" / "mine.txt")
    with pytest.raises(UsageError, match="would be written into"):
        convert_dataset(dataset, "coco", tmp_path / "in" / "out")
    with pytest.raises(UsageError, match="There is no format 'tfrecord'"):
        convert_dataset(dataset, "tfrecord", tmp_path / "out")
    with pytest.raises(InputError, match="Cannot write"):
        convert_dataset(dataset, "coco", tmp_path / "full" / "mine.txt" / "out")
    path.unlink()
    with pytest.raises(DataError, match=r"There is no image at .*a\.png any more"):
        convert_dataset(dataset, "coco", tmp_path / "out")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["full", "in"]


@pytest.mark.parametrize("to", ["coco", "voc"])
@pytest.mark.parametrize("name", ["{root}/victim", "../../../victim", "a/b", "a\0b", "a\nb"])
def test_a_split_whose_name_leads_elsewhere_is_refused(tmp_path, draw, write, to, name):
    """As any key of a foreign data.yaml that names a list."""
    victim = write(tmp_path / "victim.txt", "precious")
    samples = (sample_of(draw(tmp_path / "in" / "a.png"), ((1, 1, 9, 9), 0, False)),)
    dataset = dataset_of(tmp_path / "in", **{name.format(root=tmp_path): samples})
    with pytest.raises(DataError, match="has no plain name"):
        convert_dataset(dataset, to, tmp_path / "out")
    assert victim.read_text() == "precious" and not (tmp_path / "out").exists()


def test_an_empty_output_folder_is_filled(tmp_path, draw):
    dataset = dataset_of(tmp_path / "in", train=(sample_of(draw(tmp_path / "in" / "a.png"), ((1, 1, 9, 9), 0, False)),))
    (tmp_path / "out").mkdir()
    convert_dataset(dataset, "coco", tmp_path / "out")
    assert (tmp_path / "out" / "annotations" / "instances_train.json").is_file()


def test_the_command(tiny_voc, tmp_path, capsys):
    assert main(["convert", str(tiny_voc), "--to", "coco", "--output", str(tmp_path / "coco")]) == 0
    text = capsys.readouterr().out
    assert f"{tmp_path / 'coco'}: COCO JSON\n" in text
    assert "train: 8 images, 16 boxes\n" in text
    assert main(["convert", str(tiny_voc), "--to", "yolo", "--output", str(tmp_path / "yolo"), "--link", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["format"], data["splits"]["val"]) == ("yolo", {"images": 2, "boxes": 4})
    assert content_of(read_dataset(tmp_path / "coco")) == content_of(read_dataset(tmp_path / "yolo"))
    assert main(["convert", str(tiny_voc), "--to", "coco", "--output", str(tmp_path / "coco")]) == 2
    assert "give --output a folder" in capsys.readouterr().err
