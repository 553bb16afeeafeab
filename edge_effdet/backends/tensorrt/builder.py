"""TensorRT 10.3 to 11.x, and the building that TensorRT-RTX shares: the two differ in a ``Flavor``.

The network is strongly typed and its precision lives in the graph, so no builder flag sets one. Building and its errors
are tried with TensorRT-RTX in every test run; TensorRT itself has never been, for it needs a GPU. ``runner`` runs
what is built here.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from edge_effdet.artifacts import Engine, Graph, atomic_output
from edge_effdet.backends.base import (
    Available,
    Compiled,
    CompileOptions,
    LoadOptions,
    ProfiledRuns,
    Traits,
    Unavailable,
)
from edge_effdet.backends.engine_account import EngineAccount
from edge_effdet.backends.tensorrt import cuda
from edge_effdet.backends.tensorrt.layer_times import join_layers
from edge_effdet.backends.tensorrt.layers import convolution_precisions, layers_from_json, layers_from_log
from edge_effdet.backends.tensorrt.library import (
    Flavor,
    find_module,
    get_log,
    load_plugins,
    on_one_line,
    require_module,
    start,
)
from edge_effdet.backends.tensorrt.runner import TensorRTRunner
from edge_effdet.errors import EdgeEffDetError, GraphError, InputError, UsageError

TRAITS = Traits(on_cpu=False, automatic=1, rest="fp16", device_time=True, suppresses=True)
SUFFIX = ".engine"

logger = logging.getLogger("edge_effdet.backends.tensorrt")


FLAVOR = Flavor(
    title="TensorRT",
    module="tensorrt",
    extra="tensorrt",
    install=(
        "on a Jetson it comes with JetPack (make the virtual environment with --system-site-packages); "
        "elsewhere run pip install 'edge-effdet[tensorrt]'"
    ),
    oldest=(10, 3),
    beyond=(12, 0),
    default_target="",
    has_timing_cache=True,
    has_plugins=True,
    compiles_at_load=False,
)


def probe() -> Available | Unavailable:
    """Whether TensorRT and a GPU are here. Never raises."""
    return probe_flavor(FLAVOR)


def compile(graph: Graph, options: CompileOptions) -> Compiled:  # noqa: A001 - the protocol's name
    """Build an engine for this machine's GPU. See ``compile_graph``."""
    return compile_graph(FLAVOR, graph, options)


def load(engine: Engine, options: LoadOptions) -> TensorRTRunner:
    """Load an engine onto this machine's GPU. See ``TensorRTRunner``."""
    return TensorRTRunner(FLAVOR, engine, options)


def profile(
    engine: Engine, options: LoadOptions, feeds: Mapping[str, np.ndarray], runs: int
) -> ProfiledRuns | Unavailable:
    """Time an engine's layers on this machine's GPU. See ``profile_flavor``."""
    return profile_flavor(FLAVOR, engine, options, feeds, runs)


def probe_flavor(flavor: Flavor) -> Available | Unavailable:
    """Whether a flavor works here. One that builds for other machines needs no GPU: then ``runs_here`` is False."""
    trt = find_module(flavor)
    if isinstance(trt, Unavailable):
        return trt
    gpu = cuda.probe_gpu()
    if not flavor.default_target:
        return gpu if isinstance(gpu, Unavailable) else Available(trt.__version__, str(gpu))
    if isinstance(gpu, Unavailable):
        return Available(trt.__version__, f"builds for other machines; {gpu.reason}", runs_here=False)
    if gpu.sm not in _known_targets(trt):
        return Available(
            trt.__version__, f"builds for other machines; {gpu} is not an RTX GPU it knows", runs_here=False
        )
    return Available(trt.__version__, str(gpu))


def profile_flavor(
    flavor: Flavor, engine: Engine, options: LoadOptions, feeds: Mapping[str, np.ndarray], runs: int
) -> ProfiledRuns | Unavailable:
    """Time an engine's layers with TensorRT's own profiler.

    Raises:
        BackendUnavailable: the package, PyCUDA or the GPU is missing.
        EngineError: the engine does not load or run.
    """
    with TensorRTRunner(flavor, engine, replace(options, cuda_graphs=False, timed=False)) as runner:
        told, times = runner.profile(feeds, runs)
    layers = join_layers(times, told)
    if not layers:
        return Unavailable(f"{flavor.title} told its profiler of no layer", "build the engine again")
    return ProfiledRuns(f"{flavor.title}'s profiler {require_module(flavor).__version__}", layers)


def compile_graph(flavor: Flavor, graph: Graph, options: CompileOptions) -> Compiled:
    """Build a serialized engine, byte for byte as TensorRT made it, with what TensorRT tells of its layers.

    Raises:
        UsageError: the target, the batch sizes or the timing cache do not fit this flavor.
        GraphError: the ONNX parser refuses the graph; the message names its first error.
        InputError: the timing cache is damaged or belongs to another machine.
        BackendUnavailable: the package or what it needs is missing.
        EdgeEffDetError: the builder gave up; the message holds its last error.
    """
    trt = require_module(flavor)
    targets = parse_target(flavor, trt, options.target)
    if options.timing_cache and not flavor.has_timing_cache:
        raise UsageError(f"{flavor.title} measures no tactics and keeps no timing cache; leave the timing cache out.")
    if not graph.path.is_file():
        raise GraphError(f"There is no graph at {graph.path}; export one with python -m edge_effdet.export.")
    log = get_log(trt)
    log.messages.clear()
    builder = start(flavor, log, trt.Builder)
    load_plugins(flavor, trt, log)
    network = builder.create_network(_strongly_typed(trt))
    # The parser owns weights that the network refers to, so it lives until the build is done.
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(graph.path)):
        raise GraphError(_describe_parser_error(flavor, graph.path, parser))
    # Bytes that happen to be a valid protobuf of unknown fields, an empty file among them, parse without an error.
    if network.num_outputs == 0:
        raise GraphError(f"{graph.path} is not an ONNX graph with outputs; export the graph again.")
    config = builder.create_builder_config()
    # Without it TensorRT tells no more of a layer than its name. An engine differs in one byte.
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if options.workspace_mib > 0:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    _set_targets(flavor, trt, config, targets)
    _add_profiles(builder, network, config, options.batch_sizes, log)
    cache = _attach_timing_cache(config, options.timing_cache, log) if options.timing_cache else None
    log.messages.clear()
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise _explain_failed_build(flavor, graph.path, targets, log.last_error())
    if options.timing_cache and cache is not None:
        with atomic_output(options.timing_cache) as temporary:
            temporary.write_bytes(bytes(cache.serialize()))
    content = bytes(serialized)
    # The log still holds what the builder said of this engine.
    return Compiled(content, _read_account(flavor, trt, log, content))


def parse_target(flavor: Flavor, trt: Any, target: str) -> tuple[str, ...]:
    """The SM versions that a target names, ``86+89+120`` as ("86", "89", "120"); empty for an engine of this GPU.

    Raises:
        UsageError: a version that the bindings do not know, or a target where engines are built on their own GPU.
    """
    if not flavor.default_target:
        if target:
            raise UsageError(
                f"{flavor.title} builds for the GPU of this machine only, so the target {target!r} makes no sense; "
                "leave it out and build on the device."
            )
        return ()
    targets = tuple(dict.fromkeys(part.strip() for part in (target or flavor.default_target).split("+")))
    known = _known_targets(trt)
    unknown = [part for part in targets if part not in known]
    if unknown:
        raise UsageError(
            f"{flavor.title} {trt.__version__} does not know the target {'+'.join(unknown)!r}; it knows the SM "
            f"versions {', '.join(known)}, joined as in {flavor.default_target}."
        )
    if "75" in targets and len(targets) > 1:
        logger.warning("SM 75 in one engine with others can slow the others down, as NVIDIA warns; build 75 apart")
    return targets


def _strongly_typed(trt: Any) -> int:
    # TensorRT 10 needs the flag; from 11 on there is no other kind of network, and the flag may go.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _known_targets(trt: Any) -> tuple[str, ...]:
    return tuple(name[2:] for name in trt.ComputeCapability.__members__ if name.startswith("SM"))


def _set_targets(flavor: Flavor, trt: Any, config: Any, targets: tuple[str, ...]) -> None:
    if not targets:
        return
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        if not config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{target}"), index):
            raise UsageError(f"{flavor.title} refuses SM {target} in {'+'.join(targets)}; build it apart.")


def _add_profiles(builder: Any, network: Any, config: Any, batch_sizes: tuple[int, ...], log: Any) -> None:
    """Give the ranges of a dynamic batch axis; a graph whose inputs are all static needs none."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    dynamic = {tensor.name: tuple(tensor.shape) for tensor in inputs if -1 in tuple(tensor.shape)}
    if not dynamic:
        return
    for name, shape in dynamic.items():
        if -1 in shape[1:]:
            raise GraphError(
                f"The input {name} is {list(shape)}, and only its first axis, the batch, may be dynamic; "
                "export the graph with a fixed image size."
            )
    smaller = 0
    for tuned in batch_sizes:
        profile = builder.create_optimization_profile()
        for name, shape in dynamic.items():
            profile.set_shape(name, *((batch, *shape[1:]) for batch in (smaller + 1, tuned, tuned)))
        if config.add_optimization_profile(profile) < 0:
            raise GraphError(f"A batch of {tuned} does not fit the graph ({log.last_error()}); export it again.")
        smaller = tuned


def _attach_timing_cache(config: Any, path: Path, log: Any) -> Any:
    """Read the timing cache, or start an empty one. Raises InputError where TensorRT cannot use the file."""
    try:
        content = path.read_bytes() if path.is_file() else b""
    except OSError as error:
        raise InputError(f"Cannot read the timing cache {path}: {error.strerror}; choose another file.") from error
    log.messages.clear()
    try:
        cache = config.create_timing_cache(content)
        usable = cache is not None and config.set_timing_cache(cache, ignore_mismatch=False)
    except (TypeError, RuntimeError):
        cache, usable = None, False
    # A damaged file gives an empty cache and a few log lines, and no other sign.
    if not usable or log.errors():
        raise InputError(
            f"The timing cache {path} is damaged or was made by another version or GPU ({log.last_error()}); delete it "
            "and build again."
        )
    return cache


def _read_account(flavor: Flavor, trt: Any, log: Any, content: bytes) -> EngineAccount | None:
    """From the builder's log, or from the engine itself where it belongs to this machine's GPU."""
    source = "builder log"
    precisions = convolution_precisions(layers_from_log([text for _, text in log.messages.copy()]))
    if not precisions and not flavor.default_target:
        source = "engine inspector"
        precisions = convolution_precisions(layers_from_json(_inspect(flavor, trt, log, content)))
    return EngineAccount(f"{flavor.title}'s {source} {trt.__version__}", precisions) if precisions else None


def _inspect(flavor: Flavor, trt: Any, log: Any, content: bytes) -> str:
    """JSON of an engine's layers; of none where the runtime does not read back what was built."""
    runtime = start(flavor, log, trt.Runtime)
    engine = runtime.deserialize_cuda_engine(content)
    if engine is None:
        return "{}"
    return str(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))


def _describe_parser_error(flavor: Flavor, path: Path, parser: Any) -> str:
    if not parser.num_errors:
        return f"{flavor.title} cannot read {path} and gave no reason; export the graph again."
    error = parser.get_error(0)
    # For an operator that it lacks the parser's description is often just "false"; the code says more.
    reason = f"{error.code().name}: {on_one_line(error.desc())}"
    if error.node() < 0:
        return f"{flavor.title} cannot read {path} ({reason}); export the graph again."
    return (
        f"{flavor.title} does not take node {error.node()} of {path.name}, {error.node_operator()} "
        f"{error.node_name()!r} ({reason}); export the graph again, or build it for another backend."
    )


def _explain_failed_build(flavor: Flavor, path: Path, targets: tuple[str, ...], reason: str) -> EdgeEffDetError:
    refused = re.search(r"\bsm_?(\d+)", reason, re.IGNORECASE)
    if refused and refused[1] in targets and len(targets) > 1:
        return UsageError(
            f"{flavor.title} cannot build {path.name} for {'+'.join(targets)} in one engine ({reason}); leave SM "
            f"{refused[1]} out, and build {refused[1]} apart."
        )
    return EdgeEffDetError(
        f"{flavor.title} could not build an engine from {path.name} ({reason}); change that part of the graph, or "
        "build it for another backend."
    )
