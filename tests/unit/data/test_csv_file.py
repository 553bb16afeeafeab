"""Tables with boxes: the forms that other programs write, where pictures are looked for, folds, and what is wrong in them."""

from __future__ import annotations

import unicodedata

import numpy as np
import pytest

from edge_effdet.data.registry import read_dataset
from edge_effdet.errors import DataError

HEADER = "image_id,x_min,y_min,x_max,y_max,label"
NAMES = ("hen", "duck", "goose")
BOX = [10, 10, 40, 40]
OPEN_IMAGES = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,IsGroupOf"


def ids_of(dataset):
    return {split: [sample.image_id for sample in samples] for split, samples in dataset.splits.items()}


def boxes_of(dataset):
    boxes = [box for samples in dataset.splits.values() for sample in samples for box in sample.boxes.tolist()]
    return [[round(value, 3) for value in box] for box in boxes]


def said(dataset):
    return " ".join([*dataset.notes, *(problem.text for problem in dataset.problems)])


@pytest.fixture
def farm(tmp_path, draw):
    """A function that writes a table beside pictures of 96 x 64 pixels and reads the folder."""

    def read(text, file="boxes.csv", folder="images", suffix=".jpg", names=NAMES, encoding="utf-8"):
        for name in names:
            draw(tmp_path / folder / f"{name}{suffix}", size=(64, 96))
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(text.encode(encoding))
        return read_dataset(tmp_path)

    return read


def rows(template, names=NAMES):
    return "".join(f"{template.format(name)}\n" for name in names)


@pytest.mark.parametrize(
    ("header", "row"),
    [
        ("filename,width,height,class,xmin,ymin,xmax,ymax", "{}.jpg,96,64,bird,10,10,40,40"),
        ("Filename, Width ,Height,Class,XMin,YMin,XMax,YMax", "{}.jpg,96,64,bird,10.0,10.0,40.0,40.0"),
        ("filename,class,xmin,xmax,ymin,ymax", "images/{}.jpg,bird,10,40,10,40"),
        ("image_id,width,height,bbox,class_name", '{},96,64,"[10.0, 10.0, 30.0, 30.0]",bird'),
        ("image,bbox,label", '{}.jpg,"10 10 30 30",bird'),
        ("image_path,x1,y1,x2,y2,label", "images\\{}.jpg,10,10,40,40,bird"),
        ("image_path,x0,y0,x1,y1,label", "C:\\Users\\me\\{}.jpg,10,10,40,40,bird"),
        ("image,left,top,right,bottom,category", "/mnt/export/{}.jpg,10,10,40,40,bird"),
        ("img,x,y,w,h,name", "{},10,10,30,30,bird"),
        ("name,class,x_min,y_min,x_max,y_max", "{},bird,10,10,40,40"),
        ("id,image,class_id,class_name,xmin,ymin,xmax,ymax", "7,{}.jpg,0,bird,10,10,40,40"),
        (",image_id,x_min,y_min,x_max,y_max,label", "0,{}.jpg,10,10,40,40,bird"),
        ("image_id;x_min;y_min;x_max;y_max;label", "{}.jpg;10,0;10,0;40,0;40,0;bird"),
        ("image_id\tx_min\ty_min\tx_max\ty_max\tlabel", "{}.jpg\t10\t10\t40\t40\tbird"),
    ],
)
def test_columns_by_the_names_of_many_programs(farm, header, row):
    dataset = farm(f"{header}\n{rows(row)}")
    assert (dataset.class_names, boxes_of(dataset), dataset.problems) == (("bird",), [BOX] * 3, ())
    assert len(dataset.notes) == 1, "only that pictures are held out"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
def test_encodings(farm, encoding):
    dataset = farm(f"{HEADER}\n{rows('{}.jpg,10,10,40,40,Möwe')}", encoding=encoding)
    assert (dataset.class_names, len(boxes_of(dataset))) == (("Möwe",), 3)


def test_a_long_file_is_recognised_wherever_its_head_ends(farm):
    text = f"{HEADER}\n{rows('{}.jpg,10,10,40,40,bird')}"
    dataset = farm(text + "hen.jpg,10,10,40,41,鸟\n" * 4000)
    assert len(dataset.class_names) == 2


def test_names_of_files_with_letters_that_are_composed_otherwise(farm):
    composed = unicodedata.normalize("NFC", "ém")
    dataset = farm(f"{HEADER}\n{composed}.jpg,10,10,40,40,bird\n", names=(unicodedata.normalize("NFD", composed),))
    assert boxes_of(dataset) == [BOX]


def test_a_name_written_in_two_ways_is_one_picture(farm):
    dataset = farm(f"{HEADER}\nimages\\hen.jpg,10,10,40,40,bird\nimages/hen.jpg,1,1,9,9,bird\n", names=("hen",))
    assert [len(sample.boxes) for sample in dataset.all_samples()] == [2]


def test_tfod_and_roboflow_in_folders_of_splits(tmp_path, draw, write):
    for split in ("train", "valid", "test"):
        for name in NAMES:
            draw(tmp_path / split / f"{name}_jpg.rf.{split}.jpg", size=(64, 96))
        text = rows(f"{{}}_jpg.rf.{split}.jpg,96,64,bird,10,10,40,40")
        write(tmp_path / split / "_annotations.csv", f"filename,width,height,class,xmin,ymin,xmax,ymax\n{text}")
    dataset = read_dataset(tmp_path)
    assert {split: len(samples) for split, samples in dataset.splits.items()} == {"train": 3, "val": 3, "test": 3}
    assert (boxes_of(dataset), dataset.exporter, dataset.problems) == ([BOX] * 9, "Roboflow", ())
    alone = read_dataset(tmp_path / "valid" / "_annotations.csv")
    assert "names no splits" in said(alone), "the folder of a file that was given may have any name"


def test_tfod_with_a_file_for_each_split(tmp_path, draw, write):
    for split in ("train", "test"):
        draw(tmp_path / "images" / split / f"hen{split}.jpg")
        text = f"hen{split}.jpg,60,40,bird,2,3,20,30\n"
        write(tmp_path / f"{split}_labels.csv", f"filename,width,height,class,xmin,ymin,xmax,ymax\n{text}")
    assert ids_of(read_dataset(tmp_path)) == {"test": ["hentest.jpg"], "train": ["hentrain.jpg"]}


def test_a_declared_size_that_is_not_the_pictures_is_told(farm):
    dataset = farm(
        "filename,width,height,class,xmin,ymin,xmax,ymax\n" + rows("{}.jpg,192,128,bird,10,10,40,40"), "train.csv"
    )
    assert [problem.kind for problem in dataset.problems] == ["declared_size"]
    assert "3 of 3 pictures have another size" in said(dataset)
    halved = read_dataset(dataset.root, boxes_in="declared")
    assert (boxes_of(halved), halved.problems) == ([[5, 5, 20, 20]] * 3, ())


def test_keras_retinanet_has_no_header(farm, write, tmp_path):
    write(tmp_path / "classes.csv", "bird,0\n")
    text = rows("images/{}.jpg,10,10,40,40,bird") + "images/owl.jpg,,,,,\n"
    dataset = farm(text, "annotations.csv", names=(*NAMES, "owl"))
    assert (dataset.class_names, boxes_of(dataset), dataset.problems) == (("bird",), [BOX] * 3, ())
    assert [len(sample.boxes) for sample in dataset.all_samples()] == [1, 1, 1, 0]
    assert "annotations.csv has no header" in said(dataset)
    assert "classes.csv is no table of boxes, not read" in said(dataset)


def test_kaggle_wheat_has_one_class_and_tells_of_pictures_without_a_row(farm):
    text = "image_id,width,height,bbox,source\n" + rows('{},96,64,"[10.0, 10.0, 30.0, 30.0]",usask_1')
    dataset = farm(text, "train.csv", "train", names=(*NAMES, "empty"))
    assert (dataset.class_names, boxes_of(dataset), list(dataset.splits)) == (("object",), [BOX] * 3, ["train"])
    assert "all of its boxes are of one class, object" in said(dataset)
    assert "1 picture has no row and is not used" in said(dataset)


def test_siim_covid_has_several_boxes_in_a_row(tmp_path, draw, write):
    one, two = "{'x': 10.0, 'y': 10.0, 'width': 30.0, 'height': 30.0}", "{'x': 1, 'y': 2, 'width': 3, 'height': 4}"
    text = f'hen_image,"[{one}, {two}]",opacity 1 10 10 40 40 other 1 1 2 4 6,s1\nowl_image,,none 1 0 0 1 1,s2\n'
    write(tmp_path / "train_image_level.csv", f"id,boxes,label,StudyInstanceUID\n{text}")
    write(tmp_path / "train_study_level.csv", "id,Negative for Pneumonia,Typical Appearance\ns1_study,0,1\n")
    write(tmp_path / "sample_submission.csv", "id,PredictionString\ns1_study,negative 1 0 0 1 1\n")
    for name, study in (("hen", "s1"), ("owl", "s2")):
        draw(tmp_path / "train" / study / "series" / f"{name}.png", size=(64, 96))
    dataset = read_dataset(tmp_path)
    assert dataset.class_names == ("opacity", "other")
    assert (boxes_of(dataset), ids_of(dataset)) == ([BOX, [1, 2, 4, 6]], {"train": ["hen_image", "owl_image"]})
    assert "sample_submission.csv, train_study_level.csv are no tables of boxes" in said(dataset)


@pytest.mark.parametrize("header", ["", "LabelName,DisplayName\n"])
def test_open_images_is_in_fractions_and_names_its_classes_elsewhere(tmp_path, draw, write, header):
    fractions = "0.1041667,0.4166667,0.15625,0.625"
    text = f"hen,xclick,/m/015p6,1,{fractions},0,0,0\nduck,xclick,/m/015p6,1,{fractions},0,0,1\n"
    write(tmp_path / "annotations" / "train-annotations-bbox.csv", f"{OPEN_IMAGES}\n{text}")
    write(tmp_path / "annotations" / "class-descriptions-boxable.csv", f"{header}/m/015p6,Bird\n/m/01yrx,Cat\n")
    for name in ("hen", "duck"):
        draw(tmp_path / "images" / "train" / f"{name}.jpg", size=(64, 96))
    dataset = read_dataset(tmp_path)
    assert (dataset.class_names, dataset.exporter, list(dataset.splits)) == (("Bird",), "Open Images", ["train"])
    assert (boxes_of(dataset), dataset.problems) == ([BOX] * 2, ())
    assert [sample.ignore.tolist() for sample in dataset.splits["train"]] == [[False], [True]], "a group is ignored"
    file = read_dataset(tmp_path / "annotations" / "train-annotations-bbox.csv")
    assert file.class_names == ("Bird",)


def test_fractions_in_one_table_and_pixels_in_another_are_refused(tmp_path, draw, write):
    draw(tmp_path / "hen.jpg")
    write(tmp_path / "train.csv", f"{OPEN_IMAGES}\nhen,xclick,/m/1,1,0.1,0.4,0.2,0.6,0,0,0\n")
    write(tmp_path / "val.csv", f"{HEADER}\nhen.jpg,2,3,20,30,bird\n")
    with pytest.raises(DataError, match=r"boxes of .*train\.csv are fractions .* of .*val\.csv are pixels"):
        read_dataset(tmp_path)


def test_fractions_that_nothing_names_are_told(farm):
    text = f"{HEADER}\n{rows('{}.jpg,0.1,0.15,0.42,0.63,bird')}"
    dataset = farm(text)
    assert [problem.kind for problem in dataset.problems] == ["fractions"]
    assert "3 of 3 boxes" in said(dataset)
    assert boxes_of(read_dataset(dataset.root, boxes_in="fractions"))[0] == [9.6, 9.6, 40.32, 40.32]


def test_swapped_corners_are_told_and_are_no_background(farm):
    text = f"{HEADER}\n{rows('{}.jpg,40,40,10,10,bird')}"
    dataset = farm(f"{text}owl.jpg,1,1,9,9,bird\n", names=(*NAMES, "owl"))
    assert len(dataset.all_samples()) == 1
    assert "3 of 4 boxes have swapped corners" in said(dataset)
    assert "without area" not in said(dataset)
    with pytest.raises(DataError, match="3 of 3 boxes have swapped corners"):
        farm(text)


def test_rsna_names_background_by_an_empty_box(farm):
    text = "patientId,x,y,width,height,Target\nhen,10,10,30,30,1\nhen,1,1,8,8,1\nduck,,,,,0\ngoose,NaN,NaN,NaN,NaN,0\n"
    dataset = farm(text, "stage_2_train_labels.csv", "stage_2_train_images", ".png")
    assert [len(sample.boxes) for sample in dataset.splits["train"]] == [2, 0, 0]
    assert boxes_of(dataset) == [BOX, [1, 1, 9, 9]]


def test_two_tables_of_one_split_are_joined(tmp_path, draw, write):
    draw(tmp_path / "a.png")
    write(tmp_path / "train.csv", f"{HEADER}\na.png,2,3,20,30,disc\n")
    write(tmp_path / "train_bars.csv", f"{HEADER}\na.png,2,3,20,30,disc\na.png,1,1,5,5,bar\n")
    dataset = read_dataset(tmp_path)
    assert [len(sample.boxes) for sample in dataset.splits["train"]] == [2]
    assert "list the same pictures (1); their boxes are joined, and 1 that are the same" in said(dataset)


def test_a_namesake_in_another_folder_is_told(tmp_path, draw, write):
    for split in ("train", "val"):
        draw(tmp_path / split / "hen.jpg")
        write(tmp_path / f"{split}.csv", f"{HEADER}\nhen.jpg,2,3,20,30,bird\n")
    draw(tmp_path / "images" / "hen.jpg")
    dataset = read_dataset(tmp_path)
    assert {sample.path.parent.name for samples in dataset.splits.values() for sample in samples} == {"train", "val"}
    assert f"{tmp_path / 'train'} is read and {tmp_path / 'images'} is not" in said(dataset)


def test_predictions_in_a_folder_of_results_are_no_data(tmp_path, draw, write):
    draw(tmp_path / "a.png")
    write(tmp_path / "train.csv", f"{HEADER}\na.png,2,3,20,30,disc\n")
    write(tmp_path / "test-results" / "found.csv", f"{HEADER}\na.png,1,1,5,5,disc\n")
    assert list(read_dataset(tmp_path).splits) == ["train"]


def test_a_file_that_is_no_text_is_told_among_others(tmp_path, draw, write):
    draw(tmp_path / "a.png")
    write(tmp_path / "train.csv", f"{HEADER}\na.png,2,3,20,30,disc\n")
    (tmp_path / "val.csv").write_bytes(b"\x81\x8d\xff\xfe")
    assert [problem.kind for problem in read_dataset(tmp_path).problems] == ["encoding"]


def test_a_folder_whose_files_tell_the_split(tmp_path, draw, write):
    for split, stem in (("train", "a"), ("train", "b"), ("test", "c")):
        draw(tmp_path / split / f"{stem}.jpg")
    write(tmp_path / "train.csv", f"{HEADER}\na.jpg,2,3,20,30,disc\na.jpg,1,1,5.5,5,bar\nb.jpg,2,3,20,30,disc\n")
    write(tmp_path / "test.csv", f"{HEADER}\nc.jpg,2,3,20,30,bar\n")
    dataset = read_dataset(tmp_path)
    assert (dataset.kind, dataset.class_names, dataset.category_ids) == ("csv", ("bar", "disc"), (1, 2))
    assert ids_of(dataset) == {"test": ["c.jpg"], "train": ["a.jpg", "b.jpg"]}
    sample = dataset.splits["train"][0]
    np.testing.assert_array_equal(sample.boxes, [[2, 3, 20, 30], [1, 1, 5.5, 5]])
    assert sample.class_ids.tolist() == [1, 0]
    assert (sample.height, sample.width) == (40, 60)
    assert (dataset.problems, dataset.notes) == ((), ())


@pytest.mark.parametrize("place", ["a.jpg", "boxes/a.jpg", "images/a.jpg", "images/boxes/a.jpg"])
@pytest.mark.parametrize("image_id", ["a.jpg", "a"])
def test_images_are_found_with_and_without_suffix(tmp_path, draw, write, place, image_id):
    path = draw(tmp_path / place)
    dataset = read_dataset(write(tmp_path / "boxes.csv", f"{HEADER}\n{image_id},2,3,20,30,disc\n"))
    assert [sample.path for sample in dataset.all_samples()] == [path]


@pytest.mark.parametrize("image_id", ["left/cam.1.png", "left/cam.1"])
def test_an_image_id_may_be_a_path(tmp_path, draw, write, image_id):
    path = draw(tmp_path / "left" / "cam.1.png")
    dataset = read_dataset(write(tmp_path / "boxes.csv", f"{HEADER}\n{image_id},2,3,20,30,disc\n"))
    assert [sample.path for sample in dataset.all_samples()] == [path]


def test_one_file_that_names_no_split_holds_some_out(tmp_path, draw, write):
    lines = [f"{number}.png,2,3,20,30,disc" for number in range(10)]
    for number in range(10):
        draw(tmp_path / f"{number}.png")
    dataset = read_dataset(write(tmp_path / "labels.csv", "\n".join([HEADER, *lines])))
    assert {split: len(samples) for split, samples in dataset.splits.items()} == {"train": 8, "val": 2}
    assert "2 of 10 images" in dataset.notes[0]


def test_one_id_for_two_images_becomes_their_paths(tmp_path, draw, write):
    for split in ("train", "val"):
        draw(tmp_path / split / "1.png")
        write(tmp_path / f"{split}.csv", f"{HEADER}\n1.png,2,3,20,30,disc\n")
    assert ids_of(read_dataset(tmp_path)) == {"train": ["train/1.png"], "val": ["val/1.png"]}


def test_an_empty_box_is_an_image_without_boxes(tmp_path, draw, write):
    draw(tmp_path / "a.png")
    draw(tmp_path / "b.png")
    file = write(tmp_path / "train.csv", f"{HEADER}\na.png,2,3,20,30,disc\nb.png,,,,,\n\n")
    dataset = read_dataset(file)
    assert [sample.boxes.shape for sample in dataset.splits["train"]] == [(1, 4), (0, 4)]
    assert dataset.problems == ()


def test_columns_in_any_order_with_others_between(tmp_path, draw, write):
    draw(tmp_path / "a.png")
    text = "\ufeffLabel, source ,x_min,y_max,y_min,x_max,image_id,width,height\ndisc,web,2,30,3,20,a.png,60,40\n"
    np.testing.assert_array_equal(
        read_dataset(write(tmp_path / "train.csv", text)).all_samples()[0].boxes, [[2, 3, 20, 30]]
    )


def test_width_and_height_in_place_of_the_far_corner(tmp_path, draw, write):
    draw(tmp_path / "a.png")
    file = write(tmp_path / "train.csv", "image_id,x_min,y_min,width,height,label\na.png,2,3,18,27,disc\n")
    np.testing.assert_array_equal(read_dataset(file).all_samples()[0].boxes, [[2, 3, 20, 30]])


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ("a.png,2,3,wide,30,disc", "bad_row"),
        ("a.png,2,3,20", "bad_row"),
        ("a.png,2,3,,30,disc", "bad_row"),
        ("a.png,2,3,20,30,", "bad_row"),
        ("a.png,20,3,2,30,disc", "swapped"),
        (",2,3,20,30,disc", "bad_row"),
        ("a.png,2,3,nan,30,disc", "not_finite"),
        ("a.png,2,3,inf,30,disc", "not_finite"),
        ("a.png,20,3,20,30,disc", "degenerate"),
    ],
)
def test_a_wrong_row_is_skipped_and_its_line_named(tmp_path, draw, write, problems_of, caplog, row, kind):
    draw(tmp_path / "a.png")
    file = write(tmp_path / "train.csv", f"{HEADER}\na.png,1,1,5,5,disc\n\n{row}\n")
    dataset = read_dataset(file)
    np.testing.assert_array_equal(dataset.all_samples()[0].boxes, [[1, 1, 5, 5]])
    assert problems_of(dataset) == [(kind, "train.csv:4")]
    assert f"{file}:4: " in caplog.text


def test_a_picture_all_of_whose_rows_are_wrong_is_no_background(tmp_path, draw, write, problems_of):
    draw(tmp_path / "a.png")
    draw(tmp_path / "b.png")
    dataset = read_dataset(write(tmp_path / "train.csv", f"{HEADER}\na.png,1,1,5,5,disc\nb.png,1,1,x,5,disc\n"))
    assert ids_of(dataset) == {"train": ["a.png"]}
    assert problems_of(dataset) == [("bad_row", "train.csv:3"), ("rows_lost", "train.csv:3")]


def test_a_missing_and_a_broken_image_are_skipped(tmp_path, draw, write, problems_of):
    draw(tmp_path / "a.png")
    write(tmp_path / "b.png", "words")
    text = "a.png,1,1,5,5,disc\nb.png,1,1,5,5,disc\nc.png,1,1,5,5,disc\n"
    dataset = read_dataset(write(tmp_path / "train.csv", f"{HEADER}\n{text}"))
    assert ids_of(dataset) == {"train": ["a.png"]}
    assert problems_of(dataset) == [("missing_image", "train.csv:4"), ("unreadable_image", "b.png")]


@pytest.mark.parametrize("image_id", ["x" * 400, "x" * 400 + "/b", "a.png/b", ".", "images"])
def test_an_image_id_that_can_be_no_image_is_skipped(tmp_path, draw, write, image_id):
    draw(tmp_path / "a.png")
    dataset = read_dataset(write(tmp_path / "train.csv", f"{HEADER}\na.png,1,1,5,5,disc\n{image_id},1,1,5,5,disc\n"))
    assert ids_of(dataset) == {"train": ["a.png"]}
    assert [problem.kind in ("missing_image", "unreadable_image") for problem in dataset.problems] == [True]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no column image_id.*which is empty.*write the header image_id,x_min"),
        (b"a,1,1,5,5,disc\n", r"has no column image_id, .*\(a,1,1,5,5,disc\)"),
        (b"bird,0\n", "has no column image_id, x_min, y_min, x_max, y_max in"),
        (b"image_id,x_min,y_min,x_max,label\n", "has no column y_max in"),
        (b"image_id,x_min,y_min,x_max,y_max,label\n", "holds no row with a box"),
        (b"image_id,x_min,y_min,x_max,y_max,label\n\x81,1,1,5,5,disc\n", "is no text in UTF-8 or Windows"),
        (b"image_id,x_min,y_min,x_max,y_max,label\na.png,1,1,5,5,disc\n", "missing_image.*pictures were looked for in"),
    ],
)
def test_a_file_that_is_no_such_table_is_one_sentence(tmp_path, content, message):
    file = tmp_path / "train.csv"
    file.write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_dataset(file)


def test_a_folder_with_a_table_that_lacks_a_column_is_told_so(tmp_path, write):
    write(tmp_path / "train.csv", "image_id,label\na.png,disc\n")
    with pytest.raises(DataError, match=r"train\.csv has no column x_min, y_min, x_max, y_max"):
        read_dataset(tmp_path)


def test_a_table_of_another_kind_is_not_recognised(tmp_path, write):
    write(tmp_path / "results.csv", "epoch,loss\n1,0.5\n")
    with pytest.raises(DataError, match="no data set of a known format"):
        read_dataset(tmp_path)


@pytest.fixture
def folded(tmp_path, draw, write):
    """Six images in three folds, the last two with folds as pandas writes them (1.0), and a file test.csv."""
    lines = [f"{number}.png,2,3,20,30,disc,{number % 3}{'.0' if number > 3 else ''}" for number in range(6)]
    for number in range(7):
        draw(tmp_path / f"{number}.png")
    write(tmp_path / "boxes.csv", "\n".join([f"{HEADER},fold", *lines]))
    write(tmp_path / "test.csv", f"{HEADER},fold\n6.png,2,3,20,30,disc,0\n")
    return tmp_path


def test_folds_are_splits(folded):
    dataset = read_dataset(folded)
    expected = {
        "fold0": ["0.png", "3.png"],
        "fold1": ["1.png", "4.png"],
        "fold2": ["2.png", "5.png"],
        "test": ["6.png"],
    }
    assert ids_of(dataset) == expected
    assert dataset.folds == (0, 1, 2)
    chosen = ids_of(dataset.with_fold(1))
    assert chosen == {"train": ["0.png", "3.png", "2.png", "5.png"], "val": ["1.png", "4.png"], "test": ["6.png"]}
    with pytest.raises(DataError, match=r"no split 'train' but the folds 0, 1, 2; give `fold` K"):
        dataset.choose_split("train", ("train",))


def test_an_image_in_two_folds_is_named(tmp_path, write):
    file = write(tmp_path / "boxes.csv", f"{HEADER},fold\na.png,1,1,5,5,disc,0\na.png,2,2,9,9,disc,1\n")
    with pytest.raises(
        DataError, match=r"boxes\.csv:3 puts the image a\.png into fold 1, and an earlier row into fold 0"
    ):
        read_dataset(file)


@pytest.mark.parametrize("fold", ["", "a", "-1", "0.5", "²"])
def test_a_fold_that_is_no_number_is_a_bad_row(tmp_path, draw, write, problems_of, fold):
    for stem in "ab":
        draw(tmp_path / f"{stem}.png")
    text = f"a.png,1,1,5,5,disc,0\nb.png,1,1,5,5,disc,{fold}\n"
    dataset = read_dataset(write(tmp_path / "boxes.csv", f"{HEADER},fold\n{text}"))
    assert ids_of(dataset) == {"fold0": ["a.png"]}
    assert problems_of(dataset) == [("bad_row", "boxes.csv:3"), ("rows_lost", "boxes.csv:3")]


@pytest.mark.data
def test_playing_cards(data_root):
    dataset = read_dataset(data_root / "playing_cards")
    assert {split: len(samples) for split, samples in dataset.splits.items()} == {"test": 67, "train": 296}
    assert sum(len(sample.boxes) for sample in dataset.all_samples()) == 670
    assert dataset.class_names == ("ace", "jack", "king", "nine", "queen", "ten")
    assert dataset.problems == ()
