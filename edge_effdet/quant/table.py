"""The calibration table: the range of each tensor, with what it was measured on, as a file that can be used again."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from edge_effdet.artifacts import Graph, write_json
from edge_effdet.data.base import manifest_sha256
from edge_effdet.errors import InputError
from edge_effdet.quant.calibration import CalibrationImages
from edge_effdet.quant.ranges import choose_range
from edge_effdet.quant.statistics import SAMPLED_VALUES, measure_extents, measure_histograms


@dataclass(frozen=True, slots=True)
class CalibrationTable:
    """Ranges, and what they depend on.

    Attributes:
        identity: SHA-256 of graph and manifest, method, and whether channels were equalized.
        ranges: t of each tensor: its codes -127 to 127 stand for -t to t.
        largest: the largest absolute value that was seen of each tensor.
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
        graph: the file that ``model`` was read from.
        model: FP32; its channels may be equalized.
        images: what to measure on.
        tensors: their names.
        method: see ``quant.ranges``.
        equalized: whether they are.
        sampled: values of a tensor an image that histograms count; 0 for all.
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
    """What a table belongs to."""
    return {
        "graph_sha256": graph.sha256,
        "manifest_sha256": manifest_sha256(images.manifest),
        "method": method,
        "equalized": equalized,
    }


def save_table(table: CalibrationTable, path: Path) -> None:
    write_json(path, {"identity": dict(table.identity), "ranges": dict(table.ranges), "largest": dict(table.largest)})


def load_table(path: Path, identity: Mapping[str, Any]) -> CalibrationTable:
    """Read a table that ``save_table`` wrote, for what ``identity`` says.

    Raises:
        InputError: it is damaged, or belongs to another graph, other images or another method.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        table = CalibrationTable(
            dict(raw["identity"]),
            {str(name): float(t) for name, t in raw["ranges"].items()},
            {str(name): float(value) for name, value in raw["largest"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{path} is no calibration table ({type(error).__name__}: {error}); delete it, and it is measured again."
        ) from error
    titles = {
        "graph_sha256": "another graph",
        "manifest_sha256": "other images",
        "method": "another method",
        "equalized": "other channels",
    }
    for key, title in titles.items():
        if table.identity.get(key) != identity[key]:
            raise InputError(
                f"{path} was measured for {title} ({key} {table.identity.get(key)} and not {identity[key]}), so its ranges are "
                "not these; name another file with --calibration-table, or delete it."
            )
    return table
