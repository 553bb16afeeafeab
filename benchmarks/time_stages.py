"""Time the commands of a suite in rounds, each in a process of its own, and print their medians and peak memory.

python -m benchmarks.time_stages benchmarks/suites/stages.toml
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import tomllib

from benchmarks.machine import save_result
from edge_effdet.cli import Result, make_parser, progress, run_verb, table
from edge_effdet.errors import EdgeEffDetError
from edge_effdet.quickstart import quickstart_checkpoint, quickstart_scenes


def time_command(command: str, environment: dict[str, str]) -> tuple[float, float]:
    """The seconds of a command from start to exit, and its peak resident memory in MB. Raises EdgeEffDetError where it fails."""
    words = shlex.split(command)
    words[0] = sys.executable if words[0] == "python" else words[0]
    started = time.perf_counter()
    with subprocess.Popen(
        words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stderr is not None
        said = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - started
    if process.returncode:
        raise EdgeEffDetError(f"{command} ended with {process.returncode}: {said.strip().splitlines()[-1]}")
    return seconds, usage.ru_maxrss / 1000


def time_suite(suite: dict[str, Any], work: Path) -> list[dict[str, Any]]:
    """Time the stages of a suite in rounds, so that what else the machine does falls on all stages.

    Args:
        suite: a file of benchmarks/suites, as read.
        work: a folder for what the stages write.

    Returns:
        One row a stage: its command, the seconds of each round, their median, and its peak memory in MB.
    """
    places = {"quickstart": quickstart_checkpoint(), "scenes": quickstart_scenes(work), "work": work}
    stages, rounds = suite["stage"], suite["rounds"]
    measured: dict[str, list[tuple[float, float]]] = {stage["name"]: [] for stage in stages}
    for stage in progress([stage for _ in range(rounds) for stage in stages], rounds * len(stages), "timing"):
        measured[stage["name"]].append(time_command(stage["command"].format(**places), dict(os.environ)))
    return [
        {
            "stage": stage["name"],
            "command": stage["command"],
            "seconds": [round(seconds, 3) for seconds, _ in measured[stage["name"]]],
            "median_seconds": round(median(seconds for seconds, _ in measured[stage["name"]]), 3),
            "peak_mb": round(max(memory for _, memory in measured[stage["name"]])),
        }
        for stage in stages
    ]


def _run(arguments: argparse.Namespace) -> Result:
    suite = tomllib.loads(arguments.suite.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(prefix="edge-effdet-") as folder:
        rows = time_suite(suite, Path(folder))
    path = save_result(arguments.suite.stem, {"title": suite["title"], "rounds": suite["rounds"], "stages": rows})
    shown = [(row["stage"], f"{row['median_seconds']:.2f} s", f"{row['peak_mb']} MB") for row in rows]
    return Result(
        f"{table([('stage', 'median', 'peak memory'), *shown])}\n\n{path}", {"result": str(path), "stages": rows}
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        "benchmarks", "Time a suite.", "python -m benchmarks.time_stages benchmarks/suites/stages.toml"
    )
    parser.add_argument("suite", type=Path, help="a TOML file of benchmarks/suites")
    return run_verb(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
