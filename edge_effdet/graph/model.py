"""Graph artifacts: ONNX files that carry their ModelSpec, stage and parents in ``metadata_props``."""

from __future__ import annotations

import hashlib
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
OPSET = 18
"""The lowest opset that torch's exporter writes. TensorRT 10.3 can parse it, and its Q/DQ operators take FP32 scales."""

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
    check: bool = True,
) -> Graph:
    """Check a model and write it to a file, whole or not at all, with its metadata.

    Args:
        model: what is written; its IR version and metadata are set in place.
        path: the ONNX file.
        spec, stage, precision, rewrites, parents, calibration: as ``Graph`` has them.
        check: whether onnx checks the model; it cannot where the model holds a plugin of TensorRT.

    Raises:
        GraphError: onnx's checker refuses the model, or it is over protobuf's 2 GB.
    """
    values = (spec.to_dict(), stage, precision, dict(rewrites), dict(parents), dict(calibration or {}))
    # onnx's newest IR version is newer than what TensorRT 10.3 and older runtimes know; nothing here needs more than 10.
    model.ir_version = IR_VERSION
    del model.metadata_props[:]
    for field, value in zip(_FIELDS, values, strict=True):
        model.metadata_props.add(key=_PREFIX + field, value=json.dumps(value, sort_keys=True))
    try:
        if check:
            onnx.checker.check_model(model, full_check=True)
        content = model.SerializeToString(deterministic=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        raise GraphError(
            f"The graph for {path} is not valid ONNX ({first_line(error)}); please report it with the command that made it."
        ) from error
    with atomic_output(path) as temporary:
        temporary.write_bytes(content)
    # Not that of the file, where another build may have put its own by now.
    digest = hashlib.sha256(content).hexdigest()
    return Graph(path, spec, stage, precision, dict(rewrites), dict(parents), dict(calibration or {}), digest)


def load_model(path: Path) -> onnx.ModelProto:
    """Read and check an ONNX file.

    Raises:
        GraphError: the file is missing, empty, truncated or not ONNX.
    """
    path = Path(path)
    if not path.is_file():
        raise GraphError(f"There is no ONNX file at {path}; make one with python -m edge_effdet.export.")
    try:
        model = onnx.load_model(str(path))
        onnx.checker.check_model(model, full_check=True)
    except Exception as error:  # protobuf's DecodeError is of another class in each of its implementations
        raise GraphError(f"{path} is not a whole ONNX file ({first_line(error)}); export it again.") from error
    return model


def check_form(model: onnx.ModelProto, name: str) -> None:
    """Check what the rewriting rules and the later stages take for granted of a detector that ``export`` traced.

    Args:
        model: the graph.
        name: what messages call it: the file or the model.

    Raises:
        GraphError: the opset is too old, the inputs are not one batch of images, an axis other than the batch is dynamic, or a
            weight is missing or has another shape than its input needs. The message names the node or tensor.
    """
    opset = max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)
    if opset < OPSET:
        raise GraphError(f"{name} has opset {opset}, and the rewriting rules need {OPSET} or later; export it again.")
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1:
        named = ", ".join(value.name for value in inputs) or "none"
        raise GraphError(
            f"{name} takes other inputs than one batch of images ({named}); make it with python -m edge_effdet.export."
        )
    axes = inputs[0].type.tensor_type.shape.dim
    if len(axes) != 4 or axes[1].dim_value != 3:
        shape = [axis.dim_value or axis.dim_param or "?" for axis in axes]
        raise GraphError(
            f"The input {inputs[0].name} of {name} has the shape {shape} and not [batch, 3, height, width]; make it with "
            "python -m edge_effdet.export."
        )
    if not (axes[2].dim_value and axes[3].dim_value):
        raise GraphError(
            f"The input {inputs[0].name} of {name} has a dynamic height or width, and only the batch may be dynamic; export it "
            "with `image_size`."
        )
    known = weights | {value.name for value in inputs} | {""}
    channels = {
        value.name: value.type.tensor_type.shape.dim[1].dim_value
        for value in (*model.graph.value_info, *inputs)
        if len(value.type.tensor_type.shape.dim) == 4
    }
    filters = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Conv" and node.input[1] in filters and channels.get(node.input[0]):
            group = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
            if filters[node.input[1]][1] * group != channels[node.input[0]]:
                raise GraphError(
                    f"The weights {node.input[1]} of {node.name or 'a Conv'} in {name} are for {filters[node.input[1]][1] * group} "
                    f"channels and its input has {channels[node.input[0]]}; export it again."
                )
        for value in node.input:
            if value not in known:
                raise GraphError(
                    f"The node {node.name or node.op_type} of {name} takes {value}, which is neither a weight in the file nor "
                    "made by a node before it; export it again."
                )
        known.update(node.output)


def load_graph(path: Path) -> Graph:
    """Read a graph that ``save_graph`` wrote.

    Raises:
        GraphError: the file is not ONNX, was written by another program, or was changed into a form that the stages do not know.
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
    except (ValueError, InputError, RecursionError) as error:
        raise GraphError(f"{path} has a damaged model description ({error}); export it again.") from error
    check_form(model, str(path))
    return Graph(Path(path), own_spec, stage, precision, rewrites, parents, calibration, file_sha256(path))


def require_detections(graph: Graph) -> None:
    """Raises GraphError where a graph ends at the head tensors and not at detections."""
    outputs = tuple(output.name for output in load_model(graph.path).graph.output)
    if outputs != OUTPUT_NAMES:
        raise GraphError(
            f"{graph.path} ends at {', '.join(outputs[:3])}… and not at boxes, scores and class_ids; export it without `raw`."
        )
