"""A small INT8 detector whose sums saturate where pairs of products are added in 16 bits, and what it finds, in exact integers.

Three convolutions with Q/DQ around them, 8 x 8 of the pixels, depthwise 3 x 3 and 1 x 1, then a score for each box of a grid. Every
scale is a power of two and every bias a whole number of steps, so that a runtime has nothing to round but at a Q, and the reference
is exact. Half of the filters have large weights of one sign, and the pictures are bright: that is what saturates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edge_effdet.artifacts import Graph, ModelSpec, file_sha256
from edge_effdet.backends.base import Runner, TensorSpec
from edge_effdet.runtime.golden import draw_pictures

SIZE = 64
GRID = 8
CHANNELS = 32
SPEC = ModelSpec("tf_efficientdet_lite0", (SIZE, SIZE), ("thing",), (1,))
SLOPE = 2.0**-4
"""A step of ``features``, the last codes, whose mean over the channels goes through the sigmoid."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution and the Q/DQ behind it.

    Attributes:
        name: of its output.
        weights: integers [out, in, k, k] of 7 bits, -63 to 63.
        bias: integers [out], in steps of a sum.
        stride: of both axes.
        shift: how many bits a sum is shifted right to become a code.
    """

    name: str
    weights: np.ndarray
    bias: np.ndarray
    stride: int
    shift: int

    @property
    def groups(self) -> int:
        return CHANNELS if self.weights.shape[1] == 1 else 1

    @property
    def padding(self) -> int:
        return (self.weights.shape[2] - self.stride) // 2


def make_layers() -> list[Layer]:
    generator = np.random.default_rng(0)

    def filters(*shape: int) -> np.ndarray:
        weights = generator.integers(-63, 64, shape)
        weights[::2] = generator.integers(50, 64, weights[::2].shape)
        return weights

    def biases(largest: int) -> np.ndarray:
        return generator.integers(-largest, largest + 1, CHANNELS)

    return [
        Layer("first", filters(CHANNELS, 3, 8, 8), biases(1 << 16), 8, 13),
        Layer("second", filters(CHANNELS, 1, 3, 3), biases(1 << 12), 1, 9),
        Layer("features", filters(CHANNELS, CHANNELS, 1, 1), biases(1 << 12), 1, 10),
    ]


def make_pictures(count: int = 3) -> list[np.ndarray]:
    """uint8 [64, 64, 3] each."""
    return [np.clip(picture * 1.3 + 10, 0, 255).astype(np.uint8) for picture in draw_pictures((SIZE, SIZE), count)]


class ExactRunner(Runner):
    """The detector in integers of 64 bits, in a backend's place: what a processor finds whose sums do not saturate."""

    def __init__(self, biased: bool = True) -> None:
        self.inputs = (TensorSpec("images", (1, 3, SIZE, SIZE), np.dtype(np.uint8)),)
        self.outputs = ()
        self._layers, self._biased = make_layers(), biased

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        codes = feeds["images"][0].astype(np.int64) - 128
        for layer in self._layers:
            if layer.name == "features":
                codes = np.maximum(codes, 0)
            total = _convolve(codes, layer) + (layer.bias[:, None, None] if self._biased else 0)
            # Ties go to the even code, as QuantizeLinear has it.
            codes = np.clip(np.rint(total / 2**layer.shift), -128, 127).astype(np.int64)
        features = SLOPE * codes[None].astype(np.float32)
        scores = 1 / (1 + np.exp(-features.mean(axis=1)))
        return {
            "features": features,
            "scores": scores.reshape(1, -1).astype(np.float32),
            "boxes": _boxes(),
            "class_ids": np.zeros((1, GRID * GRID), np.int32),
        }


def write_small_detector(path: Path, bits: int, biased: bool = True) -> Graph:
    """The graph, with weights of 7 or 8 bits for the same function."""
    nodes: list[onnx.NodeProto] = []
    arrays: dict[str, Any] = {
        "center": np.float32(128), "one": np.float32(1), "zero": np.int8(0), "slope": np.float32(SLOPE),
        "channel_axis": np.array([1]), "flat": np.array([1, GRID * GRID]), "boxes_": _boxes(),
        "class_ids_": np.zeros((1, GRID * GRID), np.int32),
    }  # fmt: skip

    def add(op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op, inputs, [output], name=output, **attributes))
        return output

    def through_codes(source: str, output: str) -> str:
        return add(
            "DequantizeLinear", [add("QuantizeLinear", [source, "one", "zero"], f"{output}_q"), "one", "zero"], output
        )

    value = through_codes(
        add("Sub", [add("Cast", ["images"], "pixels", to=TensorProto.FLOAT), "center"], "centered"), "x"
    )
    for layer in make_layers():
        name, doubled = layer.name, 1 << bits - 7
        if name == "features":
            value = add("Relu", [value], "relu")
        if name != "first":
            value = through_codes(value, f"{name}_x")
        arrays |= {
            f"{name}_codes": (layer.weights * doubled).astype(np.int8),
            f"{name}_scales": np.full(CHANNELS, 2.0**-layer.shift / doubled, np.float32),
            f"{name}_zeros": np.zeros(CHANNELS, np.int8),
        }
        weight = add(
            "DequantizeLinear", [f"{name}_{kind}" for kind in ("codes", "scales", "zeros")], f"{name}_w", axis=0
        )
        inputs = [value, weight]
        if biased:
            arrays[f"{name}_bias"] = (layer.bias * 2.0**-layer.shift).astype(np.float32)
            inputs.append(f"{name}_bias")
        value = add(
            "Conv", inputs, f"{name}_sum", group=layer.groups, pads=[layer.padding] * 4, strides=[layer.stride] * 2
        )
    add("Mul", [through_codes(value, "last"), "slope"], "features")
    mean = add("ReduceMean", ["features", "channel_axis"], "mean", keepdims=0)
    add("Reshape", [add("Sigmoid", [mean], "map"), "flat"], "scores")
    add("Identity", ["boxes_"], "boxes")
    add("Identity", ["class_ids_"], "class_ids")

    cells = GRID * GRID
    outputs = [
        helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [1, cells, 4]),
        helper.make_tensor_value_info("scores", TensorProto.FLOAT, [1, cells]),
        helper.make_tensor_value_info("class_ids", TensorProto.INT32, [1, cells]),
        helper.make_tensor_value_info("features", TensorProto.FLOAT, [1, CHANNELS, GRID, GRID]),
    ]
    images = helper.make_tensor_value_info("images", TensorProto.UINT8, [1, 3, SIZE, SIZE])
    initializers = [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()]
    graph = helper.make_graph(nodes, "small_detector", [images], outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(onnx.shape_inference.infer_shapes(model), path)
    return Graph(path, SPEC, "quantized", "int8", {}, {}, {}, file_sha256(path))


def _boxes() -> np.ndarray:
    """float32 [1, 64, 4]: a box for each cell of the grid, none of which overlap."""
    side = SIZE // GRID
    top, left = (axis.ravel() * side for axis in np.mgrid[:GRID, :GRID])
    return np.stack([left, top, left + side, top + side], axis=1).astype(np.float32)[None]


def _convolve(codes: np.ndarray, layer: Layer) -> np.ndarray:
    """int64 [in, H, W] to int64 [out, H, W]."""
    padded = np.pad(codes, ((0, 0), *[(layer.padding, layer.padding)] * 2))
    size = layer.weights.shape[2:]
    windows = np.lib.stride_tricks.sliding_window_view(padded, size, axis=(1, 2))[:, :: layer.stride, :: layer.stride]
    if layer.groups > 1:
        return np.einsum("cyxij,cij->cyx", windows, layer.weights[:, 0])
    return np.einsum("cyxij,ocij->oyx", windows, layer.weights)
