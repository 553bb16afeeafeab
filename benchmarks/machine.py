"""The machine and the package versions that a result was measured with, and the file that it is saved in."""

from __future__ import annotations

import os
import platform
import re
import shlex
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from benchmarks.processes import ROOT
from edge_effdet.artifacts import write_json
from edge_effdet.backends.arithmetic import cpu_has_dot_products
from edge_effdet.benchmarking.host import machine as host

RESULTS = ROOT / "benchmarks" / "results"
PACKAGES = (
    "edge-effdet",
    "numpy",
    "onnxruntime",
    "openvino",
    "onnx",
    "torch",
    "effdet",
    "timm",
    "nvidia-modelopt",
    "tensorrt-rtx",
)


def describe_machine() -> dict[str, Any]:
    """The processor, the cores that this process may use, and the versions of Python and of packages."""
    return {
        "processor": host.describe_machine().cpu.name,
        "cores": len(os.sched_getaffinity(0)),
        "vnni": cpu_has_dot_products(),
        "python": platform.python_version(),
        "packages": host.installed_versions(PACKAGES),
    }


def save_result(kind: str, result: dict[str, Any], name: str = "") -> Path:
    """Write ``results/<device>/<date>-<kind>-<name>.json`` and return its path."""
    machine = describe_machine()
    device = re.sub(r"[^a-z0-9]+", "-", machine["processor"].lower()).strip("-") + f"-{machine['cores']}-cores"
    now = datetime.now(timezone.utc)
    full = f"{kind}-{name}" if name else kind
    path = RESULTS / device / f"{now:%Y-%m-%d}-{full}.json"
    head = {"name": full, "command": _command(), "measured_at": now.isoformat(timespec="seconds"), "machine": machine}
    write_json(path, {**head, **result})
    return path


def watch_load() -> Callable[[], dict[str, float]]:
    """Start to watch what else the machine does.

    Returns:
        A function that gives ``load_before``, the load average of the minute before the watch, and ``others``, the share of all
        processors that other processes took since then.
    """
    before, started, busy, own = os.getloadavg()[0], time.perf_counter(), _busy_seconds(), _own_seconds()

    def result() -> dict[str, float]:
        spent = (os.cpu_count() or 1) * (time.perf_counter() - started)
        others = (_busy_seconds() - busy - (_own_seconds() - own)) / spent
        return {"load_before": round(before, 2), "others": round(min(max(others, 0.0), 1.0), 3)}

    return result


def _busy_seconds() -> float:
    """The seconds that all processors of the machine were not idle, from its start on."""
    words = Path("/proc/stat").read_text(encoding="ascii").split(maxsplit=9)
    user, nice, system, _, _, interrupts, soft, stolen = map(int, words[1:9])
    return (user + nice + system + interrupts + soft + stolen) / os.sysconf("SC_CLK_TCK")


def _own_seconds() -> float:
    return sum(os.times()[:4])


def _command() -> str:
    """The command that was started, with paths outside the repository by their last part alone."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    words = ["python", "-m", spec.name] if spec else ["python", Path(sys.argv[0]).name]
    for word in sys.argv[1:]:
        outside = Path(word).is_absolute() or word.startswith("..")
        words.append(Path(word).name if outside else word)
    return shlex.join(words)
