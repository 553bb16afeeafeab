"""The machine and the package versions that a result was measured with, and the file that it is saved in."""

from __future__ import annotations

import contextlib
import os
import platform
import re
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.processes import ROOT
from edge_effdet.artifacts import write_json
from edge_effdet.backends.arithmetic import cpu_has_dot_products

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
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "vnni": cpu_has_dot_products(),
        "python": platform.python_version(),
        "packages": installed_versions(PACKAGES),
    }


def save_result(name: str, result: dict[str, Any]) -> Path:
    """Write ``results/<device>/<date>-<name>.json`` and return its path."""
    machine = describe_machine()
    device = re.sub(r"[^a-z0-9]+", "-", machine["processor"].lower()).strip("-") + f"-{machine['cores']}-cores"
    now = datetime.now(timezone.utc)
    path = RESULTS / device / f"{now:%Y-%m-%d}-{name}.json"
    write_json(path, {"name": name, "measured_at": now.isoformat(timespec="seconds"), "machine": machine, **result})
    return path


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def installed_versions(packages: Sequence[str]) -> dict[str, str]:
    """The versions of those packages that are installed, by name."""
    found: dict[str, str] = {}
    for name in packages:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
