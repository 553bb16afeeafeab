"""The calibration table: a file that keeps the range of each tensor and what the ranges were measured on."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from edge_effdet.artifacts import Graph, text_sha256, write_json
from edge_effdet.data.base import manifest_sha256
from edge_effdet.errors import InputError
from edge_effdet.quant.calibration import CalibrationImages
from edge_effdet.quant.ranges import choose_range
from edge_effdet.quant.statistics import SAMPLED_VALUES, measure_extents, measure_histograms


@dataclass(frozen=True, slots=True)
class CalibrationTable:
    """Ranges, and what they depend on.

    Attributes:
        identity: the SHA-256 of the graph and of the manifest, the method, and whether channels were equalized.
        ranges: the range t of each tensor, by its name: the codes -127 to 127 stand for -t to t.
        largest: the largest absolute value of each tensor over all images, by its name.
    """

    identity: Mapping[str, Any]
    ranges: Mapping[str, float]
    largest: Mapping[str, float]


def measure_table(
    graph: Graph,
    model: onnx.ModelProto,
    images: CalibrationImages,
    tensors: Sequence[str],
    method: str,
    equalized: bool,
    sampled: int = SAMPLED_VALUES,
) -> CalibrationTable:
    """Measure the ranges of tensors.

    Args:
        graph: the graph whose file ``model`` was read from.
        model: the FP32 graph, whose channels may be equalized.
        images: the images to measure on.
        tensors: the names of the tensors.
        method: a key of ``ranges.RANGE_METHODS``.
        equalized: whether the channels of ``model`` are equalized.
        sampled: how many values of a tensor the histograms count for each image; 0 for all values.

    Raises:
        GraphError: a tensor is not finite, or has one value only.
    """
    extents = measure_extents(model, images, tensors)
    largest = {tensor: extent.absolute for tensor, extent in extents.items()}
    if method == "max":
        ranges = largest
    else:
        histograms = measure_histograms(model, images, extents, sampled)
        ranges = {tensor: choose_range(counts, largest[tensor], method) for tensor, counts in histograms.items()}
    return CalibrationTable(table_identity(graph, images, method, equalized), ranges, largest)


def table_identity(graph: Graph, images: CalibrationImages, method: str, equalized: bool) -> dict[str, Any]:
    """What a table was measured on, and how: ``CalibrationTable.identity``."""
    return {
        "graph_sha256": graph.sha256,
        "manifest_sha256": manifest_sha256(images.manifest),
        "method": method,
        "equalized": equalized,
    }


def save_table(table: CalibrationTable, path: Path) -> None:
    raw = {"identity": dict(table.identity), "ranges": dict(table.ranges), "largest": dict(table.largest)}
    write_json(path, {**raw, "sha256": _table_sha256(raw)})


def load_table(path: Path, identity: Mapping[str, Any]) -> CalibrationTable:
    """Read a table that ``save_table`` wrote.

    Args:
        path: the file.
        identity: what the table has to belong to.

    Raises:
        InputError: the file is damaged, a range is not finite or not above 0, or it belongs to another graph, to other images or to another
            method.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        table = CalibrationTable(
            dict(raw["identity"]),
            {str(name): float(t) for name, t in raw["ranges"].items()},
            {str(name): float(value) for name, value in raw["largest"].items()},
        )
        # Tables of earlier versions have no hash.
        if raw.get("sha256", _table_sha256(raw)) != _table_sha256(raw):
            raise ValueError("it was changed, for its values are not those of its hash")
        for name, value in (*table.ranges.items(), *table.largest.items()):
            if not 0 < value < math.inf:
                raise ValueError(f"the range of {name} is {value:g}, and a range is finite and above 0")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path} is no calibration table ({type(error).__name__}: {error}); delete it, and it is measured again."
        ) from error
    titles = {
        "graph_sha256": "another graph",
        "manifest_sha256": "other images",
        "method": "another method",
        "equalized": "channels that were equalized otherwise",
    }
    for key, title in titles.items():
        if table.identity.get(key) != identity[key]:
            raise InputError(
                f"{path} was measured for {title} ({key} {table.identity.get(key)} and not {identity[key]}), so its ranges do "
                "not hold here; give another file as `calibration_table`, or delete this one."
            )
    return table


def _table_sha256(raw: Mapping[str, Any]) -> str:
    return text_sha256(json.dumps({key: value for key, value in raw.items() if key != "sha256"}, sort_keys=True))
