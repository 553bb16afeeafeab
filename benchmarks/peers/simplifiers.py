"""Tools that simplify any ONNX graph, each with its defaults: OnnxSlim, onnxsim, and onnxruntime's own optimizer.

onnxsim is no dependency of edge_effdet: ``pip install --no-deps onnxsim`` leaves onnx and onnxruntime as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from edge_effdet.errors import EdgeEffDetError

ONNXRUNTIME = "onnxruntime, extended"
"""The name says the level. Above it, onnxruntime only changes the memory layout for the processor at hand, which adds nodes."""


def run_onnxslim(source: Path, output: Path) -> None:
    """Write ``source`` as OnnxSlim simplifies it. Raises ImportError where it is not installed."""
    import onnx
    import onnxslim

    # Given paths in place of a model, OnnxSlim prints a table on stdout, where only the object of ``--json`` may stand.
    onnx.save_model(onnxslim.slim(onnx.load_model(str(source))), str(output))  # type: ignore[arg-type]


def run_onnxsim(source: Path, output: Path) -> None:
    """Write ``source`` as onnxsim simplifies it.

    Raises:
        ImportError: onnxsim is not installed.
        EdgeEffDetError: onnxsim's own check of the result failed.
    """
    import onnx
    import onnxsim

    model, passed = onnxsim.simplify(onnx.load_model(str(source)))
    if not passed:
        raise EdgeEffDetError(
            f"onnxsim's own check refuses what it made of {source.name}, so there is nothing to compare."
        )
    onnx.save_model(model, str(output))


def run_onnxruntime(source: Path, output: Path) -> None:
    """Write ``source`` as onnxruntime's optimizer leaves it at the level ``extended``, with nodes of its own domains."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(output)
    ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])


SIMPLIFIERS: Mapping[str, Callable[[Path, Path], None]] = {
    "OnnxSlim": run_onnxslim,
    "onnxsim": run_onnxsim,
    ONNXRUNTIME: run_onnxruntime,
}
