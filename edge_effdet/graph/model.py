"""Graph artifacts: ONNX files that carry their ModelSpec, stage and parents in ``metadata_props``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from edge_effdet.artifacts import Graph, ModelSpec, atomic_output, file_sha256
from edge_effdet.errors import GraphError, InputError, first_line

_PREFIX = "edge_effdet."
_FIELDS = ("spec", "stage", "precision", "rewrites", "parents", "calibration")

IR_VERSION = 10
INPUT_NAME = "images"
OUTPUT_NAMES = ("boxes", "scores", "class_ids")


def save_graph(
    model: onnx.ModelProto,
    path: Path,
    *,
    spec: ModelSpec,
    stage: str,
    precision: str,
    rewrites: Mapping[str, int],
    parents: Mapping[str, str],
    calibration: Mapping[str, Any] | None = None,
) -> Graph:
    """Check a model and write it atomically with its metadata.

    Raises:
        GraphError: onnx's checker refuses it, or it is over protobuf's 2 GB.
    """
    values = (spec.to_dict(), stage, precision, dict(rewrites), dict(parents), dict(calibration or {}))
    # onnx's newest IR version is newer than what TensorRT 10.3 and older runtimes know; nothing here needs more than 10.
    model.ir_version = IR_VERSION
    del model.metadata_props[:]
    for field, value in zip(_FIELDS, values, strict=True):
        model.metadata_props.add(key=_PREFIX + field, value=json.dumps(value, sort_keys=True))
    try:
        onnx.checker.check_model(model, full_check=True)
        content = model.SerializeToString(deterministic=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        raise GraphError(
            f"The graph for {path} is not valid ONNX ({first_line(error)}); please report it with the command that made it."
        ) from error
    with atomic_output(path) as temporary:
        temporary.write_bytes(content)
    return Graph(
        path, spec, stage, precision, dict(rewrites), dict(parents), dict(calibration or {}), file_sha256(path)
    )


def load_model(path: Path) -> onnx.ModelProto:
    """Read and check an ONNX file.

    Raises:
        GraphError: missing, empty, truncated or not ONNX.
    """
    path = Path(path)
    if not path.is_file():
        raise GraphError(f"There is no ONNX file at {path}; make one with python -m edge_effdet.export.")
    try:
        model = onnx.load_model(str(path))
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf's DecodeError is of another class in each of its implementations
        raise GraphError(f"{path} is not a whole ONNX file ({first_line(error)}); export it again.") from error
    return model


def load_graph(path: Path) -> Graph:
    """Read a graph that ``save_graph`` wrote.

    Raises:
        GraphError: not ONNX, or an ONNX file of another program.
    """
    model = load_model(path)
    found = {
        prop.key.removeprefix(_PREFIX): prop.value for prop in model.metadata_props if prop.key.startswith(_PREFIX)
    }
    if any(field not in found for field in _FIELDS):
        raise GraphError(
            f"{path} was not exported by edge_effdet (its metadata has no model description), so its classes and anchors are "
            "unknown; make it with python -m edge_effdet.export."
        )
    try:
        spec, stage, precision, rewrites, parents, calibration = (json.loads(found[field]) for field in _FIELDS)
        own_spec = ModelSpec.from_dict(spec)
    except (ValueError, InputError) as error:
        raise GraphError(f"{path} has a damaged model description ({error}); export it again.") from error
    return Graph(Path(path), own_spec, stage, precision, rewrites, parents, calibration, file_sha256(path))


def require_detections(graph: Graph) -> None:
    """Refuse a graph that ends at the head tensors. Raises GraphError."""
    outputs = tuple(output.name for output in load_model(graph.path).graph.output)
    if outputs != OUTPUT_NAMES:
        raise GraphError(
            f"{graph.path} ends at {', '.join(outputs[:3])}… and not at boxes, scores and class_ids; export it without --raw."
        )
