"""Time graphs on this processor.

The ways that are compared take turns in one process, and each of them computes with the same number of threads.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edge_effdet.runtime.latency import Turns, time_in_turns

RUNS, WARM_UP_RUNS = 5, 2
"""How many runs of a turn are timed, and how many before them are not."""

Run = Callable[[np.ndarray], dict[str, np.ndarray]]
"""Takes images, uint8 [1, 3, H, W], and gives the graph's outputs by name."""


def time_ways(
    ways: Mapping[str, Callable[[], object]], rounds: int, runs: int = RUNS, warm_up: int = WARM_UP_RUNS
) -> dict[str, np.ndarray]:
    """Time ways in turns, as ``edge_effdet.runtime.latency.time_in_turns`` does.

    Args:
        ways: what is timed, by name.
        rounds: how many turns each way has.
        runs: how many runs of a turn are timed.
        warm_up: how many runs before them are not timed.

    Returns:
        Milliseconds of each way, float64 [rounds, runs].
    """
    times = time_in_turns(list(ways.values()), Turns(rounds=rounds, runs=runs, warm_up=warm_up), "timing")
    return {name: 1000 * np.stack(own) for name, own in zip(ways, times, strict=True)}


def summarize_times(times: Mapping[str, np.ndarray], references: Mapping[str, str]) -> list[dict[str, Any]]:
    """Sum up the times of ways in one row a way: the median, P90 and P99 of all its runs, and the ratios of other ways' times to its time.

    Args:
        times: what ``time_ways`` gave.
        references: from the key of a ratio in the row to the way whose time is divided by the row's. A ratio is that of the medians
            of the two ways' turns in one round, and the median over the rounds is given, so that a phase in which the machine is slow
            falls on both.
    """
    turns = {name: np.median(own, axis=1) for name, own in times.items()}
    return [
        {
            "way": name,
            "median_ms": float(np.median(own)),
            "p90_ms": float(np.percentile(own, 90)),
            "p99_ms": float(np.percentile(own, 99)),
            **{key: float(np.median(turns[way] / turns[name])) for key, way in references.items()},
            "milliseconds": np.round(own, 3).tolist(),
        }
        for name, own in times.items()
    ]


def open_onnxruntime(path: Path, threads: int) -> Run:
    """Open a graph in onnxruntime on the CPU, with all of its optimizations and this many threads."""
    import onnxruntime as ort

    session = ort.InferenceSession(str(path), _session_options(threads), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    (taken,) = session.get_inputs()

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, {taken.name: images}), strict=True))  # type: ignore[arg-type]

    return run


def open_openvino(path: Path, threads: int, precision: str | None = "f32") -> Run:
    """Open a graph in OpenVINO on the CPU, tuned for latency.

    Args:
        path: the ONNX file.
        threads: how many threads a run has.
        precision: the type that it computes in; None for OpenVINO's choice, which is BF16 on processors that have it.

    Raises:
        ImportError: OpenVINO is not installed.
    """
    import onnx
    import openvino

    core = openvino.Core()
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    hints |= {"INFERENCE_PRECISION_HINT": precision} if precision else {}
    model = core.compile_model(core.read_model(str(path)), "CPU", hints)
    request, taken = model.create_infer_request(), model.inputs[0].get_any_name()
    # OpenVINO may call an output by the name of an earlier node. The order is that of the file.
    names = [output.name for output in onnx.load_model(str(path)).graph.output]

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        results: Any = request.infer({taken: images})
        # The request reuses its memory, so the results are copied. onnxruntime gives new arrays at each run too.
        return {name: results[position].copy() for position, name in enumerate(names)}

    return run


def positive(text: str) -> int:
    """The type of an argument that is a whole number of 1 or more, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def _session_options(threads: int) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    return options
