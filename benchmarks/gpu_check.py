"""Check and measure everything that needs a GPU in one command: what runs, whether it agrees with the CPU, and how fast it is.

python -m benchmarks.gpu_check --plan
python -m benchmarks.gpu_check --prepare --work runs/gpu-check
python -m benchmarks.gpu_check --work runs/gpu-check --minutes 8
python -m benchmarks.gpu_check --parts floor onnxruntime --batches 1 --precisions fp16

``benchmarks/gpu_check.sh`` does the same on a machine that has Python and torch alone, with an index of packages or with wheels that were
carried there; gpu_check.md beside it says how. ``PARTS`` below says what each part proves.

Each part runs in a process of its own and has a limit of its own, and the first parts are the most telling ones, so that less time gives fewer
parts. The result file is written anew each second in which a part found something, so that what was found is kept when all of it is killed. A part
that cannot run says why, and the others go on. TensorRT-RTX is tried on a GPU that its support matrix lacks too, and its answer is recorded.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine, save_result
from benchmarks.parser import make_parser
from benchmarks.processes import ROOT
from edge_effdet.artifacts import PRECISIONS, write_json
from edge_effdet.cli import Result, run_verb, table
from edge_effdet.errors import BackendUnavailable, UsageError

MODEL = "tests/assets/bccd_d0.safetensors"
"""The network that is checked: D0 at 320 px, trained on photographs, so that its detections can be told apart."""

BATCHES, MINUTES = (1, 8, 32), 8


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the check.

    Attributes:
        seconds: the most that it may take.
        needs: the packages that it imports beyond torch, onnx and what the whole check imports.
        proves: what is known when it has passed.
    """

    seconds: int
    needs: tuple[str, ...]
    proves: str


PARTS: Mapping[str, Part] = {
    "cuda": Part(
        60,
        ("pycuda", "cuda.bindings", "pytest"),
        "tests/gpu: buffers, streams, events, CUDA graphs and threads of backends/tensorrt/cuda.py on a real driver; with TensorRT or "
        "TensorRT-RTX also the runner",
    ),
    "floor": Part(
        40,
        (),
        "the bandwidth, the matrix rate of each precision and the time of an empty kernel, and so the least time of the network",
    ),
    "torch": Part(
        60, (), "that the network in torch on the GPU finds what the exported graph finds on the CPU, and its time"
    ),
    "onnxruntime": Part(
        75,
        ("onnxruntime",),
        "the backend onnxruntime-cuda: bound memory, CUDA graphs, agreement with the CPU, time beside torch in eager mode",
    ),
    "tensorrt": Part(
        100,
        ("tensorrt", "pycuda"),
        "the backend tensorrt: builds of FP16, FP32 and INT8, their agreement with the CPU, CUDA graphs, EfficientNMS, time beside torch",
    ),
    "tensorrt-rtx": Part(
        90,
        ("tensorrt_rtx", "pycuda"),
        "the same of the backend tensorrt-rtx; on a GPU that its support matrix lacks, what it answers there",
    ),
    "dense": Part(
        60,
        (),
        "whether the cost model chooses the faster of depthwise + pointwise and dense convolutions, by cuDNN and, where it is, TensorRT",
    ),
    "training": Part(
        60,
        ("accelerate", "tqdm", "yaml"),
        "steps of our training in BF16, plain and compiled, beside those of a plain effdet loop",
    ),
    "compiled": Part(
        180, ("triton",), "the time of torch.compile in its mode max-autotune, which others are measured by"
    ),
}
"""The parts in the order in which they run."""

LEAST_SECONDS = 20
"""A part begins only where it has as many seconds: importing torch takes most of them."""

LATE = "the time was up before it began; give more `minutes`, or fewer `parts`"
COLUMNS = ("part", "way", "precision", "batch", "median", "P90", "device", "images/s", "found again", "score error")

Results = dict[str, dict[str, Any]]


def run_parts(
    parts: Sequence[str],
    task: Mapping[str, Any],
    work: Path,
    minutes: float,
    keep: Callable[[Results], None] = lambda results: None,
) -> Results:
    """Run parts one after the other, each in a process of its own, until the time is up.

    Args:
        parts: names in ``PARTS``.
        task: model, batches and precisions, as ``gpu_check_parts.Task`` has them.
        work: an existing folder for graphs, engines and the file of each part.
        minutes: how long all parts together may take.
        keep: is given the results so far whenever a part has found something or has ended.

    Returns:
        The result of each part, by its name: its rows, its seconds, and ``skipped`` with the reason where it did not run or end.
    """
    ends = time.monotonic() + 60 * minutes
    results: Results = {}
    for part in parts:
        left = min(PARTS[part].seconds, ends - time.monotonic())
        if left < LEAST_SECONDS:
            results[part] = {"rows": [], "skipped": LATE}
            continue
        output = work / f"{part}.json"
        output.unlink(missing_ok=True)
        told = {**task, "part": part, "seconds": left, "work": str(work), "output": str(output)}
        print(f"{part}, at most {left:.0f} s …", file=sys.stderr, flush=True)
        started = time.monotonic()

        def note(output: Path = output, part: str = part) -> None:
            results[part] = _read_part(output)
            keep(results)

        reason = _run_process(told, left, output, note)
        found = _read_part(output)
        if reason and "skipped" not in found:
            found["skipped"] = reason
        results[part] = {**found, "seconds": round(time.monotonic() - started, 1)}
        keep(results)
    return results


def show_results(results: Mapping[str, Mapping[str, Any]]) -> str:
    """A table of all that was timed, the other findings, and a line for each part that did not run."""
    lines: list[str] = []
    timed = [{"part": part, **row} for part, found in results.items() for row in found["rows"] if "median_ms" in row]
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


def show_plan(parts: Sequence[str]) -> str:
    """What the parts prove, the most seconds that each takes, and which of the packages that they need are missing here."""
    rows = [("part", "at most", "missing here", "proves")]
    for name in parts:
        part = PARTS[name]
        missing = [package for package in part.needs if not _is_here(package)]
        rows.append((name, f"{part.seconds} s", ", ".join(missing) or "-", part.proves))
    return table(rows)


def _is_here(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:
        # Of a dotted name, the first part.
        return False


def _read_part(output: Path) -> dict[str, Any]:
    """What a part has written so far."""
    return json.loads(output.read_text(encoding="utf-8")) if output.is_file() else {"rows": []}


def _run_process(task: Mapping[str, Any], seconds: float, output: Path, note: Callable[[], None]) -> str | None:
    """Run a part, and give the reason why it did not come to its end, or None where it did. ``note`` is called when ``output`` has changed."""
    words = [sys.executable, "-m", "benchmarks.gpu_check_parts", json.dumps(task)]
    ends, seen = time.monotonic() + seconds, 0
    # A session of its own, so that what it started, such as compilers, is ended with it.
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        while time.monotonic() < ends:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = process.wait(min(1.0, max(0.01, ends - time.monotonic())))
                return f"its process ended with exit code {code}; its own message stands above" if code else None
            written = output.stat().st_mtime_ns if output.is_file() else 0
            if written != seen:
                seen = written
                note()
        return "it was stopped when the time was up"
    finally:
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                _end_group(process)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    def number(name: str, form: str) -> str:
        value = row.get(name)
        return "-" if value is None else form.format(value)

    return (
        row["part"],
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


def _prepare(arguments: argparse.Namespace) -> Result:
    from benchmarks.gpu_check_subject import prepare_work
    from benchmarks.graph_subjects import read_subject

    if arguments.work is None:
        raise UsageError("`prepare` needs a folder that stays; give `work`.")
    arguments.work.mkdir(parents=True, exist_ok=True)
    prepare_work(read_subject(arguments.model), arguments.precisions, arguments.batches, arguments.work)
    made = {path.name: path.stat().st_size for path in sorted(arguments.work.iterdir()) if path.is_file()}
    rows = [("file", "MiB"), *((name, f"{size / 2**20:.1f}") for name, size in made.items())]
    return Result(f"{table(rows)}\n\n{arguments.work}", {"work": str(arguments.work), "bytes": made})


def _run(arguments: argparse.Namespace) -> Result:
    if arguments.minutes <= 0 or any(batch < 1 for batch in arguments.batches):
        raise UsageError("`minutes` and `batches` have to be above 0; give 8 and 1 8 32, for example.")
    if arguments.plan:
        return Result(show_plan(arguments.parts), {"parts": list(arguments.parts)})
    if arguments.prepare:
        return _prepare(arguments)
    task = {name: getattr(arguments, name) for name in ("model", "batches", "precisions")}
    machine = describe_machine()

    def keep(results: Results) -> None:
        if arguments.output:
            write_json(arguments.output, {"machine": machine, **task, "minutes": arguments.minutes, "parts": results})

    with contextlib.ExitStack() as stack:
        work = arguments.work or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="edge-effdet-")))
        work.mkdir(parents=True, exist_ok=True)
        results = run_parts(arguments.parts, task, work.resolve(), arguments.minutes, keep)
    keep(results)
    result = {**task, "minutes": arguments.minutes, "parts": results}
    shown = show_results(results)
    if not any(
        "skipped" not in row and row.get("way") != "probe" for found in results.values() for row in found["rows"]
    ):
        print(shown, file=sys.stderr)
        raise BackendUnavailable(
            "No part of the GPU check could run here, for the reasons above; run it where a GPU is."
        )
    path = arguments.output or save_result(f"gpu-check-{_gpu_name(results)}", result)
    return Result(f"{shown}\n\n{path}", result)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser("gpu_check", "Check and measure everything that needs a GPU.", "--work runs/gpu-check")
    parser.add_argument(
        "--parts", nargs="+", default=list(PARTS), choices=list(PARTS), help="the parts to run (default: all)"
    )
    parser.add_argument("--model", default=MODEL, metavar="M", help=f"NAME@SIZE or a .safetensors (default: {MODEL})")
    shown = " ".join(map(str, BATCHES))
    parser.add_argument(
        "--batches", nargs="+", type=int, default=list(BATCHES), metavar="N", help=f"the batch sizes (default: {shown})"
    )
    parser.add_argument(
        "--precisions",
        nargs="+",
        default=["fp16", "fp32", "int8"],
        choices=PRECISIONS,
        help="the precisions (default: all)",
    )
    parser.add_argument(
        "--minutes",
        type=float,
        default=MINUTES,
        metavar="X",
        help=f"how long all parts together may take (default: {MINUTES})",
    )
    parser.add_argument(
        "--work", type=Path, metavar="DIR", help="a folder that keeps graphs and engines, and whose own are used"
    )
    parser.add_argument("--output", type=Path, metavar="F", help="the result file (default: one in benchmarks/results)")
    parser.add_argument("--plan", action="store_true", help="say what each part proves and lacks here, and end")
    parser.add_argument(
        "--prepare",
        action="store_true",
        help="make in `work` all that needs no GPU, and end; the folder can be carried",
    )
    return run_verb(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
