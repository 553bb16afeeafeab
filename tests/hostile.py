"""ONNX files that are detectors by their JSON, and not by what they do: engines that somebody else made, by mistake or on purpose.

Each takes one picture, uint8 [1, 3, 64, 64], and gives a box, a score and a class for two candidates; in each, one thing is wrong.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edge_effdet.artifacts import Engine, ModelSpec, file_sha256
from tests.records import make_record, write_record

SPEC = ModelSpec("tf_efficientdet_lite0", (64, 64), tuple("abcdef"), tuple(range(1, 7)))

_BOXES = np.array([[[4, 4, 40, 40], [10, 8, 60, 50]]], np.float32)
_SCORES = np.array([[0.9, 0.6]], np.float32)
_CLASSES = np.array([[0, 5]], np.int32)


def make_model(
    boxes: np.ndarray = _BOXES,
    scores: np.ndarray = _SCORES,
    class_ids: np.ndarray = _CLASSES,
    taken: tuple[tuple[str, int, tuple[int | str, ...]], ...] = (("images", TensorProto.UINT8, (1, 3, 64, 64)),),
    metadata: Mapping[str, Any] | None = None,
    shapes_known: bool = True,
) -> onnx.ModelProto:
    """A graph that gives these arrays whatever picture it takes, but so that no optimizer can know that beforehand."""
    nodes, given, weights = [], [], []
    zero = []
    if taken:
        # 0 * the mean of the picture.
        nodes = [
            helper.make_node("Cast", [taken[0][0]], ["pixels"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMax", ["pixels"], ["largest"], keepdims=0),
            helper.make_node("Mul", ["largest", "nothing"], ["zero"]),
        ]
        weights = [numpy_helper.from_array(np.float32(0), "nothing")]
        zero = ["zero"]
    for name, array in (("boxes", boxes), ("scores", scores), ("class_ids", class_ids)):
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        weights.append(numpy_helper.from_array(array, f"{name}.values"))
        if zero:
            nodes.append(helper.make_node("Cast", zero, [f"{name}.zero"], to=kind))
            nodes.append(helper.make_node("Add", [f"{name}.values", f"{name}.zero"], [name]))
        else:
            nodes.append(helper.make_node("Identity", [f"{name}.values"], [name]))
        given.append(helper.make_tensor_value_info(name, kind, array.shape if shapes_known else None))
    inputs = [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in taken]
    graph = helper.make_graph(nodes, "hostile", inputs, given, weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    for key, value in (metadata or {}).items():
        model.metadata_props.add(key=f"edge_effdet.{key}", value=json.dumps(value))
    return model


def write_engine(folder: Path, content: onnx.ModelProto | bytes, backend: str = "onnxruntime", **changes: Any) -> Path:
    """Write a model as an engine with a JSON that matches it."""
    path = folder / "engine.onnx"
    path.write_bytes(content if isinstance(content, bytes) else content.SerializeToString())
    record = make_record(
        engine=path.name,
        engine_sha256=file_sha256(path),
        spec=SPEC,
        backend=backend,
        **{"precision": "fp32", **changes},
    )
    write_record(Engine(path, record.spec, backend, record.precision, record.engine_sha256, record))
    return path


def _with_node(before: Callable[[onnx.ModelProto], None]) -> onnx.ModelProto:
    model = make_model()
    before(model)
    return model


def _endless(model: onnx.ModelProto, start: str = "zero") -> None:
    """A loop without an end before the scores."""
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["still"]),
            helper.make_node("Mul", ["value", "value"], ["next"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("number", TensorProto.INT64, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("value", TensorProto.FLOAT, []),
        ],
        [
            helper.make_tensor_value_info("still", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", TensorProto.FLOAT, []),
        ],
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    loop = helper.make_node("Loop", ["", "yes", start], ["looped"], body=body)
    _put_before_scores(model, [loop], "looped")


def _huge(model: onnx.ModelProto) -> None:
    """Four tebibytes of zeros, whose largest value is added to the scores."""
    size = np.array([2**20, 2**20], np.int64)
    model.graph.initializer.append(numpy_helper.from_array(size, "size"))
    nodes = [
        helper.make_node("Cast", ["zero"], ["zero64"], to=TensorProto.INT64),
        helper.make_node("Add", ["size", "zero64"], ["asked"]),
        helper.make_node("ConstantOfShape", ["asked"], ["zeros"]),
        helper.make_node("ReduceMax", ["zeros"], ["most"], keepdims=0),
    ]
    _put_before_scores(model, nodes, "most")


def _unknown(model: onnx.ModelProto) -> None:
    model.opset_import.append(helper.make_opsetid("somebody.else", 1))
    _put_before_scores(model, [helper.make_node("Teleport", ["zero"], ["there"], domain="somebody.else")], "there")


def _put_before_scores(model: onnx.ModelProto, nodes: list[onnx.NodeProto], result: str) -> None:
    place = next(index for index, node in enumerate(model.graph.node) if node.output[0] == "scores.zero")
    model.graph.node[place].input[0] = result
    for offset, node in enumerate(nodes):
        model.graph.node.insert(place + offset, node)


def _text(model: onnx.ModelProto) -> None:
    """Class names in place of class ids."""
    del model.graph.output[2]
    names = np.array([["a", "b"]], dtype=object)
    tensor = helper.make_tensor("names", TensorProto.STRING, [1, 2], [str(each).encode() for each in names.flat])
    model.graph.node.append(helper.make_node("Constant", [], ["class_ids.text"], value=tensor))
    del model.graph.node[[node.output[0] for node in model.graph.node].index("class_ids")]
    model.graph.node.append(helper.make_node("Identity", ["class_ids.text"], ["class_ids"]))
    model.graph.output.append(helper.make_tensor_value_info("class_ids", TensorProto.STRING, [1, 2]))


def _no_scores(model: onnx.ModelProto) -> None:
    del model.graph.output[1]


def _as_list(model: onnx.ModelProto) -> None:
    """A list of tensors in place of class ids."""
    del model.graph.output[2]
    model.graph.node[[node.output[0] for node in model.graph.node].index("class_ids")].output[0] = "class_ids.one"
    model.graph.node.append(helper.make_node("SequenceConstruct", ["class_ids.one"], ["class_ids"]))
    model.graph.output.append(helper.make_tensor_sequence_value_info("class_ids", TensorProto.INT32, [1, 2]))


def _external(name: str) -> Callable[[onnx.ModelProto], None]:
    def move(model: onnx.ModelProto) -> None:
        _move_out(next(each for each in model.graph.initializer if each.name == "scores.values"), name)

    return move


def _move_out(tensor: onnx.TensorProto, name: str) -> None:
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=name)


def _external_in_branch(model: onnx.ModelProto) -> None:
    """Weights in another file of a constant in a branch of a condition."""
    tensor = numpy_helper.from_array(np.array([0.1, 0.2], np.float32), "kept")
    _move_out(tensor, "scores.bin")
    branches = [
        helper.make_graph(
            [helper.make_node("Constant", [], [f"{name}.out"], value=tensor)],
            name,
            [],
            [helper.make_tensor_value_info(f"{name}.out", TensorProto.FLOAT, [2])],
        )
        for name in ("then", "else")
    ]
    nodes = [
        helper.make_node("Cast", ["zero"], ["choice"], to=TensorProto.BOOL),
        helper.make_node("If", ["choice"], ["branched"], then_branch=branches[0], else_branch=branches[1]),
        helper.make_node("ReduceMax", ["branched"], ["chosen"], keepdims=0),
    ]
    _put_before_scores(model, nodes, "chosen")


_PICTURE = ("images", TensorProto.UINT8, (1, 3, 64, 64))
_NAN, _INF = np.float32(np.nan), np.float32(np.inf)

HOSTILE: Mapping[str, tuple[Callable[[], onnx.ModelProto | bytes], str]] = {
    "a class beyond the list": (
        lambda: make_model(class_ids=np.array([[0, 6]], np.int32)),
        "returned the class 6.*classes 0 to 5",
    ),
    "a class below 0": (lambda: make_model(class_ids=np.array([[-1, 0]], np.int32)), "returned the class -1"),
    "boxes in double precision": (lambda: make_model(boxes=_BOXES.astype(np.float64)), "gives boxes as float64"),
    "class ids of 64 bits": (lambda: make_model(class_ids=_CLASSES.astype(np.int64)), "gives class_ids as int64"),
    "scores in half precision": (lambda: make_model(scores=_SCORES.astype(np.float16)), "gives scores as float16"),
    "no input": (lambda: make_model(taken=()), "has 0 inputs"),
    "two inputs": (
        lambda: make_model(taken=(_PICTURE, ("threshold", TensorProto.FLOAT, (1,)))),
        r"has 2 inputs \(images, threshold\)",
    ),
    "inverted boxes": (lambda: make_model(boxes=_BOXES[..., ::-1].copy()), "right or lower side lies before"),
    "a score of 7": (lambda: make_model(scores=np.array([[7, 0.5]], np.float32)), "a score of 7"),
    "a score that is no number": (lambda: make_model(scores=np.array([[_NAN, 0.5]], np.float32)), "not finite"),
    "a score without an end": (lambda: make_model(scores=np.array([[_INF, 0.5]], np.float32)), "not finite"),
    "boxes that are no numbers": (lambda: make_model(boxes=_BOXES * _NAN), "not finite"),
    "boxes without an end": (lambda: make_model(boxes=_BOXES * _INF), "not finite"),
    "fewer scores than boxes": (
        lambda: make_model(scores=_SCORES[:, :1]),
        r"boxes float32 \[1, 2, 4\], scores float32 \[1, 1\]",
    ),
    "more class ids than boxes": (
        lambda: make_model(class_ids=np.zeros((1, 3), np.int32)),
        r"class_ids int32 \[1, 3\]",
    ),
    "boxes of five numbers": (lambda: make_model(boxes=np.zeros((1, 2, 5), np.float32)), r"boxes float32 \[1, 2, 5\]"),
    "scores without a batch": (lambda: make_model(scores=_SCORES[0]), "gives scores as float32 with 1 axes"),
    "no rows": (
        lambda: make_model(boxes=_BOXES[:0], scores=_SCORES[:0], class_ids=_CLASSES[:0]),
        r"boxes float32 \[0, 2, 4\].* for 1 picture,|has no output",
    ),
    "text for class ids": (lambda: _with_node(_text), "class_ids"),
    "a list for class ids": (lambda: _with_node(_as_list), "engine.onnx|class_ids"),
    "no scores": (lambda: _with_node(_no_scores), "no output scores"),
    "an input of another size": (
        lambda: make_model(taken=(("images", TensorProto.UINT8, (1, 3, 96, 64)),)),
        r"takes \[3, 96, 64\] and its JSON says \[3, 64, 64\]",
    ),
    "an input that is a vector": (lambda: make_model(taken=(("images", TensorProto.UINT8, (9,)),)), "its JSON says"),
    "pixels of 64 bits": (
        lambda: make_model(taken=(("images", TensorProto.INT64, (1, 3, 64, 64)),)),
        "takes pictures as int64",
    ),
    "a batch of a million": (
        lambda: make_model(taken=(("images", TensorProto.UINT8, (10**6, 3, 64, 64)),)),
        "1000000 pictures a run, which are 11.4 GiB|cannot load",
    ),
    "weights beside the engine": (lambda: _with_node(_external("scores.bin")), "keeps weights in another file"),
    "weights in another folder": (lambda: _with_node(_external("../scores.bin")), "keeps weights in another file"),
    "weights at an absolute path": (lambda: _with_node(_external("/etc/passwd")), "keeps weights in another file"),
    "weights in memory": (
        lambda: _with_node(_external("*/_ORT_MEM_ADDR_/*")),
        "keeps weights in another file",
    ),
    "weights of a branch": (lambda: _with_node(_external_in_branch), "keeps weights in another file"),
    "more memory than there is": (lambda: _with_node(_huge), "failed in a run|cannot load"),
    "an operator that nobody knows": (lambda: _with_node(_unknown), "cannot load|failed in a run"),
    "seven classes in the graph": (
        lambda: make_model(
            metadata={"spec": ModelSpec(SPEC.name, (64, 64), tuple("abcdefg"), tuple(range(1, 8))).to_dict()}
        ),
        "describe different models .*class_names, category_ids",
    ),
    "another precision in the graph": (lambda: make_model(metadata={"precision": "int8"}), r"differ in precision"),
    "a description that is no JSON": (lambda: _damaged_description(), "damaged description"),
    "half a file": (lambda: make_model().SerializeToString()[:200], "not a whole ONNX file"),
    "words": (lambda: b"words " * 100, "not a whole ONNX file|cannot load"),
    "an empty file": (lambda: b"", "not a whole ONNX file"),
}
"""By what is wrong: what makes it, and how the refusal reads."""


def _damaged_description() -> onnx.ModelProto:
    model = make_model()
    model.metadata_props.add(key="edge_effdet.spec", value="{")
    return model


def endless_model(constant: bool = False) -> onnx.ModelProto:
    """A detector whose run never ends, or whose loading does not, where a runtime computes what is ``constant`` beforehand."""
    return _with_node(lambda model: _endless(model, "nothing" if constant else "zero"))
