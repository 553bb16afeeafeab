"""Run a part of a benchmark in a process of its own, because memory that was taken once is not given back and packages patch each other.

A benchmark that compares ways like this has a hidden flag ``--one``, with which it runs one way alone and prints the result as JSON.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edge_effdet.errors import EdgeEffDetError

ROOT = Path(__file__).resolve().parents[1]
"""The repository, which processes start in."""


def cost_of(call: Callable[[], object]) -> dict[str, Any]:
    """The seconds that a call takes, and the megabytes by which the peak of resident memory exceeds the memory before the call."""
    # getrusage would start from the parent process's peak, which exec passes on.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    idle, started = _memory("VmRSS"), time.perf_counter()
    call()
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "peak_mb_over_idle": round((_memory("VmHWM") - idle) / 1024),
    }


def _memory(name: str) -> int:
    """A line of this process's status, such as ``VmRSS``, in KiB."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise ValueError(name)


def run_module(module: str, arguments: Sequence[str | Path | int]) -> dict[str, Any]:
    """Run ``python -m module … --json`` and give the object that it prints last. Its log goes to stderr.

    Raises:
        EdgeEffDetError: it ended with another exit code than 0.
    """
    words = [module, *map(str, arguments), "--json"]
    finished = subprocess.run([sys.executable, "-m", *words], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if finished.returncode:
        raise EdgeEffDetError(
            f"python -m {shlex.join(words)} ended with exit code {finished.returncode}; its own message stands above."
        )
    return json.loads(finished.stdout.strip().splitlines()[-1])
