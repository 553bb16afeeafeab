from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from edge_effdet.artifacts import Detections, ModelSpec
from edge_effdet.drawing import class_color, contact_sheet, draw_detections, save_annotated
from edge_effdet.errors import InputError
from edge_effdet.images import image_size

SPEC = ModelSpec("tf_efficientdet_lite0", (64, 64), ("cat", "dog"), (1, 2))


def one(box: list[float], class_id: int = 1) -> Detections:
    return Detections(np.array([box], np.float32), np.array([0.9], np.float32), np.array([class_id], np.int32))


def test_a_box_is_drawn_in_the_colour_of_its_class():
    image = np.zeros((100, 120, 3), np.uint8)
    drawn = draw_detections(image, one([20, 40, 80, 90]), SPEC)
    assert tuple(drawn[65, 20]) == class_color(1)
    assert tuple(drawn[65, 50]) == (0, 0, 0)
    assert not image.any(), "the original stays as it is"


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


def test_pictures_are_written_whole_or_not_at_all(tmp_path: Path):
    save_annotated(tmp_path / "a" / "b.jpg", np.zeros((30, 40, 3), np.uint8), one([1, 1, 9, 9]), SPEC)
    assert image_size(tmp_path / "a" / "b.jpg") == (30, 40)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="Cannot write"):
        save_annotated(tmp_path / "file" / "b.jpg", np.zeros((30, 40, 3), np.uint8), one([1, 1, 9, 9]), SPEC)
