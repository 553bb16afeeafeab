"""Measure what the graph optimizer gives: nodes, TensorRT-RTX layers and latency.

python -m benchmarks.graph
python -m benchmarks.graph --models tests/assets/bccd_lite0.safetensors --layers --name bccd

All graphs of a model come from one network and end at the head tensors. A tool's graph is timed only where its outputs are those of the
unoptimized graph.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.graph_subjects import DENSE, KEEP, RAW, Skipped, Subject, attempt, make_graphs, read_subject
from benchmarks.latency import open_onnxruntime, open_openvino, summarize_times, time_ways
from benchmarks.machine import save_result
from benchmarks.parser import make_parser
from benchmarks.peers.simplifiers import ONNXRUNTIME
from edge_effdet.artifacts import Graph, ModelSpec
from edge_effdet.backends.base import CompileOptions
from edge_effdet.backends.tensorrt import rtx
from edge_effdet.backends.tensorrt.builder import compile_graph
from edge_effdet.backends.tensorrt.layers import layers_from_log
from edge_effdet.backends.tensorrt.library import get_log, require_module, start
from edge_effdet.benchmarking.host.machine import installed_versions
from edge_effdet.cli import Result, run_verb, table
from edge_effdet.errors import EdgeEffDetError
from edge_effdet.graph.report import count_nodes

if TYPE_CHECKING:
    import onnx

logger = logging.getLogger("edge_effdet.benchmarks.graph")

MODELS = ("tf_efficientdet_d0@512", "tf_efficientdet_lite0@320")
OPENVINO = "OpenVINO, unoptimized"
PEERS = ("onnxslim", "onnxsim", "onnxruntime", "openvino", "tensorrt-rtx")
LAYER_COUNTS = ("network_layers", "engine_layers")
WAITING = frozenset({"signal", "wait"})
"""Kinds of layers that compute nothing and only synchronise the engine's streams."""

LARGEST_ERROR = 1e-3
"""The largest error, relative to a tensor's largest value, with which a graph is timed. Rounding in another order stays well below it,
and a wrong graph is far above it."""


def count_tool_nodes(model: onnx.ModelProto) -> dict[str, Any]:
    """Count the nodes of a graph that any tool may have written.

    ``Constant`` nodes are left out: they compute nothing, and tools differ in whether a weight is one.

    Returns:
        ``nodes``; ``silu``, the pairs of nodes that are x * sigmoid(x); ``counted``, the nodes where each such pair counts as one;
        ``foreign``, the nodes outside ONNX's own domain, which only one runtime knows; and ``kinds``, the nodes by operator.
    """
    import onnx_ir as ir

    nodes = [node for node in model.graph.node if node.op_type != "Constant"]
    silu = count_nodes(ir.from_proto(model)).silu
    names = Counter(f"{node.domain}.{node.op_type}".lstrip(".").removeprefix("ai.onnx.") for node in nodes)
    return {
        "nodes": len(nodes),
        "silu": silu,
        "counted": len(nodes) - silu,
        "foreign": sum(node.domain not in ("", "ai.onnx") for node in nodes),
        "kinds": dict(names.most_common()),
    }


def compare_counts(files: Mapping[str, Path], seconds: Mapping[str, float]) -> list[dict[str, Any]]:
    """One row a graph: what ``count_tool_nodes`` counts, and the seconds that making the graph took."""
    import onnx

    return [
        {"graph": name, **count_tool_nodes(onnx.load_model(str(path))), "seconds_to_make": round(seconds[name], 2)}
        for name, path in files.items()
    ]


def compare_latency(files: Mapping[str, Path], images: np.ndarray, threads: int, rounds: int) -> list[dict[str, Any]]:
    """Time the ways to compute the head tensors.

    Args:
        files: what ``make_graphs`` gave. The file of onnxruntime's optimizer is left out, since each session applies that optimizer.
        images: uint8 [1, 3, H, W].
        threads: how many threads each way has.
        rounds: how many turns each way has.

    Returns:
        One row a way: its largest error against the unoptimized graph, its median and P90, and the time of our graphs as a share of
        its time. The row of a way that cannot run here, or has a larger error than ``LARGEST_ERROR``, has no times; its ``skipped``
        gives the reason.

    Raises:
        EdgeEffDetError: onnxruntime cannot run the unoptimized graph.
    """
    chosen = [(name, path, open_onnxruntime) for name, path in files.items() if name != ONNXRUNTIME]
    chosen.append((OPENVINO, files[RAW], open_openvino))
    opened = {name: attempt(lambda path=path, opener=opener: opener(path, threads)) for name, path, opener in chosen}
    skipped = {name: run.reason for name, run in opened.items() if isinstance(run, Skipped)}
    if RAW in skipped:
        raise EdgeEffDetError(
            f"onnxruntime cannot run the unoptimized graph ({skipped[RAW]}), so there is nothing to compare with."
        )
    ways = {name: run for name, run in opened.items() if not isinstance(run, Skipped)}
    expected = ways[RAW](images)
    errors = {name: largest_error(run(images), expected) for name, run in ways.items()}
    for name, error in errors.items():
        # An error that is not a number is neither larger nor smaller than the limit.
        if not error <= LARGEST_ERROR:
            skipped[name] = f"its outputs differ from the unoptimized graph's by {error:.2g}"
    timed = {name: (lambda run=run: run(images)) for name, run in ways.items() if name not in skipped}
    ours = [name for name in (KEEP, DENSE) if name in timed]
    references = {f"{name.removeprefix('ours, ')}_over_this": name for name in ours}
    rows = summarize_times(time_ways(timed, rounds), references)
    # JSON has no infinity.
    known = {name: error for name, error in errors.items() if np.isfinite(error)}
    return [
        *({**row, "largest_relative_error": known[row["way"]]} for row in rows),
        *({"way": way, "skipped": why, "largest_relative_error": known.get(way)} for way, why in skipped.items()),
    ]


def largest_error(found: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> float:
    """The largest error of any tensor, relative to the largest value of that tensor; infinite where a tensor is missing."""
    if set(found) != set(expected) or any(found[name].shape != values.shape for name, values in expected.items()):
        return float("inf")
    errors = [
        np.abs(found[name] - values).max() / max(np.abs(values).max(), np.finfo(np.float32).tiny)
        for name, values in expected.items()
    ]
    return float(np.max(errors))


def compare_layers(files: Mapping[str, Path], spec: ModelSpec, target: str) -> list[dict[str, Any]]:
    """One row for the unoptimized graph and each of ours: what ``count_layers`` counts, or why it cannot count."""
    rows = []
    for name in (name for name in (RAW, KEEP, DENSE) if name in files):
        counted = attempt(lambda name=name: count_layers(files[name], spec, target))
        rows.append({"graph": name, **({"skipped": counted.reason} if isinstance(counted, Skipped) else counted)})
    return rows


def count_layers(path: Path, spec: ModelSpec, target: str) -> dict[str, Any]:
    """Count the layers of a graph in TensorRT-RTX's network and in the engine that it builds, without a GPU.

    TensorRT's inspector reads an engine only on the GPU that it was built for, but the builder logs its layers.

    Args:
        path: the ONNX file.
        spec: of its model.
        target: one SM version, such as ``89``.

    Returns:
        ``network_layers`` and ``network_kinds``; ``engine_layers`` without those of ``WAITING``, None where the log names no layers;
        ``engine_kinds`` and ``version``.

    Raises:
        BackendUnavailable: TensorRT-RTX is not installed.
        UsageError: it does not know the target.
        GraphError: it refuses the graph.
    """
    trt = require_module(rtx.FLAVOR)
    graph = Graph(path, spec, "optimized", "fp32", {}, {}, {}, "")
    compile_graph(rtx.FLAVOR, graph, CompileOptions(target=target))
    log = get_log(trt)
    engine = Counter(layer.kind for layer in layers_from_log([text for _, text in log.messages]))
    network = start(rtx.FLAVOR, log, trt.Builder).create_network(0)
    parser = trt.OnnxParser(network, log)
    assert parser.parse_from_file(str(path))
    kinds = Counter(network.get_layer(index).type.name.lower() for index in range(network.num_layers))
    return {
        "target": target,
        "version": trt.__version__,
        "network_layers": network.num_layers,
        "network_kinds": dict(kinds),
        "engine_layers": sum(count for kind, count in engine.items() if kind not in WAITING) or None,
        "engine_kinds": dict(engine),
    }


def measure_subject(subject: Subject, arguments: argparse.Namespace, work: Path) -> dict[str, Any]:
    """All comparisons of one model that are not skipped, by the name of the part."""
    logger.info("%s: exporting", subject.title)
    files, seconds, skipped = make_graphs(subject, work)
    result: dict[str, Any] = {
        "model": subject.spec.name,
        "image_size": list(subject.spec.image_size),
        "nodes": compare_counts(files, seconds),
        "skipped": skipped,
    }
    images = np.random.default_rng(0).integers(0, 256, (1, 3, *subject.spec.image_size), np.uint8)
    if arguments.layers:
        logger.info("%s: building engines", subject.title)
        result["layers"] = compare_layers(files, subject.spec, arguments.target)
    result["latency"] = compare_latency(files, images, arguments.threads, arguments.rounds)
    return result


def describe_model(result: Mapping[str, Any]) -> str:
    """One row a graph: its nodes, its layers in TensorRT-RTX, and the times of the head tensors of one picture."""
    nodes = {row["graph"]: row for row in result["nodes"]}
    layers = {row["graph"]: row for row in result.get("layers", ())}
    times = {row["way"]: row for row in result["latency"]}
    ratios = [key for row in result["latency"] for key in row if key.endswith("_over_this")]
    header = ("graph", "nodes, SiLU as one", "TensorRT-RTX network", "engine", "median", "P90")
    shown: list[tuple[str, ...]] = [
        (*header, *(key.replace("_over_", "/") for key in dict.fromkeys(ratios)), "largest error")
    ]
    for name in dict.fromkeys([*nodes, *times]):
        cells = [nodes.get(name, {}).get("counted"), *(layers.get(name, {}).get(key) for key in LAYER_COUNTS)]
        row = times.get(name, {})
        cells += [f"{row[key]:.1f} ms" if key in row else None for key in ("median_ms", "p90_ms")]
        cells += [f"{row[key]:.2f}" if key in row else None for key in dict.fromkeys(ratios)]
        error = row.get("largest_relative_error")
        cells.append(None if error is None else f"{error:.1e}")
        shown.append((name, *("-" if cell is None else str(cell) for cell in cells)))
    reasons = dict(result["skipped"])
    reasons |= {name: row["skipped"] for rows in (layers, times) for name, row in rows.items() if "skipped" in row}
    height, width = result["image_size"]
    lines = [f"{result['model']}, {height}x{width} px, ending at the head tensors", "", table(shown)]
    return "\n".join([*lines, *(f"{name} was left out: {reason}" for name, reason in reasons.items())])


def _run(arguments: argparse.Namespace) -> Result:
    results = []
    for subject in [read_subject(text) for text in arguments.models]:
        with tempfile.TemporaryDirectory(prefix="edge-effdet-") as folder:
            results.append(measure_subject(subject, arguments, Path(folder)))
    result = {
        "threads": arguments.threads,
        "rounds": arguments.rounds,
        "weights": "random, seed 0, or the checkpoint that a model names",
        "versions": installed_versions(PEERS),
        "models": results,
    }
    path = save_result("graph", result, arguments.name)
    return Result("\n\n".join([*map(describe_model, results), str(path)]), result)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        "graph",
        "Measure what the graph optimizer gives.",
        "--layers",
        models=MODELS,
        rounds=8,
        threads=True,
        name="graph",
    )
    parser.add_argument(
        "--layers", action="store_true", help="count the layers in TensorRT-RTX too, for which engines are built"
    )
    parser.add_argument(
        "--target", default="89", metavar="SM", help="the SM version of the engines (default: 89, an RTX 4090)"
    )
    return run_verb(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
