"""The types that pass between the stages, and the hashes and JSON that chain them.

Nothing here imports torch or onnx: the device reads engines with this package. Nor is NumPy imported before there are detections, for a
bundle is checked before anything is installed. What only the host does with an ONNX file
is in ``graph.model``, and with a checkpoint in ``models.checkpoint``. The names of ``spec``, ``files``, ``temporary``, ``record`` and
``engine`` that other rooms use are imported from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_effdet.artifacts.engine import (
    Engine,
    engine_json_path,
    load_engine,
    replace_engine,
    waiting_record_path,
)
from edge_effdet.artifacts.files import (
    atomic_folder,
    atomic_output,
    file_sha256,
    has_sha256,
    json_text,
    printable,
    refuse_overwrite,
    require_writable,
    require_writable_file,
    text_sha256,
    write_json,
    write_text,
)
from edge_effdet.artifacts.record import RECORD_FORMAT, EngineRecord
from edge_effdet.artifacts.spec import FUSIONS, PRECISIONS, AnchorSpec, ModelSpec, PreprocessSpec, Size
from edge_effdet.artifacts.temporary import temporary_folder

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "FUSIONS",
    "PRECISIONS",
    "RECORD_FORMAT",
    "AnchorSpec",
    "Checkpoint",
    "Detections",
    "Engine",
    "EngineRecord",
    "Graph",
    "ModelSpec",
    "PreprocessSpec",
    "Size",
    "atomic_folder",
    "atomic_output",
    "engine_json_path",
    "file_sha256",
    "has_sha256",
    "json_text",
    "load_engine",
    "printable",
    "refuse_overwrite",
    "replace_engine",
    "require_writable",
    "require_writable_file",
    "temporary_folder",
    "text_sha256",
    "waiting_record_path",
    "write_json",
    "write_text",
]


@dataclass(frozen=True, slots=True)
class Detections:
    """What was found in one image.

    Attributes:
        boxes: float32 [N, 4], x_min y_min x_max y_max in pixels of the original image.
        scores: float32 [N], 0 to 1, descending.
        class_ids: int32 [N], 0-based into ``ModelSpec.class_names``.
        track_ids: int32 [N], the number that an object keeps from frame to frame, from 1 on, and -1 for an object without one; None where
            nobody tracks (``runtime.tracking``).
    """

    boxes: np.ndarray
    scores: np.ndarray
    class_ids: np.ndarray
    track_ids: np.ndarray | None = None

    def __post_init__(self) -> None:
        import numpy as np

        count = len(self.scores)
        wanted = [
            ("boxes", self.boxes, (count, 4), np.float32),
            ("scores", self.scores, (count,), np.float32),
            ("class_ids", self.class_ids, (count,), np.int32),
        ]
        if self.track_ids is not None:
            wanted.append(("track_ids", self.track_ids, (count,), np.int32))
        for name, array, shape, dtype in wanted:
            if array.shape != shape or array.dtype != dtype:
                raise ValueError(
                    f"Detections.{name} must be {np.dtype(dtype)} {list(shape)}, got {array.dtype} {list(array.shape)}"
                )
        if not np.isfinite(self.boxes).all() or not np.isfinite(self.scores).all():
            raise ValueError("Detections hold a value that is not finite; the engine is broken")

    def __len__(self) -> int:
        return len(self.scores)

    def above(self, threshold: float) -> Detections:
        """Those with a score of at least ``threshold``."""
        return self.select(self.scores >= threshold)

    def select(self, chosen: np.ndarray | slice) -> Detections:
        """Those that a mask, bool [N], or a slice chooses, in their order."""
        track_ids = None if self.track_ids is None else self.track_ids[chosen]
        return Detections(self.boxes[chosen], self.scores[chosen], self.class_ids[chosen], track_ids)


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A safetensors file whose metadata holds the ModelSpec and how it was trained."""

    path: Path
    spec: ModelSpec
    provenance: Mapping[str, Any]
    sha256: str


@dataclass(frozen=True, slots=True)
class Graph:
    """An ONNX file whose ``metadata_props`` hold all of this except the path and its own hash.

    Attributes:
        path: the file.
        spec: the model's, unchanged from the checkpoint that the graph was made from.
        stage: ``optimized`` or ``quantized``.
        precision: ``fp32``, ``fp16`` or ``int8``.
        rewrites: how often each rule fired.
        parents: SHA-256 of what it was made from, by kind: ``checkpoint``, ``graph``.
        calibration: for INT8, method, number of images and the manifest's SHA-256; else empty.
        sha256: of the file.
    """

    path: Path
    spec: ModelSpec
    stage: str
    precision: str
    rewrites: Mapping[str, int]
    parents: Mapping[str, str]
    calibration: Mapping[str, Any]
    sha256: str
