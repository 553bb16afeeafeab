"""One execution context of an engine, with a stream and memory of its own.

It belongs to one batch size: NVIDIA's guide leaves undefined what a CUDA graph does once the context that it was captured
from has been given other shapes. So a context that is set to another batch size forgets its graph.

Its first run is a plain one, which flushes what TensorRT has put off until shapes are known. The second is captured as a
CUDA graph and launched, as are those after it. Where that cannot be done, the reason is logged and runs stay plain.
TensorRT-RTX captures by itself, when the kernels of a shape are compiled; there nothing is captured here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_effdet.backends.base import TensorSpec, Unavailable
from edge_effdet.backends.tensorrt import cuda
from edge_effdet.backends.tensorrt.engine import LoadedEngine
from edge_effdet.errors import EngineError

logger = logging.getLogger("edge_effdet.backends.tensorrt")

Shapes = tuple[tuple[int, ...], ...]
"""Of each input, in the engine's order."""


@dataclass(frozen=True, slots=True)
class Timing:
    """Milliseconds of one run.

    Attributes:
        device: of the network on the GPU, between two events.
        device_with_copies: the same with the copies to and from the GPU.
        end_to_end: of the call as a whole, on the host's clock.
    """

    device: float
    device_with_copies: float
    end_to_end: float


class ExecutionContext:
    """An execution context with a stream and memory of its own, set to one batch size. One thread at a time uses it."""

    def __init__(self, loaded: LoadedEngine, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
        self._loaded = loaded
        self._inputs = inputs
        self._outputs = outputs
        self._shapes: Shapes | None = None
        self._native: Any = None
        self._graph: cuda.CudaGraph | None = None
        self._graph_addresses: tuple[int, ...] = ()
        self._captures = loaded.options.cuda_graphs and not loaded.flavor.compiles_at_load
        self._has_run = False
        self._timers: tuple[cuda.Timer, ...] = ()
        self._stream = cuda.CudaStream()
        try:
            self._buffers = {spec.name: self._stream.new_buffer() for spec in (*inputs, *outputs)}
            with self._stream.active():
                self._native = loaded.make_execution_context()
                if loaded.options.timed:
                    self._timers = (self._stream.new_timer(), self._stream.new_timer())
        except BaseException:
            self.close()
            raise

    @property
    def shapes(self) -> Shapes | None:
        """Of the inputs that it is set to; None before the first run."""
        return self._shapes

    def set_shapes(self, shapes: Shapes) -> None:
        """Set it to a batch size. Raises InputError for one that the engine was not built for."""
        if shapes == self._shapes:
            return
        named = zip(self._inputs, shapes, strict=True)
        dynamic = {spec.name: shape for spec, shape in named if -1 in spec.shape}
        with self._stream.active():
            self._forget_graph()
            self._shapes, self._has_run = None, False
            if dynamic:
                profile = self._loaded.choose_profile(dynamic)
                self._choose(profile)
                for name, shape in dynamic.items():
                    if not self._native.set_input_shape(name, shape):
                        raise EngineError(
                            f"{self._loaded.name} does not take {name} of {list(shape)} ({self._loaded.log.last_error()}); "
                            "build the engine again."
                        )
            self._shapes = shapes

    def run(self, feeds: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], Timing | None]:
        """Run once; the results are the caller's."""
        began = time.perf_counter()
        with self._stream.active():
            device, with_copies = self._timers or (None, None)
            if with_copies:
                with_copies.start()
            for spec in self._inputs:
                host = self._buffers[spec.name].reserve(feeds[spec.name].shape, spec.dtype)
                host[...] = feeds[spec.name]
                self._buffers[spec.name].upload(host, self._stream)
            pinned = {spec.name: self._reserve_output(spec) for spec in self._outputs}
            self._bind()
            if device:
                device.start()
            self._launch()
            if device:
                device.stop()
            for name, host in pinned.items():
                self._buffers[name].download(host, self._stream)
            if with_copies:
                with_copies.stop()
            self._stream.synchronize()
            results = {name: host.copy() for name, host in pinned.items()}
            if device is None or with_copies is None:
                return results, None
            on_device, copied = device.milliseconds(), with_copies.milliseconds()
            return results, Timing(on_device, copied, 1000 * (time.perf_counter() - began))

    def report_to(self, profiler: Any) -> None:
        """Let TensorRT tell a profiler after each run how long each layer took. A run waits for the GPU then, and is no CUDA graph."""
        self._captures = False
        with self._stream.active():
            self._forget_graph()
            self._native.profiler = profiler

    def close(self) -> None:
        """Free all of it. A second call does nothing."""
        with cuda.primary_context():
            self._native = None
        self._stream.close()

    def _choose(self, profile: int) -> None:
        if profile == self._native.active_optimization_profile:
            return
        if not self._native.set_optimization_profile_async(profile, self._stream.handle):
            raise EngineError(
                f"{self._loaded.name} refuses its optimization profile {profile} ({self._loaded.log.last_error()}); build "
                "the engine again."
            )
        self._stream.synchronize()

    def _reserve_output(self, spec: TensorSpec) -> np.ndarray:
        shape = tuple(self._native.get_tensor_shape(spec.name))
        if -1 in shape:
            raise EngineError(
                f"The size of the output {spec.name} of {self._loaded.name} depends on what is in the image, which is not "
                "supported; export the graph with a fixed number of detections."
            )
        return self._buffers[spec.name].reserve(shape, spec.dtype)

    def _addresses(self) -> tuple[int, ...]:
        return tuple(buffer.address for buffer in self._buffers.values())

    def _bind(self) -> None:
        for name, buffer in self._buffers.items():
            if not self._native.set_tensor_address(name, buffer.address):
                raise EngineError(
                    f"{self._loaded.name} refuses the memory of {name} ({self._loaded.log.last_error()}); build the engine "
                    "again."
                )

    def _launch(self) -> None:
        if self._graph is not None and self._graph_addresses != self._addresses():
            self._forget_graph()
        if self._graph is None and self._captures and self._has_run:
            self._capture()
        if self._graph is not None:
            self._graph.launch()
            return
        if not self._execute():
            raise EngineError(
                f"{self._loaded.name} could not be run ({self._loaded.log.last_error()}); build the engine again."
            )
        self._has_run = True

    def _execute(self) -> bool:
        return bool(self._native.execute_async_v3(self._stream.handle))

    def _capture(self) -> None:
        graph = self._stream.capture(self._execute)
        if isinstance(graph, Unavailable):
            self._captures = False
            logger.info("%s runs without a CUDA graph: %s", self._loaded.name, graph.reason)
            return
        self._graph, self._graph_addresses = graph, self._addresses()

    def _forget_graph(self) -> None:
        if self._graph is not None:
            self._stream.discard(self._graph)
            self._graph = None
