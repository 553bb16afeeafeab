"""How much faster an evaluation is that Dask spreads over workers, each with one thread.

python -m benchmarks.spread --checkpoint tests/assets/bccd_lite0.safetensors --data bccd --name bccd

Each way takes an engine's file and labelled images, and gives the metrics: it loads the engine, connects to a cluster that runs already,
detects and judges. The ways take turns. All find the same, or the command ends with an error.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.latency import summarize_times, time_ways
from benchmarks.machine import save_result
from benchmarks.parser import make_parser
from benchmarks.run import make_engine
from edge_effdet.artifacts import Engine
from edge_effdet.backends.base import LoadOptions, load_runner
from edge_effdet.cli import Result, count_of, run_verb, table
from edge_effdet.data.base import Sample, match_classes
from edge_effdet.data.registry import read_dataset
from edge_effdet.errors import EdgeEffDetError, MissingDependency
from edge_effdet.evaluation.members import InferenceOptions, Member
from edge_effdet.evaluation.run import Evaluation, evaluate_members, judge_detections
from edge_effdet.evaluation.spread import assign_engine, detect_on_cluster
from edge_effdet.graph.export import ExportOptions, export_network, load_source

BACKEND = "onnxruntime"
ONE_IMAGE = InferenceOptions(batch_size=1)


def compare_spread(engine: Engine, samples: Sequence[Sample], workers: Sequence[int], rounds: int) -> dict[str, Any]:
    """Time the ways in turns.

    Args:
        engine: the engine that is judged.
        samples: with the class ids of its spec.
        workers: the sizes of the clusters; serial runs have as many threads.
        rounds: turns of each way.

    Returns:
        A row a way, and how many times as fast as one worker and as the serial runs the largest cluster is.

    Raises:
        EdgeEffDetError: two ways found something else.
        MissingDependency: Dask is not installed.
    """
    try:
        from distributed import LocalCluster
    except ModuleNotFoundError as error:
        raise MissingDependency(error.name or "distributed", "dask", "to start a Dask cluster") from error
    # The scheduler of this process would tell of each worker that comes and goes.
    logging.getLogger("distributed").setLevel(logging.ERROR)
    found: dict[str, Evaluation] = {}

    def keep(name: str, judge: Callable[[], Evaluation]) -> Callable[[], None]:
        def way() -> None:
            found[name] = judge()

        return way

    ways: dict[str, Callable[[], None]] = {}
    with contextlib.ExitStack() as stack:
        for count in workers:
            name = f"serial, {count_of(count, 'thread')}"
            ways[name] = keep(name, lambda count=count: _judge_here(engine, samples, count))
            # Its types do not say that the dashboard may be left out, nor that no call waits for another.
            local: Any = LocalCluster
            cluster = stack.enter_context(
                local(n_workers=count, threads_per_worker=1, dashboard_address=":0", memory_limit=0)
            )
            name = f"Dask, {count_of(count, 'worker')} of 1 thread"
            ways[name] = keep(name, lambda address=cluster.scheduler_address: _judge_there(engine, samples, address))
        # What else the machine does cannot be told from what the workers do, so only the load before is kept.
        load = os.getloadavg()[0]
        times = time_ways(ways, rounds, runs=1, warm_up=1)
    first, *others = found.values()
    for other in others:
        same = first.metrics == other.metrics and all(
            np.array_equal(a.boxes, b.boxes) and np.array_equal(a.scores, b.scores)
            for a, b in zip(first.detections, other.detections, strict=True)
        )
        if not same:
            raise EdgeEffDetError(
                "Two ways found something else in the same pictures, so their times are not compared."
            )
    turns = {name: own[:, 0] for name, own in times.items()}
    *slower, fastest = turns
    return {
        "rows": summarize_times(times, {}),
        "images": len(samples),
        "AP": first.metrics.AP,
        "times_as_fast": {name: float(np.median(turns[name] / turns[fastest])) for name in slower},
        "of": fastest,
        "load_before": round(load, 2),
    }


def _judge_here(engine: Engine, samples: Sequence[Sample], threads: int) -> Evaluation:
    with load_runner(engine, LoadOptions(threads=threads)) as runner:
        return evaluate_members([Member(runner, engine.spec)], samples, ONE_IMAGE)


def _judge_there(engine: Engine, samples: Sequence[Sample], address: str) -> Evaluation:
    assignment = assign_engine(engine, ONE_IMAGE, self_check=True)
    return judge_detections(*detect_on_cluster(address, assignment, samples), engine.spec)


def describe_spread(result: Mapping[str, Any]) -> str:
    """A row a way."""
    rows = [("way", "seconds", f"{result['of']} is so many times as fast")]
    for row in result["rows"]:
        ratio = result["times_as_fast"].get(row["way"])
        rows.append((row["way"], f"{row['median_ms'] / 1000:.2f}", "-" if ratio is None else f"{ratio:.2f}"))
    head = f"{result['images']} images, AP {100 * result['AP']:.2f} by each way, load average before {result['load_before']}"
    return f"{head}\n\n{table(rows)}"


def _run(arguments: argparse.Namespace) -> Result:
    network, spec, parents = load_source(arguments.checkpoint, None)
    _, samples = match_classes(read_dataset(arguments.data), spec).choose_split(arguments.split, ())
    with tempfile.TemporaryDirectory(prefix="edge-effdet-") as folder:
        graph = export_network(network, spec, parents, Path(folder) / "graph.onnx", ExportOptions()).graph
        engine = make_engine(graph, BACKEND, Path(folder) / "engine.onnx")
        result = compare_spread(engine, samples, arguments.workers, arguments.rounds)
    result = {**parents, "backend": BACKEND, "split": arguments.split, **result}
    path = save_result("spread", result, arguments.name)
    return Result(f"{describe_spread(result)}\n\n{path}", result)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        "spread",
        "Time an evaluation over the workers of a Dask cluster against serial ones.",
        "--checkpoint tests/assets/bccd_lite0.safetensors --data bccd --name bccd",
        rounds=3,
        checkpoint="the model that is judged",
        data="labelled images",
        name="spread",
        required=("checkpoint", "data"),
    )
    parser.add_argument("--split", default="all", help="the split of the data (default: all)")
    parser.add_argument(
        "--workers", type=int, nargs="+", default=[1, 2], metavar="N", help="sizes of the clusters (default: 1 2)"
    )
    return run_verb(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
