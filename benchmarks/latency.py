"""Time graphs on this processor, find where the time goes, and measure what the processor reaches at best.

The ways that are compared take turns in one process, and each of them computes with the same number of threads.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.processes import ROOT
from edge_effdet.runtime.latency import Turns, time_in_turns

RUNS, WARM_UP_RUNS = 5, 2
"""How many runs of a turn are timed, and how many before them are not."""

MATRIX_SIDE, MATRIX_RUNS = 2048, 12

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
    """Sum up the times of ways in one row a way: the median and P90 of all its runs, and the ratios of other ways' times to its time.

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


def profile_operators(path: Path, images: np.ndarray, threads: int, work: Path, runs: int = 10) -> dict[str, float]:
    """Milliseconds that each operator takes in a run, the largest first, by onnxruntime's own profiler: medians over the runs.

    These are the operators that onnxruntime runs after its optimizations, among them its own operators and changes of the layout.

    Args:
        path: the ONNX file.
        images: the graph's input.
        threads: how many threads an operator has.
        work: an existing folder for the profiler's file.
        runs: how many runs are counted, after ``WARM_UP_RUNS`` that are not.
    """
    import onnxruntime as ort

    options = _session_options(threads)
    options.enable_profiling = True
    options.profile_file_prefix = str(work / path.stem)
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    for _ in range(WARM_UP_RUNS + runs):
        session.run(None, {session.get_inputs()[0].name: images})
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return sum_operators(events, WARM_UP_RUNS)


def sum_operators(events: list[dict[str, Any]], warm_up: int) -> dict[str, float]:
    """Milliseconds that each operator takes in a run, from the events of onnxruntime's profiler without the first ``warm_up`` runs."""
    windows = sorted((event["ts"], event["ts"] + event["dur"]) for event in events if event["name"] == "model_run")
    nodes = [event for event in events if event["cat"] == "Node" and event["name"].endswith("_kernel_time")]
    by_operator: dict[str, list[float]] = defaultdict(lambda: [0.0] * (len(windows) - warm_up))
    for number, (start, end) in enumerate(windows[warm_up:]):
        for event in nodes:
            if start <= event["ts"] <= end:
                by_operator[event["args"]["op_name"]][number] += event["dur"] / 1000
    medians = {operator: float(np.median(values)) for operator, values in by_operator.items()}
    return dict(sorted(medians.items(), key=lambda item: -item[1]))


def measure_matrix_rate(threads: int, side: int = MATRIX_SIDE, runs: int = MATRIX_RUNS) -> float:
    """GFLOP/s of the fastest of some float32 matrix products in NumPy, in a process whose libraries have this many threads."""
    limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    code = f"from benchmarks.latency import multiply; print(multiply({side}, {runs}))"
    finished = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | limits, stdout=subprocess.PIPE, text=True, check=True
    )
    return float(finished.stdout)


def multiply(side: int, runs: int) -> float:
    """GFLOP/s of the fastest of ``runs`` products of two square float32 matrices with this side."""
    random = np.random.default_rng(0)
    left, right = (random.random((side, side), np.float32) for _ in range(2))
    product = np.empty_like(left)
    best = float("inf")
    for _ in range(runs):
        started = time.perf_counter()
        np.matmul(left, right, out=product)
        best = min(best, time.perf_counter() - started)
    return 2 * side**3 / best / 1e9


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
