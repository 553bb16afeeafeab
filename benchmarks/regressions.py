"""How often a comparison with a baseline is right: slowdowns are planted, and the share of the runs that call them a regression is counted.

python -m benchmarks.regressions --engine engines/bccd.fp32.onnx

A planted slowdown holds each run of the network up by a share of its own time. Each trial is one measurement of ``benchmark --quick`` with
one image at a time, compared with one baseline of the unchanged engine by its figures, as from its report; with ``--paired`` the unchanged engine
runs in turns with each subject, as where it is still at its place.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.latency import positive
from benchmarks.machine import save_result
from benchmarks.parser import make_parser
from edge_effdet.artifacts import Engine, Graph, load_engine
from edge_effdet.backends import base
from edge_effdet.backends.base import Available, Compiled, CompileOptions, LoadOptions, Runner, Unavailable
from edge_effdet.benchmarking.baseline import BEFORE, compare_rows
from edge_effdet.benchmarking.host.sensors import Sensors
from edge_effdet.benchmarking.measure import open_lanes, row_of, time_lanes
from edge_effdet.benchmarking.options import EFFORTS, BenchmarkConfig
from edge_effdet.benchmarking.record import Row
from edge_effdet.cli import Result, progress, run_verb, table
from edge_effdet.runtime.golden import draw_pictures, encode_picture

BOUND = 5.0
"""Per cent: the default of ``benchmark``."""

SLOWED = " slowed"


class HeldUp(Runner):
    """A runner each of whose runs takes longer by a share of its own time."""

    def __init__(self, runner: Runner, share: float) -> None:
        self._runner, self._share = runner, share
        self.inputs, self.outputs = runner.inputs, runner.outputs
        self.concurrent, self.arithmetic = runner.concurrent, runner.arithmetic

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        started = time.perf_counter()
        found = self._runner.run(feeds)
        until = time.perf_counter() + self._share * (time.perf_counter() - started)
        while time.perf_counter() < until:
            pass
        return found

    def close(self) -> None:
        self._runner.close()


class SlowBackend:
    """A backend that holds up the engines whose files' names say so: ``…slowed10.onnx`` by 10 per cent."""

    def __init__(self, name: str) -> None:
        self._own = base.get_backend(name)
        self.TRAITS, self.SUFFIX = self._own.TRAITS, self._own.SUFFIX

    def probe(self) -> Available | Unavailable:
        return self._own.probe()

    def compile(self, graph: Graph, options: CompileOptions) -> Compiled:
        return self._own.compile(graph, options)

    def load(self, engine: Engine, options: LoadOptions) -> Runner:
        runner = self._own.load(engine, options)
        _, _, share = engine.spec.name.partition(SLOWED)
        return HeldUp(runner, float(share) / 100) if share else runner


def hold_up() -> None:
    """Put ``SlowBackend`` in place of the backends on the CPU, in the process of an engine."""
    for name in ("onnxruntime", "openvino"):
        base.BACKENDS[name] = SlowBackend(name)  # type: ignore[assignment]


def slowed(engine: Engine, percent: float) -> Engine:
    """The engine, marked to be held up."""
    record = engine.require_record()
    spec = replace(engine.spec, name=f"{engine.spec.name}{SLOWED}{percent:g}")
    return replace(engine, spec=spec, record=replace(record, spec=spec))


def measure_rows(engines: Sequence[tuple[str, Engine]]) -> list[Row]:
    """The rows of engines that took turns, with one image at a time, as ``benchmark --quick`` measures them."""
    effort = replace(EFFORTS["quick"], pool_rounds=0, probes=0)
    picture = encode_picture(draw_pictures(engines[0][1].spec.image_size, 1)[0])
    config = BenchmarkConfig(output="", self_check=False)
    with (
        open_lanes(engines, [picture], config, "benchmarks.regressions:hold_up") as lanes,
        Sensors(lambda: ()) as sensors,
    ):
        time_lanes(lanes, effort, config.latency_bound)
        rows = [row_of(lane, sensors, None) for lane in lanes]
    for row in rows:
        if row.skipped:
            raise RuntimeError(row.skipped)
    # A row is found by its name, and what is compared is the same model.
    return [replace(row, model="subject") for row in rows]


def _run(arguments: argparse.Namespace) -> Result:
    engine = load_engine(arguments.engine)
    shares = (1.0, 10.0)
    trials: list[dict[str, Any]] = []
    (baseline,) = measure_rows([("subject", engine)])
    for number in progress(range(arguments.trials), arguments.trials, "trials"):
        for percent in shares:
            subject = slowed(engine, percent)
            if arguments.paired:
                now, again = measure_rows([("subject", subject), ("subject" + BEFORE, engine)])
                changes, _ = compare_rows([baseline], [now], [again], BOUND, 1.0)
            else:
                (now,) = measure_rows([("subject", subject)])
                changes, _ = compare_rows([baseline], [now], [], BOUND, 1.0)
            image = next(change for change in changes if change.figure.startswith("time of an image"))
            trials.append(
                {
                    "trial": number,
                    "planted_percent": percent,
                    "found_percent": image.percent.value,
                    "low": image.percent.low,
                    "high": image.percent.high,
                    "significant": image.significant,
                    "regression": any(change.regression for change in changes),
                    "marks": list(now.marks),
                }
            )
    rows = [("planted", "runs", "called a regression", "interval holds 0", "found, median", "half width, median")]
    summary = {}
    for percent in shares:
        own = [trial for trial in trials if trial["planted_percent"] == percent]
        called = sum(trial["regression"] for trial in own)
        holds = sum(trial["low"] <= 0 <= trial["high"] for trial in own)
        found = float(np.median([trial["found_percent"] for trial in own]))
        half = float(np.median([(trial["high"] - trial["low"]) / 2 for trial in own]))
        summary[f"{percent:g}"] = {
            "runs": len(own),
            "regressions": called,
            "holds_zero": holds,
            "found_percent": found,
            "half_width": half,
        }
        rows.append((f"{percent:g} %", str(len(own)), str(called), str(holds), f"{found:+.1f} %", f"{half:.1f} %"))
    result = {
        "engine_sha256": engine.sha256,
        "backend": engine.backend,
        "paired": arguments.paired,
        "bound_percent": BOUND,
        "summary": summary,
        "trials": trials,
    }
    path = save_result(f"regressions-{'paired' if arguments.paired else 'from-file'}", result)
    return Result(f"{table(rows)}\n\n{path}", result)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        "regressions", "How often a comparison with a baseline is right.", "--engine engines/bccd.fp32.onnx"
    )
    parser.add_argument("--engine", type=Path, required=True, metavar="F", help="an engine of a backend on the CPU")
    parser.add_argument("--trials", type=positive, default=20, metavar="N", help="runs of each slowdown (default: 20)")
    parser.add_argument("--paired", action="store_true", help="run the unchanged engine in turns with each subject")
    return run_verb(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
