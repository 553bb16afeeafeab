from __future__ import annotations

import itertools
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edge_effdet.artifacts import Detections, ModelSpec
from edge_effdet.errors import InputError
from edge_effdet.runtime.drawing import (
    PREDICTION_COLOR,
    TRUTH_COLOR,
    class_color,
    contact_sheet,
    draw_comparison,
    draw_detections,
    save_annotated,
    save_picture,
)
from edge_effdet.runtime.images import image_size

SPEC = ModelSpec("tf_efficientdet_lite0", (64, 64), ("cat", "dog"), (1, 2))


def one(box: list[float], class_id: int = 1) -> Detections:
    return Detections(np.array([box], np.float32), np.array([0.9], np.float32), np.array([class_id], np.int32))


def test_a_box_is_drawn_in_the_colour_of_its_class():
    image = np.zeros((100, 120, 3), np.uint8)
    drawn = draw_detections(image, one([20, 40, 80, 90]), SPEC)
    assert tuple(drawn[65, 20]) == class_color(1)
    assert tuple(drawn[65, 50]) == (0, 0, 0)
    assert not image.any(), "the original stays as it is"


def test_an_object_that_is_tracked_shows_its_number():
    """The label begins with it, so it is longer, and two numbers give two pictures."""
    image, found = np.zeros((200, 300, 3), np.uint8), one([50, 80, 250, 190])

    def drawn(number: int | None) -> np.ndarray:
        ids = None if number is None else np.array([number], np.int32)
        return draw_detections(image, replace(found, track_ids=ids), SPEC)

    def width(picture: np.ndarray) -> int:
        return int((picture[:78] == class_color(1)).all(axis=2).any(axis=0).sum())

    assert width(drawn(7)) > width(drawn(None))
    assert (drawn(7) != drawn(8)).any()
    np.testing.assert_array_equal(drawn(-1), drawn(None))


@pytest.mark.parametrize("box", [[0, 0, 119, 99], [-30, -30, 5, 5], [100, 80, 400, 300], [50, 50, 50, 50]])
def test_a_box_at_or_beyond_the_edge_is_drawn(box: list[float]):
    assert draw_detections(np.zeros((100, 120, 3), np.uint8), one(box), SPEC).shape == (100, 120, 3)


def test_neighbouring_classes_differ():
    colors = [np.array(class_color(index), int) for index in range(20)]
    assert min(np.abs(a - b).sum() for a, b in itertools.pairwise(colors)) > 60


def test_a_sheet_holds_pictures_of_other_sizes():
    sheet = contact_sheet([np.full((40, 60, 3), 10, np.uint8), np.full((80, 20, 3), 200, np.uint8)], columns=2)
    assert sheet.shape == (40, 120, 3)
    assert sheet[20, 10, 0] == 10 and sheet[20, 65, 0] == 200


def test_a_sheet_may_be_told_the_size_of_its_cells():
    pictures = [np.full((400, 600, 3), 10, np.uint8), np.full((300, 100, 3), 200, np.uint8)]
    assert contact_sheet(pictures, columns=2, cell=(40, 50)).shape == (40, 100, 3)


def test_truth_is_red_and_predictions_are_blue_and_both_are_seen_where_they_are_the_same():
    image = np.zeros((300, 400, 3), np.uint8)
    same = np.array([[100, 100, 200, 200]], np.float32)
    drawn = draw_comparison(image, same, ["dog"], one([100, 100, 200, 200]), SPEC, "a caption")
    factor = drawn.shape[1] // 400
    legend = drawn.shape[0] - 300 * factor
    assert factor == 3 and 0 < legend < 100
    row = drawn[legend + 150 * factor].astype(int)
    for color in (TRUTH_COLOR, PREDICTION_COLOR):
        assert (np.abs(row - color).sum(axis=1) == 0).any()
    assert not image.any(), "the original stays as it is"
    assert (drawn[:legend] == 255).mean() > 0.5, "the legend lies above the picture"


@pytest.mark.parametrize("size", [(20, 30), (1500, 100), (3000, 4000)])
def test_a_comparison_of_any_size_with_boxes_at_and_beyond_the_edge(size: tuple[int, int]):
    height, width = size
    boxes = np.array([[0, 0, width, height], [-5, -5, 5, 5], [width - 2, height - 2, width, height]], np.float32)
    found = Detections(boxes, np.array([0.9, 0.8, 0.7], np.float32), np.array([0, 1, 1], np.int32))
    drawn = draw_comparison(
        np.zeros((*size, 3), np.uint8), boxes, ["a long name of a class"] * 3, found, SPEC, "x" * 400
    )
    assert drawn.dtype == np.uint8 and drawn.shape[1] % width == 0
    nothing = Detections(boxes[:0], found.scores[:0], found.class_ids[:0])
    assert draw_comparison(np.zeros((*size, 3), np.uint8), boxes[:0], [], nothing, SPEC, "").shape == drawn.shape


@pytest.mark.parametrize(("name", "kind"), [("a.jpg", "JPEG"), ("a.png", "PNG"), ("a", "JPEG")])
def test_the_name_decides_the_format(name: str, kind: str, tmp_path: Path):
    save_picture(tmp_path / name, np.zeros((8, 8, 3), np.uint8))
    with Image.open(tmp_path / name) as picture:
        assert picture.format == kind


def test_pictures_are_written_whole_or_not_at_all(tmp_path: Path):
    save_annotated(tmp_path / "a" / "b.jpg", np.zeros((30, 40, 3), np.uint8), one([1, 1, 9, 9]), SPEC)
    assert image_size(tmp_path / "a" / "b.jpg") == (30, 40)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="Cannot write"):
        save_annotated(tmp_path / "file" / "b.jpg", np.zeros((30, 40, 3), np.uint8), one([1, 1, 9, 9]), SPEC)


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_half_a_picture_is_no_picture(tmp_path, suffix):
    """On a full disk Pillow would write half a JPEG without an error; a limit on file sizes simulates the full disk."""
    code = (
        "import resource, signal, sys, numpy as np\n"
        "from pathlib import Path\n"
        "from edge_effdet.runtime.drawing import save_picture\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))\n"
        "noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)\n"
        "save_picture(Path(sys.argv[1]), noise)\n"
    )
    path = tmp_path / f"picture{suffix}"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, cwd=Path(__file__).parents[3]
    )
    assert "InputError: Writing" in done.stderr.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []
