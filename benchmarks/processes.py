"""One way in a process of its own: memory that was taken once is not given back, and packages patch each other.

A benchmark that does so gives its parser ``--one``, runs that way alone under it, and prints the result as JSON.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.latency import ROOT


def cost_of(call: Callable[[], object]) -> dict[str, Any]:
    """Seconds of a call, and by how many megabytes of resident memory it rose at most over what the process had before."""
    # getrusage would count from the peak of the parent, which exec hands on.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
    idle, started = _memory("VmRSS"), time.perf_counter()
    call()
    return {
        "seconds": round(time.perf_counter() - started, 1),
        "peak_mb_over_idle": round((_memory("VmHWM") - idle) / 1024),
    }


def _memory(name: str) -> int:
    """A line of this process's status, in KiB."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise ValueError(name)


def run_module(module: str, arguments: Sequence[str | Path | int]) -> dict[str, Any]:
    """What ``python -m module … --json`` prints.

    Raises:
        subprocess.CalledProcessError: it ended with another exit code than 0; what it said is on stderr.
    """
    command = [sys.executable, "-m", module, *map(str, arguments), "--json"]
    finished = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(finished.stdout.strip().splitlines()[-1])
