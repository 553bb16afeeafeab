"""Running an engine of TensorRT or TensorRT-RTX: a pool of execution contexts that threads take turns with.

A run takes an idle context of its batch size, makes one where there is none, or waits. Every call exists in the bindings of
TensorRT-RTX 1.7; running has been tried on a simulation only.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from collections.abc import Callable, Iterator, Mapping

import numpy as np

from edge_effdet.artifacts import Engine
from edge_effdet.backends.base import MOST_CONTEXTS, LoadOptions, Runner
from edge_effdet.backends.tensorrt import cuda
from edge_effdet.backends.tensorrt.context import ExecutionContext, Shapes, Timing
from edge_effdet.backends.tensorrt.engine import LoadedEngine
from edge_effdet.backends.tensorrt.layer_times import PROFILE_WARM_UP, new_layer_times
from edge_effdet.backends.tensorrt.library import Flavor, require_module
from edge_effdet.errors import EdgeEffDetError, EngineError, InputError

logger = logging.getLogger("edge_effdet.backends.tensorrt")


class TensorRTRunner(Runner):
    """An engine on GPU 0; any thread may call ``run``, several at a time.

    Raises:
        BackendUnavailable: the package, PyCUDA or the GPU is missing.
        EngineError: another version or GPU built the engine, or it is damaged.
    """

    concurrent = True

    def __init__(self, flavor: Flavor, engine: Engine, options: LoadOptions) -> None:
        self._trt = trt = require_module(flavor)
        self._loaded = LoadedEngine(flavor, trt, engine, options)
        self._timing = threading.local()
        with contextlib.ExitStack() as stack:
            stack.callback(self._loaded.close)
            with cuda.primary_context():
                self._loaded.read()
                self.inputs, self.outputs = self._loaded.describe()
            # Not a method of this object: the pool would keep it alive until a collection of cycles.
            make = functools.partial(ExecutionContext, self._loaded, self.inputs, self.outputs)
            self._pool = _Pool(make, options.parallel_runs or MOST_CONTEXTS)
            stack.callback(self._pool.close)
            # What goes wrong goes wrong now, and not at the first picture.
            self._pool.make_one()
            self._resources = stack.pop_all()
        # After its streams, so that it is closed before them.
        cuda.close_at_exit(self)

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once. Feeds and results by tensor name; the caller owns the results.

        Raises:
            InputError: a feed is missing, unknown, or has another dtype or a shape that the engine was not built for.
            EngineError: TensorRT could not run it, or the runner is closed.
            BackendUnavailable: CUDA reported an error.
        """
        self._check_feeds(feeds)
        self._timing.last = None
        with self._pool.borrow(tuple(feeds[spec.name].shape for spec in self.inputs)) as context:
            results, self._timing.last = context.run(feeds)
        return results

    @property
    def last_timing(self) -> Timing | None:
        """Of this thread's last run; None before it and where the options do not ask for timing."""
        return getattr(self._timing, "last", None)

    @property
    def last_device_ms(self) -> float | None:
        """Milliseconds on the GPU of this thread's last run, as ``last_timing`` has them."""
        return self.last_timing.device if self.last_timing else None

    def profile(self, feeds: Mapping[str, np.ndarray], runs: int) -> tuple[str, list[dict[str, float]]]:
        """Time the layers in runs without CUDA graphs, of which the first ``PROFILE_WARM_UP`` do not count.

        Returns:
            JSON of the layers by TensorRT's engine inspector, and for each run milliseconds by the layer's name.

        Raises:
            InputError, EngineError, BackendUnavailable: as ``run`` does.
        """
        self._check_feeds(feeds)
        times = new_layer_times(self._trt)
        with self._pool.borrow(tuple(feeds[spec.name].shape for spec in self.inputs)) as context:
            context.report_to(times)
            for _ in range(PROFILE_WARM_UP + runs):
                times.start_run()
                context.run(feeds)
            context.report_to(None)
        with cuda.primary_context():
            told = self._loaded.layer_information()
        return told, times.runs[PROFILE_WARM_UP:]

    def close(self) -> None:
        """Wait for runs under way and free all that the engine holds on the host and the GPU. A second call does nothing."""
        self._resources.close()

    def __del__(self) -> None:
        # What was never made has nothing to free.
        if hasattr(self, "_resources"):
            self.close()

    def _check_feeds(self, feeds: Mapping[str, np.ndarray]) -> None:
        name = self._loaded.name
        expected = {spec.name for spec in self.inputs}
        if set(feeds) != expected:
            raise InputError(f"{name} takes {', '.join(sorted(expected))}, not {', '.join(sorted(feeds))}.")
        for spec in self.inputs:
            array = feeds[spec.name]
            fits = len(array.shape) == len(spec.shape) and all(
                wanted in (-1, given) for wanted, given in zip(spec.shape, array.shape, strict=True)
            )
            if not fits or array.dtype != spec.dtype:
                raise InputError(
                    f"{spec.name} of {name} takes {spec.dtype} {list(spec.shape)} (-1 for any batch), "
                    f"not {array.dtype} {list(array.shape)}."
                )


class _Pool:
    """Contexts that threads take turns with."""

    def __init__(self, make: Callable[[], ExecutionContext], limit: int) -> None:
        self._make = make
        self._limit = limit
        self._idle: list[ExecutionContext] = []
        self._count = 0
        self._closed = False
        self._changed = threading.Condition()

    def make_one(self) -> None:
        """Make the first context. Raises what making it raises."""
        self._idle.append(self._make())
        self._count = 1

    @contextlib.contextmanager
    def borrow(self, shapes: Shapes) -> Iterator[ExecutionContext]:
        """A context that is set to ``shapes``, for one thread until the block ends.

        Raises:
            EngineError: the pool is closed.
            InputError: the engine was not built for these shapes.
        """
        context = self._take(shapes)
        try:
            context.set_shapes(shapes)
            yield context
        finally:
            with self._changed:
                self._idle.append(context)
                self._changed.notify_all()

    def close(self) -> None:
        """Wait until all contexts are back, and free them."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            while len(self._idle) < self._count:
                self._changed.wait()
            while self._idle:
                self._count -= 1
                self._idle.pop().close()

    def _take(self, shapes: Shapes) -> ExecutionContext:
        with self._changed:
            while not self._closed:
                # One of another batch size is only taken where no more can be made: its CUDA graph would be lost.
                for wanted in (shapes, None):
                    for context in self._idle:
                        if context.shapes == wanted:
                            self._idle.remove(context)
                            return context
                if self._count < self._limit and (made := self._try_to_make()) is not None:
                    return made
                if self._idle:
                    return self._idle.pop(0)
                self._changed.wait()
        raise EngineError("The engine is closed; load it again to run it.")

    def _try_to_make(self) -> ExecutionContext | None:
        try:
            context = self._make()
        except EdgeEffDetError as error:
            if self._count == 0:
                raise
            # Most likely the GPU's memory is full; the contexts that there are still run.
            logger.warning("no more than %d execution contexts: %s", self._count, error)
            self._limit = self._count
            return None
        self._count += 1
        return context
