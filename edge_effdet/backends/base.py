"""What a backend offers, and the table of their names. No backend is imported before it is used."""

from __future__ import annotations

import abc
import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from edge_effdet.artifacts import Engine, Graph, has_sha256
from edge_effdet.backends.cores import usable_cores
from edge_effdet.backends.engine_account import EngineAccount
from edge_effdet.errors import BackendUnavailable, EngineError, UsageError

if TYPE_CHECKING:
    # Python 3.11; JetPack 6 has 3.10.
    from typing import Self

MOST_CONTEXTS = 4
"""Runs at once on a GPU where nothing else is said."""

RUN_LIMIT = 120.0
"""Seconds that a run may take where an engine is looked at before it is trusted (``LoadOptions.run_limit``). The largest model takes half of that on a
small processor."""

BACKENDS: dict[str, str | Backend] = {
    "onnxruntime": "edge_effdet.backends.onnxruntime",
    "onnxruntime-cuda": "edge_effdet.backends.onnxruntime_cuda",
    "openvino": "edge_effdet.backends.openvino",
    "tensorrt": "edge_effdet.backends.tensorrt.builder",
    "tensorrt-rtx": "edge_effdet.backends.tensorrt.rtx",
}
"""The module of each backend, or anything else that offers what ``Backend`` says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traits:
    """What is true of a backend on every machine. Each backend's module declares its own as ``TRAITS``.

    Attributes:
        on_cpu: whether it computes on the CPU. Then ``LoadOptions.threads`` means something, and the processor's instruction sets
            decide how INT8 is computed (``arithmetic``).
        automatic: its place among those that ``auto`` tries, from 1; 0 where ``auto`` never takes it.
        rest: the precision in which the rest of an INT8 graph runs where nothing else is said: ``fp16`` on a GPU that gains by it.
        saturates: whether its INT8 kernels add pairs of products in 16 bits on an x86 processor without VNNI.
        uses_halves: whether it computes an FP16 graph in the half precision that a CPU has, and not in FP32.
        device_time: whether its runner tells the time on the device apart (``Runner.last_device_ms``).
        suppresses: whether it has TensorRT's plugin EfficientNMS.
        default_target: what it builds for where ``CompileOptions.target`` is empty; empty for this machine.
    """

    on_cpu: bool
    automatic: int = 0
    rest: str = "fp32"
    saturates: bool = False
    uses_halves: bool = False
    device_time: bool = False
    suppresses: bool = False
    default_target: str = ""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output of an engine; -1 stands for a dynamic axis."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class Runner(abc.ABC):
    """An engine that is loaded and ready; a context manager that frees what it holds.

    Attributes:
        inputs: the engine's inputs.
        outputs: the engine's outputs.
        concurrent: whether several threads may call ``run`` at once.
        arithmetic: the type of what is not INT8, ``f32``, ``f16`` or ``bf16``, where the processor decides it; None where the graph does.
        usable: whether it can still run: False after a run that hangs and could not be ended (``limited``).
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    concurrent: bool = False
    arithmetic: str | None = None
    usable: bool = True

    @abc.abstractmethod
    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once. Feeds and results by tensor name; the caller owns the results."""

    @property
    def last_device_ms(self) -> float | None:
        """Milliseconds on the device of this thread's last run; None where nobody measured it."""
        return None

    def interrupt(self, thread: int) -> None:  # noqa: B027 - not every runtime can
        """Ask for the end of the run that a thread is in, from another thread. It then raises EngineError, where the runtime can end it.

        Runs can be ended only where the engine was loaded with a ``LoadOptions.run_limit``.

        Args:
            thread: the thread's ``ident``.
        """

    def close(self) -> None:  # noqa: B027 - not every engine holds something
        """Free what the engine holds. A second call does nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


@dataclass(frozen=True, slots=True)
class Compiled:
    """What a compiler made of a graph.

    Attributes:
        content: the engine, byte for byte.
        account: in which precision each layer runs, where the backend tells.
        optimized: the ONNX model that the backend made of the graph, for one that tells no other way; ``quant.account`` reads it.
    """

    content: bytes
    account: EngineAccount | None = None
    optimized: bytes | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRun:
    """One layer of an engine, and how long it takes.

    Attributes:
        name: the backend's name of it.
        kind: the kind of layer, in the backend's words.
        precision: a name of ``BY_WIDTH`` for the tensor that it takes, in which a convolution computes; empty where it is none of them,
            or the backend does not tell.
        milliseconds: its time in each run, without the warm-up.
        nodes: for a layer that multiplies, the ONNX nodes that it computes, where the backend tells.
    """

    name: str
    kind: str
    precision: str
    milliseconds: tuple[float, ...]
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ProfiledRuns:
    """How long each layer of an engine takes, by the backend's own profiler.

    Attributes:
        source: what measured it, for people.
        layers: the layers, in the order in which they run.
        optimized: the ONNX model whose nodes the layers are, for a backend that does not tell ``LayerRun.nodes``.
    """

    source: str
    layers: tuple[LayerRun, ...]
    optimized: bytes | None = None


@dataclass(frozen=True, slots=True)
class Available:
    """The backend works here.

    Attributes:
        version: of the runtime.
        device: what it computes on, for people.
        runs_here: False where it can compile but not run (TensorRT-RTX without a GPU).
    """

    version: str
    device: str
    runs_here: bool = True


@dataclass(frozen=True, slots=True)
class Unavailable:
    """The backend does not work here: why, and what to do."""

    reason: str
    fix: str


@dataclass(frozen=True, slots=True)
class CompileOptions:
    """What a compiler may be told.

    Attributes:
        target: for TensorRT-RTX the SM versions, as in ``86+89+120``; empty for the backend's default.
        workspace_mib: limit of the builder's scratch memory; 0 for none.
        timing_cache: a file that TensorRT's tactic timings are kept in, or None.
        batch_sizes: what TensorRT tunes a graph with a dynamic batch for, ascending: an optimization profile for each, which
            takes every batch above the one before it.

    Raises:
        UsageError: the batch sizes do not ascend from 1 or more.
    """

    target: str = ""
    workspace_mib: int = 0
    timing_cache: Path | None = None
    batch_sizes: tuple[int, ...] = (1, 8)

    def __post_init__(self) -> None:
        sizes = self.batch_sizes
        if not sizes or [0, *sizes] != sorted({0, *sizes}):
            raise UsageError(
                f"The batch sizes {','.join(map(str, sizes))} do not ascend: they have to be whole numbers that ascend from 1 "
                "or more; write 1,8, for example."
            )


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How an engine is loaded. What means nothing to a backend is left out of account, but for ``threads`` on a GPU, which is refused.

    Attributes:
        threads: threads of one run on the CPU; 0 for its share of the physical cores that this process may use (``backends.cores``).
        parallel_runs: how many runs there may be at once; 0 for what suits the backend, one on a CPU and up to ``MOST_CONTEXTS`` on a
            GPU, where the memory of a run is taken when it is first needed.
        spinning: whether threads that wait for work keep a core busy. A single run is faster with it; what else the machine
            does at the same time, another run or decoding, is slower.
        cuda_graphs: whether runs on a GPU are recorded and launched as CUDA graphs.
        timed: whether the GPU's time is measured, so that ``Runner.last_device_ms`` is known.
        runtime_cache: the file that keeps what TensorRT-RTX compiled; None for ``runtime_cache.runtime_cache_path``.
        run_limit: seconds that a run may take, after which it raises EngineError (``limited``); loading may take ``limited.LOAD_LIMIT`` then. 0
            for no limit, and then loading and running are in the caller's own thread.

    Raises:
        UsageError: a number is negative.
    """

    threads: int = 0
    parallel_runs: int = 0
    spinning: bool = True
    cuda_graphs: bool = True
    timed: bool = False
    runtime_cache: Path | None = None
    run_limit: float = 0.0

    def __post_init__(self) -> None:
        for name in ("threads", "parallel_runs", "run_limit"):
            if getattr(self, name) < 0:
                raise UsageError(f"`{name}` {getattr(self, name)} makes no sense; give 0, for what suits, or more.")

    def runs_on_cpu(self) -> int:
        """How many runs there may be at once on a CPU."""
        return self.parallel_runs or 1

    def threads_of_a_run(self) -> int:
        """``threads``, chosen where it is 0."""
        return self.threads or max(1, usable_cores() // self.runs_on_cpu())


def refuse_target(backend: str, options: CompileOptions) -> None:
    """Raises UsageError where a target is given to a backend that has none."""
    if options.target:
        raise UsageError(
            f"The backend {backend} has no targets, so `target` {options.target} means nothing; leave it out."
        )


class Backend(Protocol):
    """What a backend offers; each is a module of this package, named in ``BACKENDS``.

    ``profile`` runs an engine as ``load`` would, ``runs`` times after a warm-up, and times each layer. It raises EngineError where the engine
    does not run, and gives Unavailable where the backend cannot tell.
    """

    TRAITS: Traits
    SUFFIX: str

    def probe(self) -> Available | Unavailable: ...

    def compile(self, graph: Graph, options: CompileOptions) -> Compiled: ...

    def load(self, engine: Engine, options: LoadOptions) -> Runner: ...

    def profile(
        self, engine: Engine, options: LoadOptions, feeds: Mapping[str, np.ndarray], runs: int
    ) -> ProfiledRuns | Unavailable: ...


def get_backend(name: str) -> Backend:
    """The backend of this name. Raises UsageError for an unknown name."""
    if name not in BACKENDS:
        raise UsageError(f"There is no backend {name!r}; the backends are {', '.join(BACKENDS)}.")
    entry = BACKENDS[name]
    return cast(Backend, importlib.import_module(entry)) if isinstance(entry, str) else entry


def require(name: str) -> Available:
    """Probe a backend. Raises BackendUnavailable with the reason and the fix."""
    answer = get_backend(name).probe()
    if isinstance(answer, Unavailable):
        raise BackendUnavailable(f"The backend {name} is not available: {answer.reason}; {answer.fix}.")
    return answer


def load_runner(engine: Engine, options: LoadOptions | None = None) -> Runner:
    """Load an engine with the backend that its JSON names.

    Raises:
        BackendUnavailable: that does not work here, with the reason and the fix.
        UsageError: a number of threads is given to a backend that does not compute on the CPU.
        EngineError: it refuses the engine, or the file is not the one any more that ``Engine.sha256`` is of.
    """
    require(engine.backend)
    backend, options = get_backend(engine.backend), options or LoadOptions()
    if options.threads and not backend.TRAITS.on_cpu:
        raise UsageError(
            f"The backend {engine.backend} does not compute on the CPU, so `threads` {options.threads} means nothing; leave it out."
        )
    if not options.run_limit:
        runner = backend.load(engine, options)
    else:
        from edge_effdet.backends.limited import load_limited

        runner = load_limited(backend.load, engine, options)
    # Afterwards, for a build may replace the engine also while it is loaded.
    if engine.sha256 and not has_sha256(engine.path, engine.sha256):
        runner.close()
        raise EngineError(
            f"{engine.path} was replaced before it was loaded, so its record is another engine's; load it again."
        )
    return runner


def automatic_backends() -> list[str]:
    """What ``auto`` tries, in this order."""
    places = {name: get_backend(name).TRAITS.automatic for name in BACKENDS}
    return sorted((name for name in BACKENDS if places[name]), key=lambda name: places[name])


def choose_automatically() -> tuple[str, list[str]]:
    """The first of ``automatic_backends`` that is available and runs here, and why those before it were passed over."""
    passed: list[str] = []
    for name in automatic_backends():
        answer = get_backend(name).probe()
        if isinstance(answer, Unavailable):
            passed.append(f"{name}: {answer.reason}")
        elif not answer.runs_here:
            passed.append(f"{name}: it compiles here and cannot run here ({answer.device})")
        else:
            return name, passed
    raise BackendUnavailable(
        f"No backend is available ({'; '.join(passed)}); pip install 'edge-effdet[ort]' installs one that runs anywhere."
    )
