"""Where the network's time goes: the time of each layer by its backend's profiler, joined with the work of the graph's convolutions.

A backend fuses, splits and renames what it computes. Its layers lead back to the graph's convolutions by the names that it tells. For
onnxruntime these are the names in the model that it made of the graph (``quant.optimized_model``). A convolution whose layer was not found
is left out, and ``Profile.macs_matched`` is below 1 then.

Reading a graph takes onnx. Without it the layers have times and no work.
"""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from edge_effdet.artifacts import Engine
from edge_effdet.backends.base import LayerRun, LoadOptions, ProfiledRuns, Unavailable, get_backend
from edge_effdet.benchmarking.record import LayerTime, Profile
from edge_effdet.errors import EdgeEffDetError
from edge_effdet.graph.counting import BYTES_PER_NUMBER, convolution_macs

if TYPE_CHECKING:
    import onnx_ir as ir

logger = logging.getLogger("edge_effdet.benchmarking")

_BYTES = {**BYTES_PER_NUMBER, "bf16": 2}
_FUSED = frozenset(
    {"Relu", "Clip", "LeakyRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh", "Add", "Sub", "Mul", "Div"}
)
"""Operators of one tensor, and constants, that a backend fuses into the convolution before them. It may call that after their output then."""


@dataclass(frozen=True, slots=True)
class _Work:
    """What one convolution does: multiply-accumulates, and how many numbers it reads and writes."""

    macs: int
    numbers: int


@dataclass(frozen=True, slots=True)
class _Convolutions:
    """The convolutions of a graph.

    Attributes:
        work: the work of each in a run, by the name of its node.
        by_output: the name of each by its output, and by the output of what a backend may fuse into it.
    """

    work: Mapping[str, _Work]
    by_output: Mapping[str, str]

    def find(self, name: str) -> str | None:
        """The convolution that a backend calls so: after its node, or after what it computes."""
        return name if name in self.work else self.by_output.get(name)


def profile_engine(
    engine: Engine, threads: int, feeds: Mapping[str, np.ndarray], runs: int, network_ms: float
) -> tuple[Profile | None, str]:
    """Time an engine's layers and join them with the work of the graph that the engine was compiled from.

    Args:
        engine: what is profiled.
        threads: threads of a run on a CPU, 0 for what suits; without meaning on a GPU.
        feeds: the inputs of a run, by name.
        runs: how often each layer is timed, after the backend's warm-up; 1 or more.
        network_ms: the time of a run without the profiler, in milliseconds.

    Returns:
        The profile and an empty text, or None and why there is none. ``LayerTime.macs`` and ``LayerTime.bytes`` are 0, as is
        ``Profile.macs_matched``, where the graph cannot be read here.
    """
    backend = get_backend(engine.backend)
    options = LoadOptions(threads=threads if backend.TRAITS.on_cpu else 0, parallel_runs=1)
    try:
        found = backend.profile(engine, options, feeds, runs)
    except EdgeEffDetError as error:
        return None, str(error)
    if isinstance(found, Unavailable):
        return None, f"{found.reason}; {found.fix}"
    images = len(next(iter(feeds.values())))
    graph = _read_convolutions(engine, images)
    computed = _computed_nodes(found, graph)
    layers = tuple(_with_work(layer, nodes, graph.work) for layer, nodes in zip(found.layers, computed, strict=True))
    macs = sum(own.macs for own in graph.work.values())
    profile = Profile(
        source=found.source,
        layers=layers,
        sum_ms=sum(layer.median_ms for layer in layers),
        network_ms=network_ms,
        macs_matched=sum(layer.macs for layer in layers) / macs if macs else 0.0,
    )
    return profile, ""


def _read_convolutions(engine: Engine, images: int) -> _Convolutions:
    """The convolutions of the graph that an engine was compiled from; none where it cannot be read here."""
    try:
        path = _find_graph(engine)
        if path is not None:
            return _count_work(path, images)
        reason = "the graph that it was compiled from is not beside it"
    except ModuleNotFoundError as error:
        reason = f"the Python package {error.name} is not installed"
    except Exception as error:  # onnx, onnx-ir and protobuf raise classes without a common base
        reason = str(error)
    logger.warning("the layers of %s have times and no multiply-accumulates: %s", engine.path, reason)
    return _Convolutions({}, {})


def _find_graph(engine: Engine) -> Path | None:
    """The graph that an engine was compiled from: the engine itself, or a file beside it with the hash in the engine's record."""
    if engine.path.suffix == ".onnx":
        return engine.path
    from edge_effdet.building.verify import find_compiled_graph

    graph = None if engine.record is None else find_compiled_graph(engine)
    return None if graph is None else graph.path


def _count_work(path: Path, images: int) -> _Convolutions:
    import onnx_ir as ir
    from onnx_ir.passes.common import ShapeInferencePass

    model = ir.load(str(path))
    ShapeInferencePass()(model)
    work = {str(node.name): _work_of(node, images) for node in model.graph if node.op_type == "Conv"}
    return _Convolutions(work, _name_outputs(model.graph))


def _work_of(conv: ir.Node, images: int) -> _Work:
    weight, output, taken = conv.inputs[1], conv.outputs[0], conv.inputs[0]
    macs = images * convolution_macs(conv)
    if weight is None or taken is None or any(each.shape is None for each in (weight, output, taken)):
        return _Work(macs, 0)
    return _Work(macs, _size(weight, 0) + images * (_size(taken, 1) + _size(output, 1)))


def _size(value: ir.Value, first: int) -> int:
    """How many numbers a tensor holds, over its axes from ``first`` on."""
    return math.prod(int(size) for size in list(value.shape or ())[first:])  # type: ignore[arg-type]


def _computed_nodes(found: ProfiledRuns, graph: _Convolutions) -> list[tuple[str, ...]]:
    """For each layer the graph's convolutions that it computes. One that several layers name counts for the slowest of them."""
    origins = _read_origins(found.optimized, graph) if found.optimized is not None and graph.work else {}
    named = [
        origins.get(layer.name) or tuple(dict.fromkeys(filter(None, map(graph.find, layer.nodes))))
        for layer in found.layers
    ]
    claims: dict[str, list[int]] = defaultdict(list)
    for index, nodes in enumerate(named):
        for node in nodes:
            claims[node].append(index)
    owner = {node: max(own, key=lambda index: _median(found.layers[index])) for node, own in claims.items()}
    return [tuple(node for node in nodes if owner[node] == index) for index, nodes in enumerate(named)]


def _read_origins(optimized: bytes, graph: _Convolutions) -> dict[str, tuple[str, ...]]:
    """The convolution that each node of an optimized model computes, by that node's name."""
    import onnx

    from edge_effdet.quant.optimized_model import FLOATING, INTEGER, find_node

    nodes = (node for node in onnx.load_from_string(optimized).graph.node if node.op_type in FLOATING | INTEGER)
    found = {node.name: find_node(node.name, graph.work.keys(), graph.by_output) for node in nodes}
    return {name: (origin,) for name, origin in found.items() if origin is not None}


def _name_outputs(graph: ir.Graph) -> dict[str, str]:
    found = {str(node.outputs[0].name): str(node.name) for node in graph if node.op_type == "Conv"}
    for node in graph:
        moving = [value for value in node.inputs if value is not None and not value.is_initializer()]
        if node.op_type in _FUSED and len(moving) == 1 and moving[0].name in found:
            found[str(node.outputs[0].name)] = found[str(moving[0].name)]
    return found


def _with_work(layer: LayerRun, nodes: tuple[str, ...], work: Mapping[str, _Work]) -> LayerTime:
    return LayerTime(
        name=layer.name,
        kind=layer.kind,
        precision=layer.precision,
        median_ms=_median(layer),
        nodes=nodes,
        macs=sum(work[node].macs for node in nodes),
        bytes=_BYTES.get(layer.precision, 0) * sum(work[node].numbers for node in nodes),
    )


def _median(layer: LayerRun) -> float:
    return float(np.median(layer.milliseconds))
