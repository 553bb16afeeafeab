"""What a backend offers, and the literal table of their names. Nothing is imported before it is used."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, cast

import numpy as np

from edge_effdet.artifacts import Engine, Graph
from edge_effdet.backends.cores import usable_cores
from edge_effdet.errors import BackendUnavailable, UsageError

BACKENDS = {
    "onnxruntime": "edge_effdet.backends.onnxruntime",
    "onnxruntime-cuda": "edge_effdet.backends.onnxruntime_cuda",
    "openvino": "edge_effdet.backends.openvino",
    "tensorrt": "edge_effdet.backends.tensorrt.builder",
    "tensorrt-rtx": "edge_effdet.backends.tensorrt.rtx",
}
THREADED = ("onnxruntime", "openvino")
"""Those whose ``load`` takes ``LoadOptions`` as a second argument."""

AUTOMATIC = ("tensorrt", "onnxruntime")
"""What ``--backend auto`` tries, in this order."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """An input or output of an engine; -1 stands for a dynamic axis."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class Runner(Protocol):
    """An engine that is loaded and ready; a context manager that frees what it holds."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run once. Feeds and results by tensor name; the caller owns the results."""
        ...

    def __enter__(self) -> Runner: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


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
    """How an engine runs on the CPU.

    Attributes:
        threads: of one run; 0 for its share of the physical cores that this process may use (``backends.cores``).
        parallel_runs: how many runs there may be at once.
        spinning: whether threads that wait for work keep a core busy. A single run is faster with it; what else the machine
            does at the same time, another run or decoding, is slower.
    """

    threads: int = 0
    parallel_runs: int = 1
    spinning: bool = True

    def threads_or_share(self) -> int:
        """``threads``, chosen where it is 0."""
        return self.threads or max(1, usable_cores() // self.parallel_runs)


def refuse_target(backend: str, options: CompileOptions) -> None:
    """Raises UsageError where a target is given to a backend that has none."""
    if options.target:
        raise UsageError(
            f"The backend {backend} has no targets, so --target {options.target} means nothing; leave it out."
        )


class Backend(Protocol):
    """What each module in ``BACKENDS`` offers.

    A backend in ``THREADED`` takes ``LoadOptions`` in ``load`` too. A runner whose ``run`` may be called by several threads at
    once says so with a class attribute ``concurrent = True``, and one that computes a graph in another type than the graph's, because
    of the processor that it finds, with an attribute ``arithmetic``. One that can tell what it built offers ``compile_with_account`` or
    ``write_optimized``: see ``engine_account``.
    """

    SUFFIX: str

    def probe(self) -> Available | Unavailable: ...

    def compile(self, graph: Graph, options: CompileOptions) -> bytes: ...

    def load(self, engine: Engine) -> Runner: ...


def get_backend(name: str) -> Backend:
    """The module of a backend. Raises UsageError for an unknown name."""
    if name not in BACKENDS:
        raise UsageError(f"There is no backend {name!r}; the backends are {', '.join(BACKENDS)}.")
    return cast(Backend, importlib.import_module(BACKENDS[name]))


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
        UsageError: it has no threads to choose.
        EngineError: it refuses the engine.
    """
    require(engine.backend)
    backend: Any = get_backend(engine.backend)
    if engine.backend in THREADED:
        return backend.load(engine, options or LoadOptions())
    if options is not None and options.threads:
        raise UsageError(
            f"The backend {engine.backend} does not compute on the CPU, so a number of threads means nothing; leave it out."
        )
    return backend.load(engine)


def choose_automatically() -> tuple[str, list[str]]:
    """The first backend of ``AUTOMATIC`` that is available and runs here, and why those before it were passed over."""
    passed: list[str] = []
    for name in AUTOMATIC:
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
