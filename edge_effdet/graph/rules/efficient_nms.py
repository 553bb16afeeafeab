"""Suppress overlapping boxes inside the engine, by TensorRT's plugin ``EfficientNMS_TRT`` behind the graph's outputs.

The graph ends at its K best pairs of an anchor and a class: boxes b [B, K, 4], scores s [B, K], classes c [B, K]. The plugin takes
a score for each box and class, so each score is put at its class, and -1 at all other classes:

    boxes'     = min(max(b, 0), (W, H, W, H))                              [B, K, 4]
    scores'    = s where c = k, else -1, for each class k                  [B, K, C]
    n, b, s, c = EfficientNMS_TRT(boxes', scores')                         [B, 1], [B, M, 4], [B, M], [B, M]
    valid      = (index < n) and (s > 0)                                   [B, M]
    boxes, scores, class_ids = b where valid else 0, s where valid else -1, c where valid else 0

The outputs keep their names, types and meaning, with M = 100 in place of K. A padded row has the score -1, which no score threshold
of 0 or more lets through, so post-processing works on these outputs as on all others. Suppressing once more on the host changes the
result only where clipping to the picture makes boxes overlap more.

**Why the plugin stands behind the top-K.** It could take all anchors instead, with its own box decoder. Then its candidates would not
be the host's but all pairs above a threshold that is fixed when the engine is built. Measuring AP needs a low threshold, with which
the plugin would sort 49104 x 90 pairs. Behind the top-K the candidates are the same K. A graph of any precision only gets nodes
behind its end, so its proof and calibration stay valid, and K x C scores are 90 thousand and not 4.4 million. The time that this
costs or saves has not been measured.

**How the plugin suppresses** (README and ``efficientNMSInference.cu`` of NVIDIA/TensorRT). Scores below ``score_threshold`` are
dropped. With a threshold below 0.007 the plugin sorts dropped ones too; they come last and may fill free rows, hence ``s > 0``. Of
the best 4096, in descending order, a box is kept unless its IoU with a kept box **of the same class** is ``iou_threshold`` **or
more**, until ``max_output_boxes`` are kept. ``runtime.postprocess`` differs in two points. It suppresses a box whose IoU is **above**
the threshold, and it clips to the picture, whose size the graph does not know: the graph clips to the canvas. So boxes that reach
into the filled border of the canvas can differ.

The plugin is deprecated, and TensorRT 11.1 still has it. TensorRT-RTX has no plugins, and the CPU backends do not know this one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edge_effdet.artifacts import Graph
from edge_effdet.errors import GraphError, UsageError
from edge_effdet.graph.model import OUTPUT_NAMES, save_graph
from edge_effdet.graph.rule import add_initializer

RULE = "efficient_nms"
PLUGIN = "EfficientNMS_TRT"
MAX_CANDIDATES = 4096
"""The most candidates that the plugin looks at; the graph's top-K is at most 3840."""


@dataclass(frozen=True, slots=True)
class EfficientNms:
    """The settings of the plugin, which are fixed when the engine is built. The defaults are those of ``runtime.postprocess``.

    Attributes:
        score_threshold: lower scores are dropped. With 0.007 or more the plugin has less to sort.
        iou_threshold: a box is dropped when its IoU with a kept box of its class reaches this.
        max_detections: how many rows the outputs have, M.
    """

    score_threshold: float = 0.0
    iou_threshold: float = 0.5
    max_detections: int = 100


def attach_efficient_nms(graph: Graph, output: Path, options: EfficientNms | None = None) -> Graph:
    """Add the plugin to a graph of any precision. Only TensorRT can run or check the result.

    Args:
        graph: a graph with the outputs boxes, scores and class_ids.
        output: the ONNX file to write.
        options: thresholds and the number of detections; None for the defaults.

    Raises:
        UsageError: a threshold or the number is out of range.
        GraphError: the graph has other outputs, or has the plugin already.
    """
    options = options or EfficientNms()
    _check_options(options)
    model = ir.load(str(graph.path))
    _add_plugin(model, graph, options)
    return save_graph(
        ir.to_proto(model),
        output,
        spec=graph.spec,
        stage=graph.stage,
        precision=graph.precision,
        rewrites={**graph.rewrites, RULE: 1},
        parents={**graph.parents, "graph": graph.sha256},
        calibration=graph.calibration,
        # onnx does not know the plugin, and refuses what it does not know.
        check=False,
    )


def _check_options(options: EfficientNms) -> None:
    if not (0 <= options.score_threshold < 1 and 0 < options.iou_threshold <= 1):
        raise UsageError(
            f"A score threshold of {options.score_threshold} or an IoU threshold of {options.iou_threshold} is not between 0 "
            "and 1; 0 and 0.5 are usual."
        )
    if not 1 <= options.max_detections <= MAX_CANDIDATES:
        raise UsageError(
            f"{options.max_detections} detections an image are not between 1 and {MAX_CANDIDATES}, the plugin's limit; 100 "
            "are usual."
        )


def _add_plugin(model: ir.Model, graph: Graph, options: EfficientNms) -> None:
    outputs = {value.name: value for value in model.graph.outputs}
    if tuple(outputs) != OUTPUT_NAMES or any(node.op_type == PLUGIN for node in model.graph):
        raise GraphError(
            f"{graph.path} does not end at boxes, scores and class_ids without suppression; export it without `raw`."
        )
    boxes, scores, class_ids = outputs.values()
    for value in outputs.values():
        # The plugin's own tensors take the names, which are the engine's contract.
        value.name = f"candidate_{value.name}"
    height, width = graph.spec.image_size
    add = _Adder(model.graph)
    zero, none = np.float32(0), np.float32(-1)
    canvas = np.array([width, height, width, height], np.float32)
    clipped = add.node("Min", [add.node("Max", [boxes, zero]), canvas])
    each_class = np.arange(graph.spec.num_classes, dtype=np.int32)[None, None]
    own = add.node("Equal", [add.node("Unsqueeze", [class_ids, np.array([2])]), each_class])
    spread = add.node("Where", [own, add.node("Unsqueeze", [scores, np.array([2])]), none])
    count, kept_boxes, kept_scores, kept_classes = add.plugin(clipped, spread, options)
    index = np.arange(options.max_detections, dtype=np.int32)[None]
    valid = add.node("And", [add.node("Less", [index, count]), add.node("Greater", [kept_scores, zero])])
    batch = boxes.shape[0] if boxes.shape is not None else "batch"
    rows = (batch, options.max_detections)
    for position, (name, shape, dtype, value) in enumerate(
        (
            ("boxes", (*rows, 4), ir.DataType.FLOAT,
             add.node("Where", [add.node("Unsqueeze", [valid, np.array([2])]), kept_boxes, zero])),
            ("scores", rows, ir.DataType.FLOAT, add.node("Where", [valid, kept_scores, none])),
            ("class_ids", rows, ir.DataType.INT32, add.node("Where", [valid, kept_classes, np.int32(0)])),
        )
    ):  # fmt: skip
        value.name, value.shape, value.type = name, ir.Shape(shape), ir.TensorType(dtype)
        model.graph.outputs[position] = value


class _Adder:
    """Appends nodes to a graph. Arrays among the inputs become initializers."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._count = 0

    def node(self, kind: str, inputs: list[ir.Value | np.ndarray | np.generic]) -> ir.Value:
        return self._append(kind, inputs, [], 1)[0]

    def plugin(self, boxes: ir.Value, scores: ir.Value, options: EfficientNms) -> list[ir.Value]:
        """The plugin's outputs: num_detections int32 [B, 1], boxes float32 [B, M, 4], scores float32 [B, M], classes int32 [B, M]."""
        attributes: dict[str, Any] = {
            "plugin_version": "1",
            "score_threshold": options.score_threshold,
            "iou_threshold": options.iou_threshold,
            "max_output_boxes": options.max_detections,
            "background_class": -1,
            "score_activation": 0,
            "class_agnostic": 0,
            "box_coding": 0,
        }
        return self._append(PLUGIN, [boxes, scores], ir.convenience.convert_attributes(attributes), 4)

    def _append(self, kind: str, inputs: Any, attributes: Any, outputs: int) -> list[ir.Value]:
        name = f"{RULE}_{self._count}_{kind.lower()}"
        self._count += 1
        values = [
            value if isinstance(value, ir.Value) else add_initializer(self._graph, f"{name}_{place}", np.asarray(value))
            for place, value in enumerate(inputs)
        ]
        made = [ir.Value(name=f"{name}_output_{place}") for place in range(outputs)]
        self._graph.append(ir.Node("", kind, values, attributes, outputs=made, name=name))
        return made
