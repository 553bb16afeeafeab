"""The types that pass between the stages, and the hashes and JSON that chain them.

Nothing here imports torch or onnx: the device reads engines with this package. Nor is NumPy imported before there are detections, for a
bundle is checked before anything is installed. What only the host does with an ONNX file
is in ``graph.model``, and with a checkpoint in ``models.checkpoint``. The names of ``spec``, ``files`` and ``record`` that other rooms use
are imported from here.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_effdet.artifacts.files import (
    atomic_output,
    file_sha256,
    json_text,
    printable,
    refuse_overwrite,
    require_writable,
    require_writable_file,
    text_sha256,
    write_json,
    write_text,
)
from edge_effdet.artifacts.record import RECORD_FORMAT, EngineRecord, record_from_json, record_to_json
from edge_effdet.artifacts.spec import FUSIONS, PRECISIONS, AnchorSpec, ModelSpec, PreprocessSpec, Size
from edge_effdet.errors import EngineError

if TYPE_CHECKING:
    import numpy as np

logger = logging.getLogger("edge_effdet.artifacts")

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
    "atomic_output",
    "engine_json_path",
    "file_sha256",
    "json_text",
    "load_engine",
    "printable",
    "refuse_overwrite",
    "require_writable",
    "require_writable_file",
    "text_sha256",
    "write_json",
    "write_record",
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


@dataclass(frozen=True, slots=True)
class Engine:
    """A compiled file, byte for byte as the backend made it, and the record in the JSON beside it (``<file>.json``).

    Attributes:
        path: the file.
        spec: the model's spec, unchanged from the graph that the engine was built from.
        backend: the name in ``backends.base.BACKENDS`` that made it and runs it.
        precision: ``fp32``, ``fp16`` or ``int8``.
        sha256: the hash of the file; empty for an engine that is not kept, and then no backend keeps what it compiles for a next start.
        record: what is known of it; None for an engine that was not built but stands for a graph.
    """

    path: Path
    spec: ModelSpec
    backend: str
    precision: str
    sha256: str = ""
    record: EngineRecord | None = None

    @property
    def json_path(self) -> Path:
        """The JSON beside the file."""
        return engine_json_path(self.path)

    def require_record(self) -> EngineRecord:
        """The record. Raises EngineError where there is none."""
        if self.record is None:
            raise EngineError(
                f"{self.path} has no record, so nothing is known of its proof; build it with python -m edge_effdet.build_engine."
            )
        return self.record


def engine_json_path(engine: Path) -> Path:
    """The JSON beside an engine's file."""
    return engine.with_name(engine.name + ".json")


def write_record(engine: Engine) -> None:
    """Write an engine's record into the JSON beside its file."""
    write_json(engine.json_path, record_to_json(engine.require_record()))


def load_engine(path: Path) -> Engine:
    """Read an engine's JSON and check the file against the hash in it.

    Raises:
        EngineError: the file or its JSON is missing, damaged, of another format, or they do not belong together.
    """
    path = Path(path)
    if not path.is_file():
        raise EngineError(f"There is no engine at {path}; build one with python -m edge_effdet.build_engine.")
    json_path = engine_json_path(path)
    if not json_path.is_file():
        raise EngineError(
            f"{path.name} has no {json_path.name} beside it, so its classes and input size are unknown; "
            "copy both files that build_engine wrote, or build the engine again."
        )
    try:
        raw = json.loads(json_path.read_text(encoding="utf-8"))
        if not isinstance(raw, dict):
            raise ValueError("it holds no object")
        # Other formats have other fields, so the format is looked at first.
        if raw.get("format", 1) != RECORD_FORMAT:
            raise EngineError(
                f"{json_path} is of format {raw.get('format', 1)!r}, and this version of edge_effdet reads format {RECORD_FORMAT}; install "
                "the version that built the engine, or build it again with this one."
            )
        record, has_digest = record_from_json(raw)
    # Besides what a damaged file raises: JSON in JSON deeper than Python reads.
    except (OSError, ValueError, RecursionError) as error:
        raise EngineError(
            f"{json_path} is not an engine description ({error}); copy it again or rebuild the engine."
        ) from error
    try:
        digest = file_sha256(path)
    except OSError as error:
        raise EngineError(
            f"{path} cannot be read ({error.strerror or error}); see who may read it, or copy it again."
        ) from error
    if digest != record.engine_sha256:
        raise EngineError(
            f"{path} is not the file that {json_path.name} describes (its SHA-256 differs), so its accuracy is unproven; "
            "copy both files again or rebuild the engine."
        )
    if not has_digest:
        # Its hash of the engine still binds the two, and the line would stand above all that such an engine ever does.
        logger.debug(
            "%s was written by an earlier version and has no digest of its fields, so an edit of it would not be noticed; build the engine again "
            "to have one",
            json_path.name,
        )
    return Engine(path, record.spec, record.backend, record.precision, record.engine_sha256, record)
