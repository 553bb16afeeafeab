"""How long a graph takes on this processor, where the time goes, and what the processor could do at best.

What is compared takes turns in one process, and each way computes with the same number of threads.
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

from edge_effdet.cli import progress

RUNS, WARM_UP_RUNS = 5, 2
PAUSE_SECONDS = 0.05
"""Before a turn: a library's threads go on spinning after a run and would slow the next way down."""

MATRIX_SIDE, MATRIX_RUNS = 2048, 12
ROOT = Path(__file__).resolve().parents[1]

Run = Callable[[np.ndarray], dict[str, np.ndarray]]
"""From images, uint8 [1, 3, H, W], to the graph's outputs by name."""


def time_in_turns(ways: Mapping[str, Callable[[], object]], rounds: int, runs: int = RUNS) -> dict[str, np.ndarray]:
    """Milliseconds of each way, float64 [rounds, runs].

    A turn is a pause, two runs that are not counted and ``runs`` that are. Every other round goes in the other order.
    """
    turns = [name for number in range(rounds) for name in list(ways)[:: -1 if number % 2 else 1]]
    times: dict[str, list[list[float]]] = {name: [] for name in ways}
    for name in progress(turns, len(turns), "timing"):
        time.sleep(PAUSE_SECONDS)
        own = []
        for run in range(WARM_UP_RUNS + runs):
            started = time.perf_counter()
            ways[name]()
            if run >= WARM_UP_RUNS:
                own.append(1000 * (time.perf_counter() - started))
        times[name].append(own)
    return {name: np.array(own) for name, own in times.items()}


def summarize_times(times: Mapping[str, np.ndarray], references: Mapping[str, str]) -> list[dict[str, Any]]:
    """One row a way: median and P90 of all its runs, and the time of some ways as a share of this one's.

    Args:
        times: of ``time_in_turns``.
        references: key of the row's ratio to the way that it is of. A ratio is taken of the medians of two turns of one
            round, and the median over the rounds is given: what slows the machine for a while falls on both.
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
    """A graph in onnxruntime on the CPU, with all of its optimizations."""
    import onnxruntime as ort

    session = ort.InferenceSession(str(path), _session_options(threads), providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    (taken,) = session.get_inputs()

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, {taken.name: images}), strict=True))  # type: ignore[arg-type]

    return run


def open_openvino(path: Path, threads: int, precision: str | None = "f32") -> Run:
    """A graph in OpenVINO on the CPU, tuned for latency. Raises ImportError where it is not installed.

    Args:
        path: the graph.
        threads: of one run.
        precision: that it computes in; None for OpenVINO's choice, which is BF16 on processors that have it.
    """
    import onnx
    import openvino

    core = openvino.Core()
    hints = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": threads}
    hints |= {"INFERENCE_PRECISION_HINT": precision} if precision else {}
    model = core.compile_model(core.read_model(str(path)), "CPU", hints)
    request, taken = model.create_infer_request(), model.inputs[0].get_any_name()
    # Its own name of an output may be that of a node before it; the order is the file's.
    names = [output.name for output in onnx.load_model(str(path)).graph.output]

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        results: Any = request.infer({taken: images})
        # The request reuses its memory; onnxruntime's results, too, are new arrays at each run.
        return {name: results[position].copy() for position, name in enumerate(names)}

    return run


def profile_operators(path: Path, images: np.ndarray, threads: int, work: Path, runs: int = 10) -> dict[str, float]:
    """Milliseconds of a run by operator, the largest first, by onnxruntime's own profiler: medians over the runs.

    The operators are those that onnxruntime runs after its optimizations, its own ones and layout changes among them.

    Args:
        path: the graph.
        images: its input.
        threads: of one operator.
        work: an existing folder for the profiler's file.
        runs: how many count, after two that do not.
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
    """From the events of onnxruntime's profiler to milliseconds of a run by operator; the first runs do not count."""
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
    """GFLOP/s of the best of some float32 matrix products in NumPy, in a process whose libraries take ``threads``."""
    limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    code = f"from benchmarks.latency import multiply; print(multiply({side}, {runs}))"
    finished = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=os.environ | limits, stdout=subprocess.PIPE, text=True, check=True
    )
    return float(finished.stdout)


def multiply(side: int, runs: int) -> float:
    """GFLOP/s of the best of ``runs`` products of two square matrices."""
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
    """For argparse: a whole number of 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of 1 or more")
    return int(text)


def _session_options(threads: int) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    return options
