"""The data check: counts, levels, duplicates, anchors, problems, and its command line."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_effdet import __main__ as program
from edge_effdet.artifacts import AnchorSpec
from edge_effdet.data.__main__ import CheckOptions, main, make_argument_parser
from edge_effdet.data.anchors import anchor_bases, best_levels, mean_best_iou, suggest_anchors
from edge_effdet.data.base import PROBLEM_KINDS, Dataset, Problem, make_sample
from edge_effdet.data.check import USUAL_INPUT, check_dataset, report_text
from edge_effdet.data.registry import read_dataset
from edge_effdet.errors import DataError
from edge_effdet.models.zoo import model_spec
from edge_effdet.training.stage import DEFAULT_MODEL

ANCHORS = AnchorSpec()


def sample_of(image_id, *rows, size=(512, 512), path=None):
    """Rows are (box, class id) or (box, class id, ignore)."""
    rows = [(*row, False)[:3] for row in rows]
    return make_sample(image_id, path or Path(f"{image_id}.png"), *size, rows, "test")


def dataset_of(*, class_names=("disc", "bar"), problems=(), **splits):
    numbers = tuple(range(1, len(class_names) + 1))
    return Dataset(Path("data"), "voc", class_names, numbers, splits, problems=tuple(problems))


@pytest.fixture
def counted():
    train = (sample_of("a", ((0, 0, 10, 10), 0), ((0, 0, 64, 64), 0), ((5, 5, 9, 9), 1, True)), sample_of("b"))
    return dataset_of(train=train, test=(sample_of("c", ((0, 0, 500, 400), 0), size=(400, 600)),))


def test_splits_are_counted(counted):
    report = check_dataset(counted)
    train = report.splits["train"]
    assert (train.images, train.images_without_boxes, train.boxes, train.ignored) == (2, 1, 2, 1)
    assert train.by_class == {"disc": 2, "bar": 0}
    assert report.splits["test"].boxes == 1
    assert (report.images, report.smallest_image, report.largest_image) == (3, (400, 600), (512, 512))
    text = report_text(report)
    assert "data: Pascal VOC, 2 classes, 3 images, 3 boxes" in text
    assert "400x600 to 512x512" in text
    assert "1 class has no box: bar" in text


def test_sizes_are_those_of_the_networks_input(counted):
    """Half the size turns sides of 10 into 5 and of 64 into 32, and a box of 500 x 400 in an image of 600 x 400 into 213 x 171."""
    report = check_dataset(counted, image_size=(256, 256))
    assert {level.level: level.boxes for level in report.levels} == {3: 2, 4: 0, 5: 1, 6: 0, 7: 0}
    assert report.below_smallest == 1
    assert "1 box is smaller than the smallest anchor (32 px): 33.3 %; a larger `image_size`" in report_text(report)


def test_one_split_alone(counted):
    report = check_dataset(counted, split="test")
    assert list(report.splits) == ["test"]
    assert report.images == 1
    with pytest.raises(DataError, match="has no split 'other'"):
        check_dataset(counted, split="other")


def test_an_image_in_two_splits_of_which_one_is_the_sum_is_counted_once():
    a, b = sample_of("a", ((0, 0, 10, 10), 0)), sample_of("b", ((0, 0, 10, 10), 0))
    report = check_dataset(dataset_of(train=(a,), val=(b,), trainval=(a, b)))
    assert report.images == 2
    assert sum(level.boxes for level in report.levels) == 2


def test_a_data_set_without_boxes_has_a_report():
    text = report_text(check_dataset(dataset_of(train=(sample_of("a"),))))
    assert "too few boxes" in text
    assert "2 classes have no box" in text


@pytest.mark.parametrize(
    ("size", "level"),
    [(1, 3), (32, 3), (50.7, 3), (57, 3), (57.1, 4), (64, 4), (128, 5), (400, 6), (512, 7), (5000, 7)],
)
def test_a_box_belongs_to_the_level_with_the_nearest_anchor(size, level):
    assert best_levels(np.array([float(size)]), ANCHORS).tolist() == [level]


def test_anchor_bases_are_those_of_retinanet():
    np.testing.assert_allclose(anchor_bases(ANCHORS)[0], [32, 32 * 2 ** (1 / 3), 32 * 2 ** (2 / 3)])
    np.testing.assert_allclose(anchor_bases(ANCHORS)[-1, 0], 512)


def test_anchors_fit_themselves():
    sides = (anchor_bases(ANCHORS).reshape(-1, 1, 1) * np.array(ANCHORS.aspect_ratios)).reshape(-1, 2)
    assert mean_best_iou(sides, ANCHORS) == pytest.approx(1)
    assert mean_best_iou(np.array([[16.0, 16.0]]), ANCHORS) == pytest.approx(256 / (32 * 1.4 * 32 * 0.7))


def boxes_of(ratios, count=400, seed=0):
    """Random boxes with these ratios (width / height) and an sqrt(area) of 40 to 400."""
    rng = np.random.default_rng(seed)
    sizes = np.exp(rng.uniform(np.log(40), np.log(400), count))
    roots = np.sqrt(rng.choice(ratios, count)) * np.exp(rng.normal(0, 0.02, count))
    return np.stack([sizes * roots, sizes / roots], axis=1)


def test_long_boxes_get_long_anchors_always_the_same():
    sides = boxes_of([0.125, 1.0, 8.0])
    advice = suggest_anchors(sides, ANCHORS)
    assert not advice.default_is_good_enough
    assert advice.suggested_iou > advice.default_iou + 0.2
    ratios = [width / height for width, height in advice.suggested.aspect_ratios]
    np.testing.assert_allclose(ratios, [0.125, 1, 8], rtol=0.05)
    assert advice == suggest_anchors(sides, ANCHORS)
    assert advice.suggested == suggest_anchors(sides[::-1], ANCHORS).suggested


def test_boxes_like_the_default_anchors_need_no_others():
    advice = suggest_anchors(boxes_of([0.5, 1.0, 2.0]), ANCHORS)
    assert advice.default_is_good_enough


def test_small_boxes_get_smaller_anchors():
    advice = suggest_anchors(boxes_of([0.5, 1.0, 2.0]) / 4, ANCHORS)
    assert advice.suggested.anchor_scale < 4
    assert not advice.default_is_good_enough


def test_the_command_that_is_suggested_trains_at_the_size_that_the_anchors_suit():
    rng = np.random.default_rng(0)
    rows = [((0, 0, 8 * side, side), 0) for side in rng.uniform(20, 60, 9)]
    dataset = dataset_of(train=[sample_of(str(number), *rows) for number in range(3)])
    usual, other = (report_text(check_dataset(dataset, image_size=size)) for size in (USUAL_INPUT, (288, 512)))
    assert "train --anchor-scale" in usual and "--image-size" not in usual.partition("train with")[2].partition("\n")[0]
    assert " --image-size 288x512\n" in other.partition("train --anchor-scale")[2]
    no_input = report_text(check_dataset(dataset, image_size=(500, 500)))
    assert "--anchor-scale" in no_input and "--image-size" not in no_input, "train would refuse it"


def test_few_boxes_are_no_ground_for_advice():
    assert suggest_anchors(boxes_of([1.0])[:9], ANCHORS) is None
    assert suggest_anchors(boxes_of([1.0])[:10], ANCHORS) is not None


@given(st.lists(st.tuples(st.floats(0.01, 2000), st.floats(0.01, 2000)), min_size=10, max_size=30))
def test_any_boxes_have_a_level_and_an_overlap(sides):
    sides = np.array(sides)
    assert set(best_levels(np.sqrt(sides.prod(axis=1)), ANCHORS).tolist()) <= set(range(3, 8))
    advice = suggest_anchors(sides, ANCHORS)
    assert 0 < advice.default_iou <= 1
    assert 0 < advice.suggested_iou <= 1


def test_images_that_stand_in_two_splits_are_found_by_their_bytes(tmp_path, draw):
    original = draw(tmp_path / "a.bmp", shade=1)
    copy = tmp_path / "copy.bmp"
    copy.write_bytes(original.read_bytes())
    other = draw(tmp_path / "other.bmp", shade=2)
    assert original.stat().st_size == other.stat().st_size, "equal lengths, so that the bytes decide"
    twice = draw(tmp_path / "twice.png", size=(20, 20))
    train = (sample_of("a", path=original), sample_of("b", path=other), sample_of("t", path=twice))
    test = (sample_of("c", path=copy), sample_of("t", path=twice))
    report = check_dataset(dataset_of(train=train, test=test))
    assert report.duplicates == ((("test", copy), ("train", original)), (("test", twice), ("train", twice)))
    assert f"  {copy} (test) = {original} (train)" in report_text(report)
    assert check_dataset(dataset_of(train=(*train, test[0]))).duplicates == (), "two in one split"
    many = [sample_of(str(number), path=draw(tmp_path / f"{number}.bmp", shade=1)) for number in range(9)]
    text = report_text(check_dataset(dataset_of(train=(*many, *train), test=test)))
    assert f"  {copy} (test) = {tmp_path / '0.bmp'} (train) and 9 more of them\n" in text


def test_a_duplicate_that_does_not_touch_the_chosen_split_is_left_out(tmp_path, draw):
    path = draw(tmp_path / "a.png")
    dataset = dataset_of(train=(sample_of("a", path=path),), val=(sample_of("a", path=path),), test=(sample_of("x"),))
    assert len(check_dataset(dataset).duplicates) == len(check_dataset(dataset, split="val").duplicates) == 1
    assert check_dataset(dataset, split="test").duplicates == ()


def test_many_problems_are_cut_in_the_text_only():
    problems = [Problem("degenerate", f"a.xml:{line}", "skipped it") for line in range(25)]
    problems.append(Problem("bad_row", "b.xml:1", "skipped that"))
    report = check_dataset(dataset_of(train=(sample_of("a"),), problems=problems))
    text = report_text(report)
    assert text.index("bad_row, 1 (") < text.index("degenerate, 25 (")
    assert text.count("  a.xml:") == 20
    assert "  and 5 more; `json` lists all" in text
    assert len(report.to_dict()["problems"]) == 26


def test_the_kinds_of_problems_are_those_of_the_documentation():
    text = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8")
    assert dict(re.findall(r"^\| `(\w+)` \| (.+: .+) \|$", text, re.MULTILINE)) == PROBLEM_KINDS


def test_decoding_finds_what_the_header_hides(tiny_voc, tmp_path):
    dataset = read_dataset(tiny_voc)
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(dataset.splits["val"][0].path.read_bytes()[:-400])
    broken = replace(dataset, splits={"val": (replace(dataset.splits["val"][0], path=cut),)})
    assert check_dataset(broken).problems == ()
    report = check_dataset(broken, decode=True)
    assert [(problem.kind, problem.where) for problem in report.problems] == [("unreadable_image", str(cut))]
    assert "1 problem (1 image decoded)" in report_text(report)
    assert "no problems (12 images decoded)" in report_text(check_dataset(dataset, decode=True))


def test_the_command_prints_the_report(tiny_voc, capsys):
    assert main(["check", str(tiny_voc)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert f"{tiny_voc}: Pascal VOC, 2 classes, 12 images, 24 boxes" in captured.out
    rows = [line.split() for line in captured.out.splitlines()]
    assert ["train", "8", "0", "16", "0"] in rows
    assert ["disc", "8", "2", "2"] in rows
    assert "no image is in two splits" in captured.out
    assert captured.out.endswith("no problems\n")


def test_the_command_gives_one_json_object(tiny_voc, capsys):
    assert program.main(["data", "check", str(tiny_voc), "--json", "--split", "val", "--image-size", "64x96"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["format"], data["image_size"], list(data["splits"])) == ("voc", [64, 96], ["val"])
    assert data["boxes_below_smallest_anchor"] == 4
    assert {"classes", "levels", "duplicates", "problems", "notes", "anchors", "decoded"} <= data.keys()
    assert data["exporter"] is None


def test_the_exporter_and_what_is_wrong_with_the_whole_set_are_named(tmp_path, draw, write, capsys):
    for number in range(3):
        draw(tmp_path / "train" / f"{number}.jpg", size=(64, 96))
    rows = "".join(f"{number}.jpg,48,32,bird,5,5,25,25\n" for number in range(3))
    write(tmp_path / "train" / "_annotations.csv", f"filename,width,height,class,xmin,ymin,xmax,ymax\n{rows}")
    assert main(["check", str(tmp_path), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["format"], data["exporter"]) == ("csv", "Roboflow")
    assert [problem["kind"] for problem in data["problems"]] == ["declared_size"]
    assert main(["check", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert f"{tmp_path}: CSV, 1 class, 3 images, 3 boxes" in text
    assert f"note: {tmp_path} looks like an export of Roboflow." in text
    assert "3 of 3 pictures have another size than the one that they were annotated in" in text
    assert "; --boxes-in declared scales the boxes to the pictures" in text
    assert main(["check", str(tmp_path), "--boxes-in", "declared"]) == 0
    assert capsys.readouterr().out.endswith("no problems\n")


def test_findings_are_no_error_and_are_not_printed_twice(tmp_path, draw, write, capsys):
    draw(tmp_path / "a.png")
    write(tmp_path / "train.csv", "image_id,x_min,y_min,x_max,y_max,label\na.png,1,1,5,5,disc\na.png,1,1,x,5,disc\n")
    assert main(["check", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert f"  {tmp_path / 'train.csv'}:3: skipped a row: its box (1, 1, x, 5) is not four numbers" in captured.out


def test_data_that_cannot_be_read_is_exit_code_2(tmp_path, capsys):
    assert main(["check", str(tmp_path / "absent")]) == 2
    assert capsys.readouterr().err.startswith("error: There is no data at ")
    assert main(["check", str(tmp_path), "--json"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "known format" in captured.err


@pytest.mark.parametrize("action", ["check", "convert", "view"])
def test_the_help_of_each_action_ends_with_an_example_that_can_be_parsed(capsys, action):
    with pytest.raises(SystemExit) as caught:
        main([action, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "usage: python -m edge_effdet.data" in text
    example = text.split("example:\n")[1]
    assert make_argument_parser(action).parse_args(shlex.split(example)[3:]).action == action


@pytest.mark.data
def test_blood_cells(bccd, capsys):
    assert main(["check", str(bccd)]) == 0
    text = capsys.readouterr().out
    assert "3 classes, 364 images, 4886 boxes" in text
    assert "2 problems" in text
    assert "BloodImage_00343.xml:50: skipped a degenerate box" in text


def test_boxes_are_measured_in_the_input_of_the_model_that_train_takes_by_default():
    assert model_spec(DEFAULT_MODEL, ("disc",)).image_size == USUAL_INPUT
    assert CheckOptions().image_size == USUAL_INPUT
