"""An engine of TensorRT or TensorRT-RTX read onto the GPU: refused with the fix where it is of another version or GPU."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from edge_effdet.artifacts import Engine
from edge_effdet.backends.base import LoadOptions, TensorSpec, Unavailable
from edge_effdet.backends.runtime_cache import runtime_cache_path
from edge_effdet.backends.tensorrt import cuda
from edge_effdet.backends.tensorrt.library import Flavor, get_log, load_plugins, start
from edge_effdet.backends.tensorrt.runtime_cache import RuntimeCache
from edge_effdet.errors import EngineError, InputError


class LoadedEngine:
    """An engine file in TensorRT's runtime, and what its contexts share."""

    def __init__(self, flavor: Flavor, trt: Any, engine: Engine, options: LoadOptions) -> None:
        self.flavor = flavor
        self.options = options
        self.name = engine.path.name
        self.log = get_log(trt)
        self._trt = trt
        self._file = engine
        self._runtime: Any = None
        self._engine: Any = None
        cache = (options.runtime_cache or runtime_cache_path(engine)) if flavor.compiles_at_load else None
        self._cache = None if cache is None else RuntimeCache(cache)

    def read(self) -> None:
        """Read the file. The GPU's context is current."""
        flavor, trt = self.flavor, self._trt
        gpu = cuda.probe_gpu()
        self._refuse_other_origin(gpu)
        self.log.messages.clear()
        self._runtime = start(flavor, self.log, trt.Runtime)
        load_plugins(flavor, trt, self.log)
        content = self._file.path.read_bytes()
        self._engine = self._runtime.deserialize_cuda_engine(content)
        if self._engine is None:
            record = self._file.record
            origin = (
                "of unknown origin"
                if record is None
                else f"which {flavor.title} {record.backend_version} built for {record.target}"
            )
            raise EngineError(
                f"{flavor.title} {trt.__version__} on {gpu} refuses {self.name}, {origin} "
                f"({self._diagnose(content)}); an engine belongs to the GPU and the "
                "version that built it, so build it again for this machine."
            )

    def describe(self) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
        """The engine's inputs and outputs."""
        specs = [self._describe_tensor(index) for index in range(self._engine.num_io_tensors)]
        is_input = [self._engine.get_tensor_mode(spec.name) == self._trt.TensorIOMode.INPUT for spec in specs]
        return (
            tuple(spec for spec, taken in zip(specs, is_input, strict=True) if taken),
            tuple(spec for spec, taken in zip(specs, is_input, strict=True) if not taken),
        )

    def make_execution_context(self) -> Any:
        """TensorRT's execution context. The GPU's context is current."""
        if self._cache is None:
            context = self._engine.create_execution_context()
        else:
            config = self._engine.create_runtime_config()
            self._cache.attach(config)
            strategy = self._trt.CudaGraphStrategy
            config.cuda_graph_strategy = strategy.WHOLE_GRAPH_CAPTURE if self.options.cuda_graphs else strategy.DISABLED
            context = self._engine.create_execution_context(config)
        if context is None:
            raise EngineError(
                f"{self.name} was read but cannot be prepared to run ({self.log.last_error()}); free memory on "
                "the GPU, or build the engine again here."
            )
        return context

    def layer_information(self) -> str:
        """JSON of the engine's layers, by TensorRT's engine inspector. The GPU's context is current."""
        inspector = self._engine.create_engine_inspector()
        return str(inspector.get_engine_information(self._trt.LayerInformationFormat.JSON))

    def choose_profile(self, dynamic: Mapping[str, tuple[int, ...]]) -> int:
        """The optimization profile that takes these input shapes and was tuned for the nearest batch.

        Raises:
            InputError: none takes them.
        """
        fitting: list[tuple[int, int]] = []
        ranges: list[str] = []
        for index in range(self._engine.num_optimization_profiles):
            limits = {name: self._engine.get_tensor_profile_shape(name, index) for name in dynamic}
            (smallest, usual, largest), batch = next(iter(limits.values())), next(iter(dynamic.values()))[0]
            ranges.append(f"{smallest[0]} to {largest[0]}")
            if all(
                low <= given <= high
                for name, shape in dynamic.items()
                for low, given, high in zip(limits[name][0], shape, limits[name][2], strict=True)
            ):
                fitting.append((abs(batch - usual[0]), index))
        if not fitting:
            batch = next(iter(dynamic.values()))[0]
            raise InputError(
                f"A batch of {batch} does not fit {self.name}, which was built for {' and '.join(ranges)}; send fewer "
                "images at a time or build the engine for larger batches."
            )
        return min(fitting)[1]

    def close(self) -> None:
        """Keep the compiled kernels, and free the engine. After its contexts."""
        if self._runtime is None:
            return
        # TensorRT frees GPU memory when its objects go: in this order, and with the context that they were made in.
        with cuda.primary_context():
            if self._cache is not None:
                self._cache.save()
            self._engine = None
            self._runtime = None

    def _refuse_other_origin(self, gpu: cuda.Gpu | Unavailable) -> None:
        """An engine of TensorRT is of one version and one GPU; TensorRT itself only warns of another GPU."""
        record = self._file.record
        if record is None or self.flavor.default_target or isinstance(gpu, Unavailable):
            return
        built_with, built_on = record.backend_version, record.target
        fix = "build it again on this machine with python -m edge_effdet.build_engine"
        if built_with != self._trt.__version__:
            raise EngineError(
                f"{self.name} was built with {self.flavor.title} {built_with} and this machine has "
                f"{self._trt.__version__}, which does not take it; {fix}."
            )
        if built_on != str(gpu):
            raise EngineError(
                f"{self.name} was built on {built_on} and this GPU is {gpu}, for which it is not tuned or does not run; "
                f"{fix}."
            )

    def _diagnose(self, content: bytes) -> str:
        """Why the engine was refused: the runtime's own diagnosis, where it has one, and its last error."""
        found: list[str] = []
        if hasattr(self._runtime, "get_engine_validity"):
            with contextlib.suppress(Exception):
                _, diagnostics = self._runtime.get_engine_validity(content)
                kinds = self._trt.EngineInvalidityDiagnostics.__members__
                found = [name.lower().replace("_", " ") for name, kind in kinds.items() if int(kind) & int(diagnostics)]
        return ", ".join([*found, self.log.last_error()])

    def _describe_tensor(self, index: int) -> TensorSpec:
        name = self._engine.get_tensor_name(index)
        kind = self._engine.get_tensor_dtype(name)
        try:
            dtype = np.dtype(self._trt.nptype(kind))
        except TypeError as error:
            raise EngineError(
                f"The tensor {name} of {self.name} has a type that NumPy lacks ({kind}); "
                "export the graph with float32 or integer inputs and outputs."
            ) from error
        return TensorSpec(name, tuple(self._engine.get_tensor_shape(name)), dtype)
