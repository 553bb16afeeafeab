"""The Python of a device with which the virtual environment is made: what it is, and what it brings."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

THIS = Path("/")
"""The root of the device itself; any other root is a copy of another device's files."""

_LOOK = """
import glob, importlib.util, json, os, sys, sysconfig
folders = [sysconfig.get_config_var("WHEEL_PKG_DIR")]
pip = importlib.util.find_spec("ensurepip")
if pip is not None and pip.origin:
    folders.insert(0, os.path.join(os.path.dirname(pip.origin), "_bundled"))
    # Debian's ensurepip takes its wheels from here. Another Python's own come first: Debian's pip may be too old for it.
    folders.append("/usr/share/python-wheels")
wheels = [sorted(glob.glob(os.path.join(glob.escape(folder), "pip-*.whl"))) for folder in folders if folder]
print(json.dumps({
    "executable": os.path.realpath(sys.executable),
    "release": ".".join(map(str, sys.version_info[:3])),
    "library": os.path.dirname(os.__file__),
    "prefix": sys.base_prefix,
    "has_venv": importlib.util.find_spec("venv") is not None,
    "pip_wheel": next((each[-1] for each in wheels if each), None),
    "has_tensorrt": importlib.util.find_spec("tensorrt") is not None,
}))
"""


@dataclass(frozen=True, slots=True)
class DevicePython:
    """A Python on a device.

    Attributes:
        program: how to run it.
        executable: its path without links, so that one inside an environment leads to the one that the environment was made with.
        release: three numbers, such as ``3.10.12``; two for one that is not run.
        library: the folder of its standard library.
        headers: the folder that ``Python.h`` is in, where it is installed.
        is_systems: whether it is the one that apt installs packages for; an environment of it is one too.
        has_venv: whether it has the module ``venv``.
        pip_wheel: the wheel of pip that it brings; None where it brings none.
        has_tensorrt: whether it sees TensorRT's package, as the system's Python of a Jetson does.
    """

    program: Path
    executable: str
    release: str
    library: Path
    headers: Path
    is_systems: bool
    has_venv: bool
    pip_wheel: str | None
    has_tensorrt: bool

    @property
    def version(self) -> str:
        """Two numbers, such as ``3.10``."""
        return ".".join(self.release.split(".")[:2])


def find_python(root: Path, python: str | None = None) -> DevicePython | None:
    """The Python that a name or path leads to; None where it cannot be run.

    Args:
        root: where the file system begins. Below another root than ``THIS`` nothing is run, and it is what ``/usr/bin/python3`` leads to.
        python: None for the one that runs this.
    """
    if root != THIS:
        return _find_below(root)
    program = python or sys.executable
    try:
        done = subprocess.run([program, "-I", "-c", _LOOK], capture_output=True, text=True, timeout=120, check=False)
        found = json.loads(done.stdout)
        version = ".".join(found["release"].split(".")[:2])
        return DevicePython(
            program=Path(program),
            executable=found["executable"],
            release=found["release"],
            library=Path(found["library"]),
            # In an environment the prefix is that of the Python that it was made with.
            headers=Path(found["prefix"], "include", f"python{version}"),
            is_systems=found["prefix"] == "/usr",
            has_venv=found["has_venv"],
            pip_wheel=found["pip_wheel"],
            has_tensorrt=found["has_tensorrt"],
        )
    except (OSError, ValueError, TypeError, KeyError, subprocess.SubprocessError):
        return None


def apt_install(python: DevicePython) -> str:
    """The command by which Debian and Ubuntu bring what environments are made with."""
    return f"sudo apt install python{python.version}-venv"


def _find_below(root: Path) -> DevicePython | None:
    program = root / "usr/bin/python3"
    try:
        found = re.fullmatch(r"python(3\.\d+)", program.readlink().name)
    except OSError:
        return None
    if found is None:
        return None
    version = found[1]
    library = root / f"usr/lib/python{version}"
    wheels = sorted(
        [*library.glob("ensurepip/_bundled/pip-*.whl"), *(root / "usr/share/python-wheels").glob("pip-*.whl")]
    )
    return DevicePython(
        program=program,
        executable=f"/usr/bin/python{version}",
        release=version,
        library=library,
        headers=root / f"usr/include/python{version}",
        is_systems=True,
        has_venv=(library / "venv").is_dir(),
        pip_wheel=str(wheels[-1]) if wheels else None,
        has_tensorrt=(root / f"usr/lib/python{version}/dist-packages/tensorrt").is_dir(),
    )
