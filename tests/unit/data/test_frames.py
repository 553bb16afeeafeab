"""Declared sizes against the pictures that are there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edge_effdet.data.frames import check_frames, compare_frame, move_box
from edge_effdet.data.raw import RawPicture
from edge_effdet.errors import DataError
from edge_effdet.runtime.images import PictureFrame, picture_frame, read_image

LYING, STANDING = (64, 96), (96, 64)
TURNED = PictureFrame(upright=STANDING, raw=LYING, orientation=6)
PLAIN = PictureFrame(upright=LYING, raw=LYING)


@pytest.mark.parametrize(
    ("declared", "frame", "kind", "said"),
    [
        (LYING, PLAIN, None, ""),
        (STANDING, TURNED, None, ""),
        (LYING, TURNED, "turned", "declared 96x64, in the file 64x96 upright"),
        ((32, 48), PLAIN, "scaled", "2 times"),
        ((128, 192), PLAIN, "scaled", "0.5 times"),
        # 4000 x 3000 scaled to 1333 x 1000 is no whole factor.
        ((3000, 4000), PictureFrame((1000, 1333), (1000, 1333)), "scaled", "0.333 times"),
        ((64, 64), PLAIN, "other", "declared 64x64"),
        # Nothing tells which way it was turned.
        (STANDING, PLAIN, "other", ""),
        ((0, 0), PLAIN, "other", ""),
    ],
)
def test_kinds(declared, frame, kind, said):
    mismatch = compare_frame(declared, frame)
    assert (mismatch.kind if mismatch else None) == kind
    assert said in (mismatch.text if mismatch else "")


def pictures(*declared_and_frames):
    return [
        (RawPicture(str(number), Path(f"{number}.jpg"), f"a.json:{number}", declared=declared), frame)
        for number, (declared, frame) in enumerate(declared_and_frames)
    ]


def test_each_kind_is_one_problem_with_its_count_and_cure():
    (problem,) = check_frames(pictures(*[(LYING, TURNED)] * 3, (STANDING, TURNED), (None, PLAIN)), "upright")
    assert problem.kind == "declared_size" and problem.where == "a.json:0"
    assert "3 of 4 pictures were annotated before their EXIF orientation" in problem.text
    assert "`boxes_in` raw turns the boxes with the pictures" in problem.text
    (problem,) = check_frames(pictures(((32, 48), PLAIN)), "upright")
    assert "`boxes_in` declared scales the boxes" in problem.text


def test_of_several_kinds_none_has_a_cure():
    found = check_frames(pictures((LYING, TURNED), ((32, 48), PLAIN), ((64, 64), PLAIN)), "upright")
    assert len(found) == 3 and not any("`boxes_in`" in problem.text for problem in found)


def test_what_is_mended_is_no_problem_and_what_cannot_be_is_refused():
    assert check_frames(pictures((LYING, TURNED)), "raw") == []
    assert check_frames(pictures((LYING, TURNED), ((32, 48), PLAIN)), "declared") == []
    with pytest.raises(DataError, match="`boxes_in` declared scales boxes by one factor, and 1 pictures"):
        check_frames(pictures(((32, 48), PLAIN), ((64, 64), PLAIN)), "declared")


def test_a_box_is_scaled_with_its_picture():
    (one,) = pictures(((32, 48), PLAIN))
    assert move_box((5, 5, 25, 25), *one, "declared") == (10, 10, 50, 50)
    assert move_box((5, 5, 25, 25), *one, "upright") == (5, 5, 25, 25)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_box_of_the_stored_picture_lies_on_its_object_in_the_upright_one(tmp_path, suffix, orientation):
    stored = np.zeros((*LYING, 3), np.uint8)
    stored[8:24, 16:56] = 255
    path = tmp_path / f"a{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    # Every format but JPEG keeps the edge sharp.
    Image.fromarray(stored).save(path, exif=exif, **({"lossless": True} if suffix == ".webp" else {}))
    frame = picture_frame(path)
    assert frame.raw == LYING and frame.orientation == orientation
    upright = read_image(path)
    assert frame.upright == upright.shape[:2]
    (one,) = pictures((None, frame))
    rows, columns = np.nonzero(upright[..., 0] > 127)
    found = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert move_box((16, 8, 56, 24), *one, "raw") == found
