"""TensorRT-RTX: builds ahead of time on any x86-64 machine, with no GPU, for one or more SM versions.

All code is shared with ``backends.tensorrt``. Building is tried in every test run; running an engine has never been.

One engine serves several SM versions; ``86+89+120`` (Ampere, Ada and Blackwell RTX cards) is the default. The builder
(1.7.1) takes any mix, but refuses SM 75 (Turing) for a graph with BF16, and NVIDIA's support matrix warns that an
engine with SM 75 in it can be slower on the others; so build ``75`` apart.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from edge_effdet.artifacts import Engine, Graph
from edge_effdet.backends.base import (
    Available,
    Compiled,
    CompileOptions,
    LoadOptions,
    ProfiledRuns,
    Traits,
    Unavailable,
)
from edge_effdet.backends.tensorrt import builder as tensorrt
from edge_effdet.backends.tensorrt.library import Flavor
from edge_effdet.backends.tensorrt.runner import TensorRTRunner

TRAITS = Traits(on_cpu=False, rest="fp16", device_time=True, default_target="86+89+120")
SUFFIX = ".engine"

FLAVOR = Flavor(
    title="TensorRT-RTX",
    module="tensorrt_rtx",
    extra="tensorrt-rtx",
    install="run pip install 'edge-effdet[tensorrt-rtx]' (x86-64 only)",
    oldest=(1, 3),
    beyond=(2, 0),
    default_target=TRAITS.default_target,
    has_timing_cache=False,
    has_plugins=False,
    compiles_at_load=True,
)


def probe() -> Available | Unavailable:
    """Whether TensorRT-RTX builds here, and whether it runs here too. Never raises."""
    return tensorrt.probe_flavor(FLAVOR)


def compile(graph: Graph, options: CompileOptions) -> Compiled:  # noqa: A001 - the protocol's name
    """Build an engine for ``options.target``, with what the builder logged of its layers; no GPU is needed. See ``builder.compile_graph``."""
    return tensorrt.compile_graph(FLAVOR, graph, options)


def load(engine: Engine, options: LoadOptions) -> TensorRTRunner:
    """Load an engine onto this machine's GPU. See ``runner.TensorRTRunner``."""
    return TensorRTRunner(FLAVOR, engine, options)


def profile(
    engine: Engine, options: LoadOptions, feeds: Mapping[str, np.ndarray], runs: int
) -> ProfiledRuns | Unavailable:
    """Time an engine's layers on this machine's GPU. See ``builder.profile_flavor``."""
    return tensorrt.profile_flavor(FLAVOR, engine, options, feeds, runs)
