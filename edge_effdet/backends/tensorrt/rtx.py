"""TensorRT-RTX: builds ahead of time on any x86-64 machine, with no GPU, for one or more SM versions.

All code is shared with ``backends.tensorrt``. Building is tried in every test run; running an engine has never been.

One engine serves several SM versions; ``86+89+120`` (Ampere, Ada and Blackwell RTX cards) is the default. The builder
(1.7.1) takes any mix, but refuses SM 75 (Turing) for a graph with BF16, and NVIDIA's support matrix warns that an
engine with SM 75 in it can be slower on the others; so build ``75`` apart.
"""

from __future__ import annotations

from edge_effdet.artifacts import Engine, Graph
from edge_effdet.backends.base import Available, CompileOptions, Unavailable
from edge_effdet.backends.engine_account import EngineAccount
from edge_effdet.backends.tensorrt import builder as tensorrt
from edge_effdet.backends.tensorrt.engine import RunnerOptions
from edge_effdet.backends.tensorrt.library import Flavor
from edge_effdet.backends.tensorrt.runner import TensorRTRunner

SUFFIX = ".engine"
DEFAULT_TARGET = "86+89+120"

FLAVOR = Flavor(
    title="TensorRT-RTX",
    module="tensorrt_rtx",
    extra="tensorrt-rtx",
    install="run pip install 'edge-effdet[tensorrt-rtx]' (x86-64 only)",
    oldest=(1, 3),
    beyond=(2, 0),
    default_target=DEFAULT_TARGET,
    has_timing_cache=False,
    has_plugins=False,
    compiles_at_load=True,
)


def probe() -> Available | Unavailable:
    """Whether TensorRT-RTX builds here, and whether it runs here too. Never raises."""
    return tensorrt.probe_flavor(FLAVOR)


def compile(graph: Graph, options: CompileOptions) -> bytes:  # noqa: A001 - the protocol's name
    """Build an engine for ``options.target``. See ``builder.compile_graph``."""
    return tensorrt.compile_graph(FLAVOR, graph, options)


def compile_with_account(graph: Graph, options: CompileOptions) -> tuple[bytes, EngineAccount | None]:
    """``compile``, and what the builder logged of the engine's layers; no GPU is needed."""
    return tensorrt.compile_graph_with_account(FLAVOR, graph, options)


def load(engine: Engine, options: RunnerOptions | None = None) -> TensorRTRunner:
    """Load an engine onto this machine's GPU. See ``runner.TensorRTRunner``."""
    return TensorRTRunner(FLAVOR, engine, options)
