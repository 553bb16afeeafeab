"""The contact sheet: which pictures are on it, in which order, and that boxes can be seen, also beyond their picture."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from edge_effdet.data.__main__ import main
from edge_effdet.data.raw import RawBox, RawDataset, RawPicture
from edge_effdet.data.registry import read_raw
from edge_effdet.data.view import MOST_TILES, TILE, draw_sheet
from edge_effdet.errors import DataError, UsageError

GOOD = (10.0, 10.0, 40.0, 40.0)
RED = (225, 0, 0)


@pytest.fixture
def make(tmp_path, draw):
    """A data set of pictures of 96 x 64 pixels: of each split, by name, the boxes of each picture."""

    def of(kind="csv", declared=None, classes=None, label="bird", **splits):
        parts = []
        for split, pictures in splits.items():
            part = []
            for number, boxes in enumerate(pictures):
                path = draw(tmp_path / "in" / f"{split}{number}.png", size=(64, 96))
                raw_boxes = [RawBox(box, label) for box in boxes]
                part.append(RawPicture(path.stem, path, f"a:{number}", raw_boxes, declared=declared))
            parts.append((split, part))
        return RawDataset(tmp_path / "in", kind, parts, classes)

    return of


def shown(sheet):
    return [(path.stem, kinds) for path, kinds in sheet.pictures]


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def is_near(image, color):
    return (np.abs(image - color).max(axis=-1) < 30).any()


def test_the_worst_come_first_and_the_others_evenly_over_the_splits(make, tmp_path):
    outside, duplicate, swapped = [(50.0, 10.0, 120.0, 40.0)], [GOOD, GOOD], [(40.0, 10.0, 10.0, 40.0)]
    raw = make(train=[[GOOD], duplicate, [GOOD], [GOOD], [GOOD], outside], val=[[GOOD], swapped, [GOOD]])
    sheet = draw_sheet(raw, tmp_path / "sheet.png", count=7)
    assert shown(sheet)[:3] == [("val1", ("swapped",)), ("train5", ("outside",)), ("train1", ("duplicate",))]
    assert [name for name, _ in shown(sheet)[3:]] == ["train0", "train4", "val0", "val2"]
    assert (sheet.of, sheet.with_problems) == (9, {"swapped": 1, "outside": 1, "duplicate": 1})
    assert "7 of the 9 pictures" in sheet.text()
    assert pixels(tmp_path / "sheet.png").shape[1] % TILE[1] == 0


def test_kinds_of_problems_share_the_room(make, tmp_path):
    swapped, duplicate = [(40.0, 10.0, 10.0, 40.0)], [GOOD, GOOD]
    sheet = draw_sheet(make(train=[swapped] * 9 + [duplicate] * 2), tmp_path / "sheet.png", count=4)
    assert [kinds for _, kinds in shown(sheet)] == [("swapped",)] * 2 + [("duplicate",)] * 2


def test_fewer_pictures_than_asked_for_are_all_drawn(make, tmp_path):
    sheet = draw_sheet(make(train=[[GOOD]] * 3), tmp_path / "sheet.png")
    assert len(sheet.pictures) == 3
    assert sheet.with_problems == {}
    assert "none shows a problem" in sheet.text()


def test_a_box_is_drawn_where_it_lies_and_one_with_a_problem_in_red(make, tmp_path):
    draw_sheet(make(train=[[GOOD]]), tmp_path / "good.png")
    good = pixels(tmp_path / "good.png")[: TILE[0]]
    assert not is_near(good, RED)
    # The picture of 96 x 64 fills the width of the tile but for its border.
    scale = (TILE[1] - 12) / 96
    left, top = 6 + 40 * scale, (TILE[0] - 64 * scale) / 2 + 40 * scale
    corner = good[round(top) - 2 : round(top) + 3, round(left) - 2 : round(left) + 3]
    grey = np.abs(corner - 100).max(axis=-1)
    assert (grey > 60).any(), "the lower right corner of the box"
    draw_sheet(make(train=[[GOOD, (50.0, 10.0, 120.0, 40.0)]]), tmp_path / "bad.png")
    assert is_near(pixels(tmp_path / "bad.png")[: TILE[0]], RED)


def test_a_declared_size_that_differs_is_told_until_it_is_mended(make, tmp_path):
    raw = make(train=[[(5.0, 5.0, 20.0, 20.0)]] * 2, declared=(32, 48))
    assert draw_sheet(raw, tmp_path / "sheet.png").with_problems == {"declared_size": 2}
    assert draw_sheet(raw, tmp_path / "sheet.png", boxes_in="declared").with_problems == {}


def test_fractions_and_corners_are_named_as_the_whole_set_shows_them(make, tmp_path):
    raw = make(train=[[(0.1, 0.1, 0.5, 0.5)]] * 3)
    assert draw_sheet(raw, tmp_path / "sheet.png").with_problems == {"fractions": 3}
    assert draw_sheet(raw, tmp_path / "sheet.png", boxes_in="fractions").with_problems == {}
    corners = make(kind="coco", train=[[(30.0, 30.0, 110.0, 90.0)]] * 3, classes={1: "bird"}, label=1)
    assert draw_sheet(corners, tmp_path / "sheet.png").with_problems == {"corners_as_size": 3}


def test_a_box_without_a_class_and_one_that_is_no_number_do_not_stop_it(make, tmp_path):
    raw = make(train=[[(float("nan"), 1.0, 2.0, 3.0)], [(-1e9, 0.0, 1e9, 9.0)]], classes={0: "bird"}, label=7)
    assert set(draw_sheet(raw, tmp_path / "sheet.png").with_problems) == {"unknown_class"}
    raw = make(train=[[(float("nan"), 1.0, 2.0, 3.0)], [(-1e9, 0.0, 1e9, 9.0)]])
    assert draw_sheet(raw, tmp_path / "sheet.png").with_problems == {"not_finite": 1, "outside": 1}


def test_pictures_that_cannot_be_opened_have_their_place(make, tmp_path):
    raw = make(train=[[GOOD]] * 3)
    first, second, _ = (picture.path for picture in raw.parts[0][1])
    first.write_text("words")
    second.write_bytes(second.read_bytes()[:-30])
    sheet = draw_sheet(raw, tmp_path / "sheet.png")
    assert dict(shown(sheet))["train0"] == ("unreadable_image",)
    # Only decoding shows that the second one is cut off.
    assert dict(shown(sheet))["train1"] == ("unreadable_image",)


def test_a_small_picture_and_a_long_one_fit_into_their_tiles(tmp_path, draw):
    sizes = ((1, 1), (2000, 10), (10, 2000))
    pictures = [
        RawPicture(
            str(number), draw(tmp_path / "in" / f"{number}.png", size=size), "a", [RawBox((0.0, 0.0, 1.0, 1.0), "x")]
        )
        for number, size in enumerate(sizes)
    ]
    draw_sheet(RawDataset(tmp_path / "in", "csv", [(None, pictures)]), tmp_path / "sheet.jpg")
    with Image.open(tmp_path / "sheet.jpg") as sheet:
        assert sheet.format == "JPEG"


def test_what_cannot_be_drawn_is_one_sentence(make, tmp_path):
    raw = make(train=[[GOOD]])
    for count in (0, -1, MOST_TILES + 1):
        with pytest.raises(UsageError, match=f"`count` {count} is not from 1 to"):
            draw_sheet(raw, tmp_path / "sheet.png", count=count)
    with pytest.raises(UsageError, match=r"is no \.jpg and no \.png"):
        draw_sheet(raw, tmp_path / "sheet.gif")
    with pytest.raises(UsageError, match="would be written into"):
        draw_sheet(raw, raw.root / "sheet.png")
    with pytest.raises(DataError, match="has no picture to draw"):
        draw_sheet(make(), tmp_path / "sheet.png")
    assert not (tmp_path / "sheet.png").exists()


def test_the_command_draws_a_set_of_which_nothing_could_be_used(tmp_path, draw, write, capsys):
    draw(tmp_path / "in" / "a.png")
    write(tmp_path / "in" / "train.csv", "image_id,x_min,y_min,x_max,y_max,label\na.png,20,20,10,10,bird\n")
    assert main(["check", str(tmp_path / "in")]) == 2
    capsys.readouterr()
    output = str(tmp_path / "sheet.jpg")
    assert main(["view", str(tmp_path / "in"), "--output", output, "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["of"], data["with_problems"], data["pictures"][0]["problems"]) == (1, {"swapped": 1}, ["swapped"])


def test_the_command_prints_what_it_drew(tiny_voc, tmp_path, capsys):
    assert main(["view", str(tiny_voc), "--output", str(tmp_path / "sheet.jpg"), "--count", "5"]) == 0
    assert f"{tmp_path / 'sheet.jpg'}: 5 of the 12 pictures of {tiny_voc}" in capsys.readouterr().out
    assert main(["view", str(tiny_voc), "--output", str(tmp_path / "sheet.jpg"), "--count", "0"]) == 2
    assert "error: --count 0 is not from 1 to" in capsys.readouterr().err
    assert len(list(read_raw(tiny_voc).parts)) >= 3
