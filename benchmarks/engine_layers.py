"""Count the layers of a graph in TensorRT-RTX, in the parser's network and in the engine that is built from it, without a GPU.

python -m benchmarks.engine_layers model.onnx --target 89

TensorRT's inspector reads the layers of an engine only on the GPU that it was built for. But with detailed profiling verbosity the
builder logs each layer of the engine, and these lines are counted. TensorRT keeps one logger a process, so each count runs in a process
of its own.
"""

from __future__ import annotations

import argparse
import importlib
import re
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edge_effdet.cli import Result, make_parser, run_verb, table
from edge_effdet.errors import EdgeEffDetError, GraphError, MissingDependency, UsageError

WAITING = frozenset({"signal", "wait"})
"""Kinds of layers that compute nothing and only synchronise the engine's streams."""

NOT_READABLE = "not readable without a GPU: the builder logged no layers"


def count_layers(path: Path, target: str) -> dict[str, Any]:
    """Count the layers by kind, in the network and in the engine.

    Args:
        path: the ONNX file.
        target: one SM version, such as ``89``.

    Returns:
        ``network_layers`` and ``network_kinds``; ``engine_layers`` without the layers of ``WAITING``, None where the log names no
        layers; ``engine_waiting``, ``engine_kinds``, ``engine_bytes`` and ``version``.

    Raises:
        MissingDependency: TensorRT-RTX is not installed.
        UsageError: TensorRT-RTX does not know the target.
        GraphError: the parser refuses the graph.
        EdgeEffDetError: the engine could not be built.
    """
    try:
        # NVIDIA ships it without type information.
        trt: Any = importlib.import_module("tensorrt_rtx")
    except ImportError as error:
        raise MissingDependency("tensorrt_rtx", "tensorrt-rtx", "to count its layers") from error
    if not hasattr(trt.ComputeCapability, f"SM{target}"):
        raise UsageError(f"TensorRT-RTX {trt.__version__} does not know the target {target!r}; 89 is an RTX 4090.")
    messages: list[tuple[str, str]] = []
    log = _make_logger(trt, messages)
    builder = trt.Builder(log)
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(path)) or not network.num_outputs:
        raise GraphError(f"TensorRT-RTX cannot read {path} ({_last_error(messages)}); export the graph again.")
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{target}"), 0)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise EdgeEffDetError(f"TensorRT-RTX could not build {path} ({_last_error(messages)}); try another `target`.")
    network_kinds = Counter(network.get_layer(index).type.name.lower() for index in range(network.num_layers))
    engine_kinds = read_engine_layers([text for _, text in messages])
    return {
        "target": target,
        "version": trt.__version__,
        "network_layers": network.num_layers,
        "network_kinds": dict(network_kinds),
        "engine_layers": sum(count for kind, count in engine_kinds.items() if kind not in WAITING) or None,
        "engine_waiting": sum(engine_kinds[kind] for kind in WAITING),
        "engine_kinds": dict(engine_kinds),
        "engine_bytes": engine.nbytes,
    }


def read_engine_layers(messages: Sequence[str]) -> Counter[str]:
    """The layers by kind from the builder's log; empty where it names none."""
    listed = [text for text in messages if text.startswith("Layers:")]
    return Counter(re.findall(r"^Name: .*?, LayerType: (\w+)", "\n".join(listed), re.MULTILINE))


def _make_logger(trt: Any, messages: list[tuple[str, str]]) -> Any:
    class Log(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            messages.append((severity.name, message))

    return Log()


def _last_error(messages: Sequence[tuple[str, str]]) -> str:
    errors = [text for severity, text in messages if severity in ("ERROR", "INTERNAL_ERROR")]
    return " ".join(errors[-1].split()) if errors else "it gave no reason"


def _run(arguments: argparse.Namespace) -> Result:
    counted = count_layers(arguments.onnx, arguments.target)
    engine = counted["engine_layers"] or NOT_READABLE
    rows = [("layers in", "all", "by kind")]
    rows += [
        (place, str(total), ", ".join(f"{kind} {count}" for kind, count in Counter(counted[key]).most_common()))
        for place, total, key in (
            ("network", counted["network_layers"], "network_kinds"),
            ("engine", engine, "engine_kinds"),
        )
    ]
    return Result(table(rows), counted)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        "benchmarks", "Count the layers of a graph in TensorRT-RTX.", "python -m benchmarks.engine_layers model.onnx"
    )
    parser.add_argument("onnx", type=Path, help="the graph")
    parser.add_argument(
        "--target", default="89", metavar="SM", help="the SM version to build for (default: 89, an RTX 4090)"
    )
    return run_verb(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
