"""How long each layer of an engine takes: TensorRT's ``IProfiler``, joined with what the engine inspector tells of the layers.

TensorRT records an event after each layer, and calls the profiler once a layer when a run is over. That has been tried on a simulation
only. Sources: the pages of IProfiler and IExecutionContext in the Python API of TensorRT 10 and TensorRT-RTX 1.7; a context that has a
profiler calls it in ``execute_async_v3``, which waits for the GPU then.
"""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from typing import Any

from edge_effdet.backends.base import LayerRun
from edge_effdet.backends.tensorrt.layers import EngineLayer, layers_from_json

PROFILE_WARM_UP = 3
"""How many runs come before those that a profile counts."""


class LayerTimes:
    """What TensorRT reported. ``new_layer_times`` joins this with the ``IProfiler`` of the flavor's module.

    Attributes:
        runs: for each run milliseconds by the layer's name.
    """

    runs: list[dict[str, float]]

    def start_run(self) -> None:
        """What is reported from now on belongs to a new run."""
        self.runs.append({})

    def report_layer_time(self, layer_name: str, ms: float) -> None:
        """Called by TensorRT, once a layer and run."""
        run = self.runs[-1]
        run[layer_name] = run.get(layer_name, 0.0) + ms


def new_layer_times(trt: Any) -> LayerTimes:
    """A profiler that TensorRT accepts."""
    joined: Any = types.new_class("TensorRTLayerTimes", (LayerTimes, trt.IProfiler))
    times = joined.__new__(joined)
    trt.IProfiler.__init__(times)
    times.runs = []
    return times


def join_layers(runs: Sequence[Mapping[str, float]], told: str) -> tuple[LayerRun, ...]:
    """The layers and their times.

    Args:
        runs: for each run milliseconds by the layer's name.
        told: JSON of the layers by the engine inspector. Of a layer that it does not describe only the name and the times are known.
    """
    described = {layer.name: layer for layer in layers_from_json(told)}
    names = dict.fromkeys(name for run in runs for name in run)
    return tuple(_join(name, described.get(name), [run.get(name, 0.0) for run in runs]) for name in names)


def _join(name: str, layer: EngineLayer | None, milliseconds: Sequence[float]) -> LayerRun:
    if layer is None:
        return LayerRun(name=name, kind="", precision="", milliseconds=tuple(milliseconds))
    return LayerRun(
        name=name,
        kind=layer.kind,
        precision=layer.precision or "",
        milliseconds=tuple(milliseconds),
        nodes=layer.nodes if layer.computes else (),
    )
