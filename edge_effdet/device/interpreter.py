"""The Python of a device with which the virtual environment is made: what it is, and what it brings."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

THIS = Path("/")
"""The root of the device itself; any other root is a copy of another device's files."""

_LOOK = """
import json, os, sys
print(json.dumps([list(sys.version_info[:2]), os.__file__, sys.base_prefix]))
"""


@dataclass(frozen=True, slots=True)
class DevicePython:
    """A Python on a device.

    Attributes:
        program: how to run it.
        version: such as ``3.10``.
        library: the folder of its standard library.
        headers: the folder that ``Python.h`` is in, where it is installed.
        is_systems: whether it is the one that apt installs packages for; an environment of it is one too.
    """

    program: Path
    version: str
    library: Path
    headers: Path
    is_systems: bool

    @property
    def has_venv(self) -> bool:
        """Whether it has the module ``venv``."""
        return (self.library / "venv").is_dir()

    @property
    def has_pip(self) -> bool:
        """Whether ``ensurepip`` brings a wheel of pip."""
        return any((self.library / "ensurepip").glob("_bundled/pip-*.whl"))


def find_python(root: Path, python: str | None = None) -> DevicePython | None:
    """The Python that a name or path leads to; None where it cannot be run.

    Args:
        root: where the file system begins. Below another root than ``THIS`` nothing is run, and it is what ``/usr/bin/python3`` leads to.
        python: None for the one that runs this.
    """
    if root != THIS:
        return _find_below(root)
    if python is None:
        return _describe(sys.executable, list(sys.version_info[:2]), os.__file__, sys.base_prefix)
    try:
        answer = subprocess.run([python, "-I", "-c", _LOOK], capture_output=True, text=True, timeout=60, check=False)
        version, module, prefix = json.loads(answer.stdout)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return _describe(python, version, module, prefix)


def _describe(program: str, version: list[int], module: str, prefix: str) -> DevicePython:
    shown = ".".join(map(str, version))
    # In an environment the prefix is that of the Python that it was made with.
    headers = Path(prefix, "include", f"python{shown}")
    return DevicePython(Path(program), shown, Path(module).parent, headers, prefix == "/usr")


def _find_below(root: Path) -> DevicePython | None:
    program = root / "usr/bin/python3"
    try:
        found = re.fullmatch(r"python(3\.\d+)", program.readlink().name)
    except OSError:
        return None
    if found is None:
        return None
    version = found[1]
    return DevicePython(
        program, version, root / f"usr/lib/python{version}", root / f"usr/include/python{version}", is_systems=True
    )
