"""Whether a depthwise and a pointwise convolution are cheaper than the one dense convolution that they make.

The model is a roofline (Williams, Waterman, Patterson, 2009) with a fixed cost a kernel. A layer takes

    t = max(work / (efficiency * rate), bytes / (MEMORY * bandwidth)) + launch

and the pair takes two of those, the dense convolution one. For a convolution over P = batch * height * width output
positions, with channels padded to what the kernel can read:

- **dense and pointwise** are a matrix product of P x (C_in k k) by (C_in k k) x C_out on tensor cores, computed in tiles
  of 32 positions by 32 channels, the smallest that TensorRT's kernel names show. Part of a tile costs the whole
  (*tile quantization*, NVIDIA's Matrix Multiplication Background User's Guide), and fewer tiles than multiprocessors leave
  some idle: ``work = 2 * max(tiles, multiprocessors) * 32 * 32 * C_in k k``. At 4 x 4 positions that is nearly all.
- **depthwise** has no sum over channels, so tensor cores do nothing for it: ``work = 2 * P * C k k`` on CUDA cores.
- **bytes** are input, output and weights, once each, all from memory. The pair writes and reads the tensor between the
  two, which the dense convolution does not have. A cache that holds the tensors makes that cheaper than the model thinks,
  and the model favours dense by that much. Biases and activation are left out: they are the same either way.

Dense is taken where it needs at most ``MARGIN`` of the pair's time: it holds nine times the weights, and no model of one
line is exact to a tenth. All rates, and what is only estimated, are in ``targets.py``.

The measurement times the two alone, in a graph of their own, on the backend that will run them. In the whole network it
may come out otherwise: neighbours leave tensors in a cache or in another layout, and kernels overlap. Both ways carry the
same cost of a call and of copying the input and output, which draws their ratio towards 1.
"""

from __future__ import annotations

import functools
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edge_effdet.artifacts import PRECISIONS, Engine, ModelSpec, Size
from edge_effdet.errors import UsageError
from edge_effdet.graph.targets import Target, get_target

if TYPE_CHECKING:
    import onnx

    from edge_effdet.backends.base import Backend, Runner

BYTES = {"fp32": 4, "fp16": 2, "int8": 1}
TILE = 32
MEMORY = 0.8
"""Share of the peak bandwidth that a streaming kernel reaches; an estimate."""
MARGIN = 0.9

ROUNDS, RUNS, WARM_UP_RUNS = 5, 5, 2
TURN_SECONDS = 0.005
PAUSE_SECONDS = 0.01
"""Before a turn: a library's threads go on spinning after a run and would slow the other way down."""
COPIES = 4
"""Pairs in a row in a measured graph, where a pair's output fits its input: entering and leaving the graph weighs less."""


@dataclass(frozen=True, slots=True)
class SeparablePair:
    """A depthwise convolution and the pointwise one behind it.

    Attributes:
        name: of the pointwise convolution's module.
        channels_in: of the input, and of the tensor between the two.
        channels_out: of the output.
        kernel: height and width.
        stride: down and across.
        height: of the output.
        width: of the output.
        dilation: down and across.
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
        return self.height * self.width

    @property
    def separate_macs(self) -> int:
        """Multiply-accumulates of the two, for one image."""
        return self.positions * self.channels_in * (math.prod(self.kernel) + self.channels_out)

    @property
    def dense_macs(self) -> int:
        """Multiply-accumulates of the one that replaces them, for one image."""
        return self.positions * self.channels_in * self.channels_out * math.prod(self.kernel)


@dataclass(frozen=True, slots=True)
class Decision:
    """What a pair costs either way.

    Attributes:
        name: of the pair.
        keep_us: microseconds of the two.
        dense_us: microseconds of the one.
        basis: ``model`` or ``measured``.
    """

    name: str
    keep_us: float
    dense_us: float
    basis: str

    @property
    def dense(self) -> bool:
        return self.dense_us <= MARGIN * self.keep_us

    def __str__(self) -> str:
        choice = "dense is cheaper" if self.dense else "keeping the two is cheaper"
        if not self.dense and self.dense_us < self.keep_us:
            choice = "dense is not cheaper by a tenth"
        return f"{self.name}: {choice}, {self.keep_us:.3g} us for the two against {self.dense_us:.3g} us dense ({self.basis})"


def decide(pair: SeparablePair, target: str, precision: str, batch: int = 1) -> Decision:
    """Measured where the target is this machine, else by the model.

    ``cpu`` is this machine where onnxruntime works. A GPU is where TensorRT works and the GPU has the target's compute
    capability: the three Orins are alike in that, and so is any other card of the same generation. TensorRT builds for the
    GPU that is there, so that is the one to measure.

    Raises:
        UsageError: unknown target or precision.
    """
    backend = _present_backend(get_target(target))
    if backend is None:
        return model_decision(pair, target, precision, batch)
    return measure_decision(pair, precision, backend, batch=batch)


def model_decision(pair: SeparablePair, target: str, precision: str, batch: int = 1) -> Decision:
    """By the model of this module's docstring.

    Raises:
        UsageError: unknown target or precision.
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
    pair: SeparablePair, precision: str, backend: str = "onnxruntime", rounds: int = ROUNDS, batch: int = 1
) -> Decision:
    """Time both ways on this machine, in turns; medians over the rounds. A shape is measured once a process.

    Raises:
        UsageError: unknown precision or backend.
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
    moving = numbers * BYTES[precision] / (MEMORY * target.bandwidth * 1e3)
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
    from edge_effdet.backends.base import get_backend, require

    require(backend)
    copies = COPIES if pair.stride == (1, 1) and pair.channels_in == pair.channels_out else 1
    shape = (batch, pair.channels_in, pair.height * pair.stride[0], pair.width * pair.stride[1])
    feed = np.random.default_rng(0).normal(size=shape).astype(np.float16 if precision == "fp16" else np.float32)
    with tempfile.TemporaryDirectory(prefix="edge-effdet-") as folder:
        runners = [
            _load(_pair_model(pair, precision, batch, dense, copies), get_backend(backend), backend, precision, path)
            for dense, path in ((False, Path(folder) / "keep.onnx"), (True, Path(folder) / "dense.onnx"))
        ]
        with runners[0] as keep, runners[1] as dense:
            times = _time_in_turns([lambda: keep.run({"x": feed}), lambda: dense.run({"x": feed})], rounds)
    return times[0] / copies, times[1] / copies


def _load(model: onnx.ModelProto, backend: Backend, name: str, precision: str, path: Path) -> Runner:
    from edge_effdet.backends.base import CompileOptions
    from edge_effdet.graph.model import save_graph

    spec = ModelSpec("separable_pair", (1, 1), ("object",), (1,))
    graph = save_graph(model, path, spec=spec, stage="optimized", precision=precision, rewrites={}, parents={})
    engine = path.with_suffix(f".engine{backend.SUFFIX}")
    engine.write_bytes(backend.compile(graph, CompileOptions(batch_sizes=(1,))))
    return backend.load(Engine(engine, spec, name, precision, {}))


def _time_in_turns(ways: list[Callable[[], object]], rounds: int) -> list[float]:
    """Microseconds of each way: the median over the rounds of a turn's fastest run. Other programs only add time."""
    turns: list[list[float]] = [[] for _ in ways]
    for number in range(rounds):
        for way in list(range(len(ways)))[:: -1 if number % 2 else 1]:
            time.sleep(PAUSE_SECONDS)
            for _ in range(WARM_UP_RUNS):
                ways[way]()
            runs: list[float] = []
            # What takes microseconds is run more often: one interruption outweighs it.
            while len(runs) < RUNS or sum(runs) < TURN_SECONDS:
                started = time.perf_counter()
                ways[way]()
                runs.append(time.perf_counter() - started)
            turns[way].append(1e6 * min(runs))
    return [statistics.median(own) for own in turns]


def _pair_model(pair: SeparablePair, precision: str, batch: int, dense: bool, copies: int) -> onnx.ModelProto:
    """``copies`` pairs in a row, or as many dense convolutions, with random weights that keep the numbers' size."""
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
    """Convolutions in a row, in the form that ``quantize`` gives them: Q/DQ around each at INT8, half weights at FP16."""

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
        """Through INT8 and back, where that is the precision."""
        if self._precision != "int8":
            return
        self.arrays["scale"], self.arrays["zero"] = np.array(1 / 32, np.float32), np.array(0, np.int8)
        value, self.last = self.last, f"{self.last}_dequantized"
        self._add("QuantizeLinear", [value, "scale", "zero"], f"{value}_quantized", {})
        self._add("DequantizeLinear", [f"{value}_quantized", "scale", "zero"], self.last, {})

    def _add(self, kind: str, inputs: Sequence[str], output: str, attributes: Mapping[str, Any]) -> None:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
