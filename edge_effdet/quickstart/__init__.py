"""The model that comes with the package and the photographs that it is proven on, to build an engine before training a model of one's own.

``quickstart.onnx`` is the FP32 graph of a ``tf_efficientdet_lite0`` that ``python -m edge_effdet.train`` trained on BCCD, photographs of blood cells. A graph
and not a checkpoint, since engines are built of it without torch. MODEL_CARD.md beside it says where all of it comes from and what it can do.
"""

from __future__ import annotations

from pathlib import Path

from edge_effdet.errors import DataError, GraphError

GRAPH = Path(__file__).with_name("quickstart.onnx")
PHOTOS = Path(__file__).with_name("bccd")
CALIBRATION_SPLIT, TEST_SPLIT = "train", "test"
"""The splits of ``PHOTOS``: 128 of the photographs that the model was trained on calibrate it, and the 72 of BCCD's own test split judge it."""


def quickstart_graph() -> Path:
    """The shipped FP32 graph. Raises GraphError if the installation lacks it."""
    if not GRAPH.is_file():
        raise GraphError(
            f"The shipped model is missing at {GRAPH}; install edge-effdet again, or give `checkpoint` or `onnx`."
        )
    return GRAPH


def quickstart_photos() -> Path:
    """The shipped photographs, a data set in Pascal VOC's form. Raises DataError if the installation lacks them."""
    if not PHOTOS.is_dir():
        raise DataError(
            f"The shipped photographs are missing at {PHOTOS}; install edge-effdet again, or give `calibration_data` and `eval_data`."
        )
    return PHOTOS
