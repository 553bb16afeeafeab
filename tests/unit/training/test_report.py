"""The files that a person looks at after a run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edge_effdet.data.registry import read_dataset
from edge_effdet.models.zoo import model_spec
from edge_effdet.training.options import TrainConfig
from edge_effdet.training.report import TensorBoardLog, draw_curves, draw_samples, write_metrics

ROW = {"epoch": 1, "loss": 3.0, "class_loss": 1.0, "box_loss": 0.04, "learning_rate": 1e-3, "images_per_second": 7.5}
VALIDATED = {**ROW, "epoch": 2, "val_loss": 2.0, "val_class_loss": 0.9, "val_box_loss": 0.02, "AP": 0.25, "AP50": 0.5}


@pytest.mark.parametrize("rows", [[], [ROW], [ROW, VALIDATED]])
def test_curves_and_metrics_of_any_length(rows, tmp_path: Path):
    draw_curves(tmp_path, rows)
    write_metrics(tmp_path, rows)
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == rows
    with Image.open(tmp_path / "curves.png") as picture:
        assert picture.format == "PNG" and min(picture.size) > 500
        assert len(np.unique(np.asarray(picture.convert("L")))) > 10


def test_tensorboard_reads_what_was_logged(tmp_path: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = TensorBoardLog(tmp_path, first_epoch=0)
    for row in (ROW, VALIDATED):
        log.add(row)
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.value for event in events.Scalars("val/AP50")] == [0.5]
    assert [(event.step, event.value) for event in events.Scalars("train/loss")] == [(1, 3.0), (2, 3.0)]


def test_a_log_that_cannot_be_written_ends_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    log = TensorBoardLog(tmp_path, first_epoch=0)
    log.add(ROW)
    log.close()
    log._stream = Path("/dev/full").open("ab")  # noqa: SIM115
    log.add(ROW)
    log.add(ROW)
    log.close()
    assert caplog.text.count("No space left") == 1


def test_the_sheet_of_samples_is_the_same_for_the_same_seed(tiny_voc: Path, tmp_path: Path):
    dataset = read_dataset(tiny_voc)
    spec = model_spec("tf_efficientdet_lite0", dataset.class_names, image_size=(64, 64))
    for name in ("one.png", "two.png"):
        draw_samples(tmp_path / name, dataset.splits["train"], spec, TrainConfig())
    assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    with Image.open(tmp_path / "one.png") as sheet:
        # Eight samples in rows of four.
        assert sheet.size == (4 * 320, 2 * 320)


def test_a_log_that_cannot_be_opened_ends_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "tensorboard").write_text("a file stands where the folder should")
    log = TensorBoardLog(tmp_path, first_epoch=0)
    log.add(ROW)
    log.close()
    assert caplog.text.count("could not be written") == 1
