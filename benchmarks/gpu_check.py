"""Check and measure everything that needs a GPU in one command: what runs, whether it agrees with the CPU, and how fast it is.

python -m benchmarks.gpu_check --minutes 25
python -m benchmarks.gpu_check --parts floor backends --backends torch tensorrt --batches 1 --precisions fp16

``benchmarks/gpu_check.sh`` does the same on a machine that has Python and torch alone: it makes an environment first. The parts are:

- ``floor`` measures the bandwidth, the matrix rate of each precision, and the time of an empty kernel.
- ``cuda`` runs ``tests/gpu``: the buffers, streams, events and CUDA graphs of ``edge_effdet.backends.tensorrt.cuda``.
- ``backends`` compares torch (eager and compiled), onnxruntime on CUDA, TensorRT and TensorRT-RTX with the CPU and times them in turns.
- ``dense`` times depthwise + pointwise against dense convolutions, and checks the choices of the cost model.
- ``training`` times steps in BF16, ours plain and compiled, against those of a plain effdet loop.

Each part runs in a process of its own. A part that cannot run says why, and the others go on. TensorRT-RTX is tried on a GPU that its
support matrix lacks too, and its answer is recorded.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_check_parts import BACKENDS, PARTS
from benchmarks.machine import describe_machine, save_result
from benchmarks.parser import make_parser
from benchmarks.processes import ROOT
from edge_effdet.artifacts import PRECISIONS, write_json
from edge_effdet.cli import Result, run_verb, table
from edge_effdet.errors import BackendUnavailable, UsageError

LEAST_SECONDS = 20
"""A part begins only where it has as many seconds."""
SHARES = {"floor": 1, "cuda": 1, "backends": 8, "dense": 3, "training": 3}
"""The time that is left is divided between a part and those after it in these shares. What a part does not use is left to the others."""

LEAST_SHARE = 120
"""The least seconds that a part gets where as many are left: importing torch and exporting a graph take most of them."""

LATE = "the time was up before it began; give more `minutes`, or fewer `parts`"
COLUMNS = ("way", "precision", "batch", "median", "P90", "device", "images/s", "found again", "score error")


def run_parts(parts: Sequence[str], task: Mapping[str, Any], work: Path, minutes: float) -> dict[str, dict[str, Any]]:
    """Run parts one after the other, each in a process of its own, until the time is up.

    Args:
        parts: names in ``SHARES``.
        task: model, batches, precisions and backends, as ``gpu_check_parts.Task`` has them.
        work: an existing folder for graphs, engines and the file of each part.
        minutes: how long all parts together may take.

    Returns:
        The result of each part, by its name: its rows, its seconds, and ``skipped`` with the reason where it did not run or end.
    """
    ends = time.monotonic() + 60 * minutes
    results: dict[str, dict[str, Any]] = {}
    for number, part in enumerate(parts):
        left = ends - time.monotonic()
        share = left * SHARES[part] / sum(SHARES[other] for other in parts[number:])
        left = max(share, min(left, LEAST_SHARE))
        if left < LEAST_SECONDS:
            results[part] = {"rows": [], "skipped": LATE}
            continue
        output = work / f"{part}.json"
        output.unlink(missing_ok=True)
        told = {**task, "part": part, "seconds": left, "work": str(work), "output": str(output)}
        print(f"{part} …", file=sys.stderr, flush=True)
        started = time.monotonic()
        reason = _run_process(told, left)
        found: dict[str, Any] = {"rows": []}
        if output.is_file():
            found = json.loads(output.read_text(encoding="utf-8"))
        if reason and "skipped" not in found:
            found["skipped"] = reason
        results[part] = {**found, "seconds": round(time.monotonic() - started, 1)}
    return results


def show_results(results: Mapping[str, Mapping[str, Any]]) -> str:
    """A table of all that was timed, the other findings, and a line for each part that did not run."""
    lines: list[str] = []
    timed = [row for part in results.values() for row in part["rows"] if "median_ms" in row]
    if timed:
        lines += [table([COLUMNS, *map(_cells, timed)]), ""]
    for part, found in results.items():
        for row in found["rows"]:
            if "median_ms" not in row:
                told = ", ".join(f"{name} {_shown(value)}" for name, value in row.items() if value not in (None, ""))
                lines.append(f"{part}: {told}")
        if "skipped" in found:
            lines.append(f"{part}: skipped: {found['skipped']}")
    return "\n".join(lines)


def _run_process(task: Mapping[str, Any], seconds: float) -> str | None:
    """Run a part, and give the reason why it did not come to its end, or None where it did."""
    words = [sys.executable, "-m", "benchmarks.gpu_check_parts", json.dumps(task)]
    try:
        done = subprocess.run(words, cwd=ROOT, stdout=subprocess.DEVNULL, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return "it was stopped when the time was up"
    return (
        f"its process ended with exit code {done.returncode}; its own message stands above" if done.returncode else None
    )


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    def number(name: str, form: str) -> str:
        value = row.get(name)
        return "-" if value is None else form.format(value)

    return (
        row["way"],
        str(row.get("precision", "bf16")),
        str(row["batch"]),
        number("median_ms", "{:.3f} ms"),
        number("p90_ms", "{:.3f} ms"),
        number("device_ms", "{:.3f} ms"),
        number("images_per_second", "{:.0f}"),
        number("matched", "{:.1%}") + (" (too few)" if row.get("agrees") is False else ""),
        number("score_error", "{:.1e}"),
    )


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name} {_shown(inner)}" for name, inner in value.items()) + "}"
    return str(value)


def _gpu_name(results: Mapping[str, Mapping[str, Any]]) -> str:
    gpus = (row["gpu"] for part in results.values() for row in part["rows"] if "gpu" in row)
    name = next((gpu["name"] for gpu in gpus if isinstance(gpu, Mapping)), "gpu")
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _run(arguments: argparse.Namespace) -> Result:
    if arguments.minutes <= 0 or any(batch < 1 for batch in arguments.batches):
        raise UsageError("`minutes` and `batches` have to be above 0; give 25 and 1 8 32, for example.")
    task = {name: getattr(arguments, name) for name in ("model", "batches", "precisions", "backends")}
    with contextlib.ExitStack() as stack:
        work = arguments.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edge-effdet-")))
        work.mkdir(parents=True, exist_ok=True)
        results = run_parts(arguments.parts, task, work.resolve(), arguments.minutes)
    result = {**task, "minutes": arguments.minutes, "parts": results}
    shown = show_results(results)
    if not any(
        "skipped" not in row and row.get("way") != "probe" for found in results.values() for row in found["rows"]
    ):
        if arguments.output:
            write_json(arguments.output, {"machine": describe_machine(), **result})
        print(shown, file=sys.stderr)
        raise BackendUnavailable(
            "No part of the GPU check could run here, for the reasons above; run it where a GPU is."
        )
    if arguments.output:
        path = arguments.output
        write_json(path, {"machine": describe_machine(), **result})
    else:
        path = save_result(f"gpu-check-{_gpu_name(results)}", result)
    return Result(f"{shown}\n\n{path}", result)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser("gpu_check", "Check and measure everything that needs a GPU.", "--minutes 25")
    parser.add_argument(
        "--parts", nargs="+", default=list(PARTS), choices=list(PARTS), help="the parts to run (default: all)"
    )
    parser.add_argument("--model", default="tf_efficientdet_d0@512", metavar="M", help="NAME@SIZE or a .safetensors")
    parser.add_argument(
        "--batches", nargs="+", type=int, default=[1, 8, 32], metavar="N", help="the batch sizes (default: 1 8 32)"
    )
    parser.add_argument(
        "--precisions",
        nargs="+",
        default=["fp16", "fp32", "int8"],
        choices=PRECISIONS,
        help="the precisions (default: all)",
    )
    parser.add_argument(
        "--backends", nargs="+", default=list(BACKENDS), choices=BACKENDS, help="the backends (default: all)"
    )
    parser.add_argument(
        "--minutes", type=float, default=25, metavar="X", help="how long all parts together may take (default: 25)"
    )
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help="a folder that keeps graphs and engines, and whose own are used"
    )
    parser.add_argument("--output", type=Path, metavar="F", help="the result file (default: one in benchmarks/results)")
    return run_verb(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
