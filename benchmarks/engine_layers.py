"""Layers of a graph in TensorRT-RTX, in the parser's network and in the engine that is built from it; no GPU is needed.

python -m benchmarks.engine_layers model.onnx --target 89

Reading an engine's layers by TensorRT's inspector takes the GPU that it was built for. The builder knows them too: with
detailed profiling verbosity it logs each layer of what it built, and these lines are counted. TensorRT keeps one logger a
process, so each count is a process of its own.
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
"""Layers that compute nothing: they keep the engine's streams in step."""

NOT_READABLE = "not readable without a GPU: the builder logged no layers"


def count_layers(path: Path, target: str) -> dict[str, Any]:
    """Layers by kind, in the network and in the engine.

    Args:
        path: the ONNX file.
        target: one SM version, such as ``89``.

    Returns:
        ``network_layers``, ``network_kinds``; ``engine_layers`` (without those that only wait; None where the log does
        not tell), ``engine_waiting``, ``engine_kinds``, ``engine_bytes`` and ``version``.

    Raises:
        MissingDependency: TensorRT-RTX is not installed.
        UsageError: it does not know the target.
        GraphError: its parser refuses the graph.
        EdgeEffDetError: it could not build.
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
        raise EdgeEffDetError(f"TensorRT-RTX could not build {path} ({_last_error(messages)}); try another --target.")
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
    """Layers by kind from what the builder logged; nothing where it named no kinds."""
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
        "benchmarks", "Layers of a graph in TensorRT-RTX.", "python -m benchmarks.engine_layers model.onnx"
    )
    parser.add_argument("onnx", type=Path, help="the graph")
    parser.add_argument("--target", default="89", metavar="SM", help="one SM version (default: 89, an RTX 4090)")
    return run_verb(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
