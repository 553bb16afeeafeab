"""Whether a depthwise and a pointwise convolution are cheaper than the one dense convolution that they make.

The model is a roofline (Williams, Waterman, Patterson, 2009) plus a fixed cost for each kernel. A layer takes the time

    t = max(work / (efficiency * rate), bytes / (MEMORY * bandwidth)) + launch

The pair is two such layers, the dense convolution is one. For a convolution over P = batch * height * width output positions, with
channels padded to what the kernel can read:

- A **dense or pointwise** convolution is a matrix product of P x (C_in k k) by (C_in k k) x C_out on tensor cores, computed in tiles
  of 32 positions by 32 channels. A tile that is partly used costs as much as a whole one (*tile quantization*, NVIDIA's Matrix
  Multiplication Background User's Guide), and where there are fewer tiles than multiprocessors, some of these are idle:
  ``work = 2 * max(tiles, multiprocessors) * 32 * 32 * C_in k k``. At 4 x 4 positions nearly all multiprocessors are.
- A **depthwise** convolution has no sum over channels, so tensor cores cannot compute it: ``work = 2 * P * C k k`` on CUDA cores.
- The **bytes** are those of input, output and weights, each moved once between memory and processor. The pair also writes and reads
  the tensor between its two convolutions. Where a cache holds that tensor, the pair is cheaper than the model says, so the model is
  biased towards dense. Biases and activation are left out, because they cost the same either way.

Dense is taken where it needs at most ``MARGIN`` of the pair's time: it holds nine times the weights, and so simple a model is not
exact to a tenth. The rates are in ``targets.py``, which also says what is only estimated.

A measurement times the pair and the dense convolution alone, each in a graph of its own, on the backend that will run them. In the
whole network the result may differ: neighbouring layers leave tensors in a cache or in another layout, and kernels overlap. Both
graphs pay the same for a call and for copying input and output, which draws the ratio of the two times towards 1.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_effdet.artifacts import PRECISIONS, Engine, ModelSpec, Size, temporary_folder
from edge_effdet.errors import UsageError
from edge_effdet.graph.counting import BYTES_PER_NUMBER, macs_of_shapes
from edge_effdet.graph.targets import Target, get_target
from edge_effdet.runtime.latency import Turns, time_in_turns

if TYPE_CHECKING:
    import onnx

    from edge_effdet.backends.base import Runner

TILE = 32
"""Output positions, and output channels, of a tile: the smallest tile that TensorRT's kernel names show."""
MEMORY = 0.8
"""Share of the peak bandwidth that a streaming kernel reaches; an estimate."""
MARGIN = 0.9
"""Dense is taken where it needs at most this share of the pair's time."""

TURNS = Turns(rounds=5, warm_up=2, pause=0.01, least_seconds=0.005)
"""How the two ways are measured. A convolution of microseconds runs more often, because one interruption would outweigh it."""
COPIES = 4
"""How many pairs a measured graph has in a row, where a pair's output fits its input: so entering and leaving it weighs less."""


@dataclass(frozen=True, slots=True)
class SeparablePair:
    """A depthwise convolution and the pointwise one behind it.

    Attributes:
        name: the module of the pointwise convolution.
        channels_in: channels of the input, and of the tensor between the two convolutions.
        channels_out: channels of the output.
        kernel: height and width of the depthwise filters.
        stride: vertical and horizontal stride of the depthwise convolution.
        height: height of the output.
        width: width of the output.
        dilation: vertical and horizontal dilation of the depthwise convolution.
    """

    name: str
    channels_in: int
    channels_out: int
    kernel: Size
    stride: Size
    height: int
    width: int
    dilation: Size = (1, 1)

    @property
    def positions(self) -> int:
        """How many output positions there are."""
        return self.height * self.width

    @property
    def separate_macs(self) -> int:
        """Multiply-accumulates of the two convolutions, for one image."""
        size = (self.height, self.width)
        depthwise = macs_of_shapes(size, (self.channels_in, 1, *self.kernel))
        return depthwise + macs_of_shapes(size, (self.channels_out, self.channels_in, 1, 1))

    @property
    def dense_macs(self) -> int:
        """Multiply-accumulates of the dense convolution that replaces them, for one image."""
        return macs_of_shapes((self.height, self.width), (self.channels_out, self.channels_in, *self.kernel))


@dataclass(frozen=True, slots=True)
class Decision:
    """What a pair costs as two convolutions and as one dense convolution.

    Attributes:
        name: the name of the pair.
        keep_us: microseconds of the two convolutions.
        dense_us: microseconds of the dense convolution.
        basis: how the times are known: ``model`` or ``measured``.
    """

    name: str
    keep_us: float
    dense_us: float
    basis: str

    @property
    def dense(self) -> bool:
        """Whether the dense convolution is to be taken."""
        return self.dense_us <= MARGIN * self.keep_us

    def __str__(self) -> str:
        choice = "dense is cheaper" if self.dense else "keeping the two is cheaper"
        if not self.dense and self.dense_us < self.keep_us:
            choice = "dense is not cheaper by a tenth"
        return f"{self.name}: {choice}, {self.keep_us:.3g} us for the two against {self.dense_us:.3g} us dense ({self.basis})"


def decide(pair: SeparablePair, target: str, precision: str, batch: int = 1) -> Decision:
    """Decide by a measurement where the target is this machine, and by the model where it is not.

    The target ``cpu`` is this machine wherever onnxruntime works. A target with a GPU is this machine where TensorRT works and the
    GPU here has the target's compute capability: the three Orins have the same one, and so has any other card of one generation.
    TensorRT builds for the GPU that it finds, so that GPU is the one to measure.

    Raises:
        UsageError: the target or the precision is unknown.
    """
    backend = _present_backend(get_target(target))
    if backend is None:
        return model_decision(pair, target, precision, batch)
    return measure_decision(pair, precision, backend, batch=batch)


def model_decision(pair: SeparablePair, target: str, precision: str, batch: int = 1) -> Decision:
    """Decide by the model that this module's docstring describes.

    Raises:
        UsageError: the target or the precision is unknown.
    """
    machine = get_target(target)
    _check_precision(precision)
    keep = depthwise_us(pair, machine, precision, batch) + pointwise_us(pair, machine, precision, batch)
    return Decision(pair.name, keep, dense_us(pair, machine, precision, batch), "model")


def depthwise_us(pair: SeparablePair, target: Target, precision: str, batch: int = 1) -> float:
    """Microseconds of the depthwise convolution."""
    channels = _padded(pair.channels_in, target, precision)
    taps = channels * math.prod(pair.kernel)
    inside = pair.positions * math.prod(pair.stride)
    numbers = batch * channels * (inside + pair.positions) + taps
    return _layer_us(2 * batch * pair.positions * taps, target.vector.at(precision), numbers, target, precision)


def pointwise_us(pair: SeparablePair, target: Target, precision: str, batch: int = 1) -> float:
    """Microseconds of the pointwise convolution."""
    return _matrix_us(replace(pair, kernel=(1, 1), stride=(1, 1)), target, precision, batch)


def dense_us(pair: SeparablePair, target: Target, precision: str, batch: int = 1) -> float:
    """Microseconds of the dense convolution."""
    return _matrix_us(pair, target, precision, batch)


def measure_decision(
    pair: SeparablePair, precision: str, backend: str = "onnxruntime", rounds: int = TURNS.rounds, batch: int = 1
) -> Decision:
    """Decide by timing both ways on this machine, in turns. Each shape is measured once a process.

    A time is the median over the rounds of the fastest run of a turn: other programs only add time.

    Raises:
        UsageError: the precision or the backend is unknown.
        BackendUnavailable: the backend does not work here.
    """
    _check_precision(precision)
    keep, dense = _measure(replace(pair, name=""), precision, backend, rounds, batch)
    return Decision(pair.name, keep, dense, "measured")


def _check_precision(precision: str) -> None:
    if precision not in PRECISIONS:
        raise UsageError(
            f"There is no precision {precision!r} to count with; the precisions are {', '.join(PRECISIONS)}."
        )


def _padded(channels: int, target: Target, precision: str) -> int:
    granule = int(target.granule.at(precision))
    return math.ceil(channels / granule) * granule


def _matrix_us(conv: SeparablePair, target: Target, precision: str, batch: int) -> float:
    channels_in = _padded(conv.channels_in, target, precision)
    channels_out = _padded(conv.channels_out, target, precision)
    depth = channels_in * math.prod(conv.kernel)
    tiles = math.ceil(batch * conv.positions / TILE) * math.ceil(channels_out / TILE)
    work = 2 * max(tiles, target.multiprocessors) * TILE * TILE * depth
    inside = conv.positions * math.prod(conv.stride)
    numbers = batch * (inside * channels_in + conv.positions * channels_out) + depth * channels_out
    return _layer_us(work, target.matrix.at(precision), numbers, target, precision)


def _layer_us(operations: float, rate: float, numbers: float, target: Target, precision: str) -> float:
    # 1 TFLOPS is 1e6 operations a microsecond, 1 GB/s is 1e3 bytes.
    computing = operations / (target.efficiency * rate * 1e6)
    moving = numbers * BYTES_PER_NUMBER[precision] / (MEMORY * target.bandwidth * 1e3)
    return max(computing, moving) + target.launch_us


def _present_backend(target: Target) -> str | None:
    from edge_effdet.backends.base import Available, get_backend
    from edge_effdet.backends.tensorrt import cuda

    name = "onnxruntime" if target.compute_capability is None else "tensorrt"
    if not isinstance(get_backend(name).probe(), Available):
        return None
    if target.compute_capability is None:
        return name
    gpu = cuda.probe_gpu()
    return name if isinstance(gpu, cuda.Gpu) and gpu.compute_capability == target.compute_capability else None


@functools.cache
def _measure(pair: SeparablePair, precision: str, backend: str, rounds: int, batch: int) -> tuple[float, float]:
    from edge_effdet.backends.base import require

    require(backend)
    copies = COPIES if pair.stride == (1, 1) and pair.channels_in == pair.channels_out else 1
    shape = (batch, pair.channels_in, pair.height * pair.stride[0], pair.width * pair.stride[1])
    feed = np.random.default_rng(0).normal(size=shape).astype(np.float16 if precision == "fp16" else np.float32)
    with temporary_folder() as folder:
        runners = [
            _load(_pair_model(pair, precision, batch, dense, copies), backend, precision, path)
            for dense, path in ((False, folder / "keep.onnx"), (True, folder / "dense.onnx"))
        ]
        with runners[0] as keep, runners[1] as dense:
            turns = time_in_turns(
                [lambda: keep.run({"x": feed}), lambda: dense.run({"x": feed})], replace(TURNS, rounds=rounds)
            )
    keep_us, dense_us = (1e6 * float(np.median([own.min() for own in each])) / copies for each in turns)
    return keep_us, dense_us


def _load(model: onnx.ModelProto, name: str, precision: str, path: Path) -> Runner:
    from edge_effdet.backends.base import CompileOptions, get_backend, load_runner
    from edge_effdet.graph.model import save_graph

    spec = ModelSpec("separable_pair", (1, 1), ("object",), (1,))
    graph = save_graph(model, path, spec=spec, stage="optimized", precision=precision, rewrites={}, parents={})
    engine = path.with_suffix(f".engine{get_backend(name).SUFFIX}")
    engine.write_bytes(get_backend(name).compile(graph, CompileOptions(batch_sizes=(1,))).content)
    return load_runner(Engine(engine, spec, name, precision))


def _pair_model(pair: SeparablePair, precision: str, batch: int, dense: bool, copies: int) -> onnx.ModelProto:
    """A graph of ``copies`` pairs in a row, or of as many dense convolutions.

    The weights are random, and of a size that keeps the activations from growing or vanishing along the row.
    """
    from onnx import TensorProto, helper, numpy_helper

    from edge_effdet.graph.model import OPSET

    total = [step * (size - 1) for step, size in zip(pair.dilation, pair.kernel, strict=True)]
    begin = [amount // 2 for amount in total]
    spatial = {
        "strides": pair.stride,
        "dilations": pair.dilation,
        "pads": [*begin, *(amount - first for amount, first in zip(total, begin, strict=True))],
    }
    chain = _Chain(precision)
    for _ in range(copies):
        if dense:
            chain.convolve((pair.channels_out, pair.channels_in, *pair.kernel), spatial)
        else:
            chain.convolve((pair.channels_in, 1, *pair.kernel), {**spatial, "group": pair.channels_in})
            chain.convolve((pair.channels_out, pair.channels_in, 1, 1), {})
    chain.quantize()
    element = TensorProto.FLOAT16 if precision == "fp16" else TensorProto.FLOAT
    inside = [batch, pair.channels_in, pair.height * pair.stride[0], pair.width * pair.stride[1]]
    graph = helper.make_graph(
        chain.nodes,
        "separable_pair",
        [helper.make_tensor_value_info("x", element, inside)],
        [helper.make_tensor_value_info(chain.last, element, [batch, pair.channels_out, pair.height, pair.width])],
        [numpy_helper.from_array(array, name) for name, array in chain.arrays.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])


class _Chain:
    """Convolutions in a row, in the form that ``quantize`` gives them: with Q/DQ at INT8, with FP16 weights at FP16."""

    def __init__(self, precision: str) -> None:
        self._precision = precision
        self._random = np.random.default_rng(0)
        self.nodes: list[onnx.NodeProto] = []
        self.arrays: dict[str, np.ndarray] = {}
        self.last = "x"

    def convolve(self, filters: Sequence[int], attributes: Mapping[str, Any]) -> None:
        self.quantize()
        weight = self._random.normal(0, math.prod(filters[1:]) ** -0.5, filters)
        name = f"weight{len(self.nodes)}"
        if self._precision == "int8":
            largest = np.abs(weight).max(axis=(1, 2, 3))
            self.arrays[f"{name}_int8"] = np.rint(weight / largest[:, None, None, None] * 127).astype(np.int8)
            self.arrays[f"{name}_scale"] = (largest / 127).astype(np.float32)
            self._add("DequantizeLinear", [f"{name}_int8", f"{name}_scale"], name, {"axis": 0})
        else:
            self.arrays[name] = weight.astype(np.float16 if self._precision == "fp16" else np.float32)
        self._add("Conv", [self.last, name], f"y{len(self.nodes)}", attributes)
        self.last = f"y{len(self.nodes) - 1}"

    def quantize(self) -> None:
        """Add a Q/DQ pair behind the last tensor, where the precision is INT8."""
        if self._precision != "int8":
            return
        self.arrays["scale"], self.arrays["zero"] = np.array(1 / 32, np.float32), np.array(0, np.int8)
        value, self.last = self.last, f"{self.last}_dequantized"
        self._add("QuantizeLinear", [value, "scale", "zero"], f"{value}_quantized", {})
        self._add("DequantizeLinear", [f"{value}_quantized", "scale", "zero"], self.last, {})

    def _add(self, kind: str, inputs: Sequence[str], output: str, attributes: Mapping[str, Any]) -> None:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
