"""The files by which a person follows a run: ``samples.png`` at its start, then ``metrics.jsonl``, ``curves.png`` and TensorBoard events."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageDraw

from edge_effdet.artifacts import ModelSpec, atomic_output, write_text
from edge_effdet.data.base import Sample
from edge_effdet.runtime.drawing import class_color, contact_sheet, save_picture
from edge_effdet.training.loader import EpochBatches, TrainingImages
from edge_effdet.training.options import TrainConfig

logger = logging.getLogger("edge_effdet.train")

SHEET_SAMPLES = 16
SHEET_CELL = 320
"""Pixels of the longer side of a sample on the sheet."""

Rows = Sequence[Mapping[str, Any]]


class TensorBoardLog:
    """Scalars of each epoch under ``DIR/tensorboard``. A disk that fills up ends the log and not the run.

    The writer that comes with PyTorch has a thread, which answers a full disk with a traceback.
    """

    def __init__(self, folder: Path, first_epoch: int) -> None:
        from tensorboard.compat.proto.event_pb2 import SessionLog  # pyright: ignore[reportAttributeAccessIssue]

        self._stream: IO[bytes] | None = None
        place = folder / "tensorboard"
        try:
            place.mkdir(exist_ok=True)
            # TensorBoard reads the files of a folder in the order of their names.
            name = f"events.out.tfevents.{int(time.time()):010}.{socket.gethostname()}.{os.getpid()}"
            self._stream = (place / name).open("ab")
        except OSError as error:
            self._give_up(error)
        # A run that goes on takes the place of the steps that the one before had beyond its last checkpoint.
        self._write(
            {"file_version": "brain.Event:2"},
            {"step": first_epoch + 1, "session_log": SessionLog(status=SessionLog.START)},
        )

    def add(self, row: Mapping[str, Any]) -> None:
        from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]

        values = [
            Summary.Value(tag=_TAGS.get(name, name), simple_value=value)
            for name, value in row.items()
            if isinstance(value, int | float) and name != "epoch"
        ]
        self._write({"step": row["epoch"], "summary": Summary(value=values)})

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()

    def _write(self, *events: Mapping[str, Any]) -> None:
        from tensorboard.compat.proto.event_pb2 import Event  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboard.summary.writer.record_writer import RecordWriter

        if self._stream is None:
            return
        try:
            for event in events:
                RecordWriter(self._stream).write(Event(wall_time=time.time(), **event).SerializeToString())
            self._stream.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        logger.warning("TensorBoard's log could not be written (%s) and ends here", error)
        if self._stream is not None:
            # What is still to be written cannot be either.
            with contextlib.suppress(OSError):
                self._stream.close()
            self._stream = None


_TAGS = {
    **{name: f"train/{name}" for name in ("loss", "class_loss", "box_loss")},
    **{f"val_{name}": f"val/{name}" for name in ("loss", "class_loss", "box_loss")},
    **{name: f"val/{name}" for name in ("AP", "AP50")},
    **{name: f"speed/{name}" for name in ("images_per_second", "data_wait_share", "seconds")},
}


def write_metrics(folder: Path, rows: Rows) -> None:
    """Write ``metrics.jsonl``, which has one JSON object an epoch."""
    write_text(folder / "metrics.jsonl", "".join(json.dumps(dict(row)) + "\n" for row in rows))


def draw_curves(folder: Path, rows: Rows) -> None:
    """Draw ``curves.png``: losses of training and validation, AP, and learning rate over the epochs."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(11, 6.5), layout="constrained")
    panels = figure.subplots(2, 2)
    for panel, (title, names) in zip(
        panels.flat,
        (
            ("loss", ("loss", "val_loss")),
            ("class and box loss", ("class_loss", "val_class_loss", "box_loss", "val_box_loss")),
            ("COCO metrics on the validation split", ("AP50", "AP")),
            ("learning rate", ("learning_rate",)),
        ),
        strict=True,
    ):
        for name in names:
            points = [(row["epoch"], row[name]) for row in rows if row.get(name) is not None]
            if points:
                label = name.replace("val_", "").replace("_", " ") + (", validation" if name[:4] == "val_" else "")
                style = "--" if name.startswith("val_") else "-"
                marker = "o" if len(points) < 20 else None
                panel.plot(*zip(*points, strict=True), style, label=label, linewidth=1.5, marker=marker, markersize=3)
        panel.set_title(title, fontsize=10)
        panel.set_xlabel("epoch", fontsize=9)
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
        panel.grid(alpha=0.3)
        if "loss" in title:
            # The losses of the first epochs are far above those of the rest.
            panel.set_yscale("log")
        if "COCO" in title:
            panel.set_ylim(0, 1)
        if panel.lines:
            panel.legend(fontsize=8)
        else:
            panel.text(0.5, 0.5, "no validation", ha="center", transform=panel.transAxes)
    with atomic_output(folder / "curves.png") as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def draw_samples(path: Path, samples: Sequence[Sample], spec: ModelSpec, config: TrainConfig) -> None:
    """Draw the first samples of the first epoch on one sheet, augmented as the network will see them, with their boxes."""
    images = TrainingImages(samples, spec, config)
    keys = [key for batch in EpochBatches(len(samples), 1, config.seed) for key in batch][:SHEET_SAMPLES]
    pictures = []
    for key in keys:
        _, labelled, _ = images[key]
        assert labelled is not None
        pictures.append(_draw_truth(*labelled, spec))
    save_picture(path, contact_sheet(pictures, columns=4))


def _draw_truth(image: np.ndarray, boxes: np.ndarray, class_ids: np.ndarray, spec: ModelSpec) -> np.ndarray:
    scale = SHEET_CELL / max(image.shape[:2])
    size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
    picture = Image.fromarray(np.ascontiguousarray(image)).resize(size, Image.Resampling.BILINEAR)
    draw = ImageDraw.Draw(picture)
    for box, class_id in zip((boxes * scale).tolist(), class_ids.tolist(), strict=True):
        draw.rectangle(box, outline=class_color(class_id), width=2)
        draw.text((box[0] + 3, box[1] + 1), spec.class_names[class_id], fill=class_color(class_id))
    # The frame parts neighbouring samples on the sheet.
    draw.rectangle((0, 0, size[0] - 1, size[1] - 1), outline="white")
    return np.asarray(picture)
