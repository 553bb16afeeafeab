"""See that an engine finds on this machine what it found where it was proven."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from edge_effdet.artifacts import Engine, file_sha256
from edge_effdet.backends.base import RUN_LIMIT, LoadOptions, load_runner, require
from edge_effdet.errors import MissingDependency, UsageError
from edge_effdet.runtime.golden import Check, check_engine, decode_pictures, draw_pictures, read_golden
from edge_effdet.runtime.preprocess import images_to_batch

if TYPE_CHECKING:
    from edge_effdet.artifacts import Graph
    from edge_effdet.quant.layers import LayerComparison

logger = logging.getLogger("edge_effdet.verify")


def verify_engine(engine: Engine) -> Check | None:
    """Run an engine's golden check on this machine; None where it carries no golden pictures.

    Raises:
        BackendUnavailable: its backend does not work here.
        EngineError: it does not load, or its golden pictures are damaged.
    """
    golden = read_golden(engine)
    if golden is None:
        return None
    require(engine.backend)
    # It may be somebody else's engine, and hang.
    with load_runner(engine, LoadOptions(run_limit=RUN_LIMIT)) as runner:
        return check_engine(runner, engine, golden)


def find_graph(engine: Engine, sha256: str | None) -> Graph | None:
    """The graph with this hash beside the engine, where ``build_engine`` leaves it: the engine's file, or one in ``graphs``."""
    from edge_effdet.graph.model import load_graph

    if sha256 is None:
        return None
    folder = engine.path.parent
    for path in (engine.path, *sorted((folder / "graphs").glob("*.onnx")), *sorted(folder.glob("*.onnx"))):
        if path.suffix == ".onnx" and file_sha256(path) == sha256:
            return load_graph(path)
    return None


def find_compiled_graph(engine: Engine) -> Graph | None:
    """The graph that an engine was compiled from, beside it; where suppression is inside, the one before it: its own holds a plugin that only
    TensorRT knows."""
    record = engine.require_record()
    return find_graph(engine, record.parents.get("graph" if record.nms == "efficientnms" else "compiled_graph"))


def compare_engine_layers(engine: Engine, against: str | None = None, reference: Path | None = None) -> LayerComparison:
    """Compare the engine's layers on its golden pictures, or on drawn ones, with its graph's and with the FP32 graph's.

    Args:
        engine: built by ``build_engine``, with its folder ``graphs`` beside it.
        against: another backend to compare with.
        reference: the FP32 graph; None to find it beside the engine.

    Raises:
        UsageError: the graph that the engine was compiled from is not beside it.
        BackendUnavailable: a backend cannot run here.
        MissingDependency: the packages that read graphs are not installed.
    """
    try:
        from edge_effdet.graph.model import load_graph
        from edge_effdet.quant.layers import compare_layers
    except ModuleNotFoundError as error:
        raise MissingDependency("onnx", "export", "to compare layers") from error

    graph = find_compiled_graph(engine)
    if graph is None:
        raise UsageError(
            f"The graph that {engine.path} was compiled from is not beside it, so its layers cannot be looked at; copy the folder "
            "graphs of the build along."
        )
    if reference is not None:
        source = load_graph(reference)
    elif graph.precision == "fp32":
        source = graph
    else:
        source = find_graph(engine, graph.parents.get("graph"))
        if source is None:
            logger.warning(
                "the FP32 graph is not beside %s, so nothing is said about what rounding costs; give `reference`",
                engine.path,
            )
    golden = read_golden(engine)
    images = decode_pictures(engine, golden) if golden is not None else draw_pictures(engine.spec.image_size, 3)
    return compare_layers(graph, engine.backend, [images_to_batch([image]) for image in images], source, against)
