"""The virtual environment of a version: made with the device's own Python, filled from the bundle's wheels, and tried before it is used.

pip comes out of its wheel, which the bundle brings or ``ensurepip`` has, and is not installed by ``ensurepip``: unpacking takes less time, much less
under emulation, and works where Debian's package of ``ensurepip`` is missing.
"""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edge_effdet.artifacts import printable
from edge_effdet.device.manifest import Bundle
from edge_effdet.device.steps import Finished, run_program
from edge_effdet.device.targets import PYTHONS
from edge_effdet.errors import BackendUnavailable, BundleError, first_line

CUDA = Path("/usr/local/cuda")
"""Where JetPack and NVIDIA's packages put CUDA, which is not on the PATH there."""


_LOOK = """
import glob, importlib.util, json, os, sys, sysconfig
folders = [sysconfig.get_config_var("WHEEL_PKG_DIR")]
pip = importlib.util.find_spec("ensurepip")
if pip is not None and pip.origin:
    folders.insert(0, os.path.join(os.path.dirname(pip.origin), "_bundled"))
    # Debian's ensurepip takes its wheels from here.
    folders.append("/usr/share/python-wheels")
wheels = [wheel for folder in folders if folder for wheel in sorted(glob.glob(os.path.join(glob.escape(folder), "pip-*.whl")))]
print(json.dumps({
    "executable": os.path.realpath(sys.executable),
    "version": list(sys.version_info[:3]),
    "has_venv": importlib.util.find_spec("venv") is not None,
    "pip_wheel": wheels[-1] if wheels else None,
    "has_tensorrt": importlib.util.find_spec("tensorrt") is not None,
}))
"""

_TRY = """
import json, sys
import edge_effdet.runtime.detector
from edge_effdet.backends.base import Unavailable, get_backend
answer = get_backend(sys.argv[1]).probe()
missing = isinstance(answer, Unavailable)
print(json.dumps([answer.reason, answer.fix] if missing else [answer.version, answer.device, answer.runs_here]))
sys.exit(missing)
"""

_PIP_FLAGS = (
    "--disable-pip-version-check",
    "--no-input",
    "--no-color",
    "--progress-bar=off",
    "--no-warn-script-location",
    # What runs is compiled when the environment is tried and the engine is built; compiling all of NumPy takes longer than unpacking it.
    "--no-compile",
)


@dataclass(frozen=True, slots=True)
class HostPython:
    """A Python that environments are made with.

    Attributes:
        executable: its path without links, so that one inside an environment leads to the one that the environment was made with.
        version: three numbers.
        has_venv: whether it has the module ``venv``.
        pip_wheel: the wheel of pip that it brings; None where it brings none.
        has_tensorrt: whether it sees TensorRT's package, as the system's Python of a Jetson does.
    """

    executable: str
    version: tuple[int, int, int]
    has_venv: bool
    pip_wheel: str | None
    has_tensorrt: bool


def look_at_python(python: str | None) -> HostPython:
    """Look whether environments can be made with a Python.

    Args:
        python: its path or name; None for the one that runs this, or the one that its environment was made with.

    Raises:
        BackendUnavailable: it cannot be run, is too old or too new, or lacks ``venv``; the message names Debian's package.
    """
    program = python or sys.executable
    try:
        done = subprocess.run([program, "-I", "-c", _LOOK], capture_output=True, text=True, timeout=120, check=False)
        found = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise BackendUnavailable(
            f"{printable(program)} is no Python that can be run ({first_line(error)}); give another `python`, as in /usr/bin/python3."
        ) from error
    looked = HostPython(
        found["executable"], tuple(found["version"]), found["has_venv"], found["pip_wheel"], found["has_tensorrt"]
    )
    shown = ".".join(map(str, looked.version))
    if ".".join(map(str, looked.version[:2])) not in PYTHONS:
        raise BackendUnavailable(
            f"{looked.executable} is Python {shown}, and {PYTHONS[0]} to {PYTHONS[-1]} work; give another `python`."
        )
    if not looked.has_venv:
        raise BackendUnavailable(
            f"{looked.executable} has no module venv; run {_apt_install(looked)}, or give another `python`."
        )
    return looked


def find_pip(bundle: Bundle, python: HostPython) -> Path:
    """The wheel of pip: the bundle's, else the one of the Python. Raises BackendUnavailable where there is none."""
    bundled = sorted((bundle.path / bundle.manifest.wheel).parent.glob("pip-*.whl"))
    if bundled:
        return bundled[-1]
    if python.pip_wheel is None:
        raise BackendUnavailable(
            f"{python.executable} has no ensurepip, which brings pip; run {_apt_install(python)}, or make the bundle with `wheels`."
        )
    return Path(python.pip_wheel)


def make_environment(
    bundle: Bundle, venv: Path, python: HostPython, system_packages: bool, lock: int | None = None
) -> str:
    """Make the environment of a version, install what the bundle needs into it, and try it.

    Args:
        bundle: the copy of it in the version.
        venv: the folder, which is not there yet.
        python: what it is made with.
        system_packages: whether it sees the packages of the system's Python, among which JetPack has TensorRT.
        lock: of the installation, which the programs hold too.

    Returns:
        What the backend says of itself.

    Raises:
        BackendUnavailable: the environment cannot be made, a package cannot be fetched or compiled, or the backend does not work in it.
        BundleError: a wheel in the bundle is not the one that is asked for, or for another Python or processor.
        OSError: the disk is full.
    """
    pip = find_pip(bundle, python)
    site = ["--system-site-packages"] if system_packages else []
    done = run_program([python.executable, "-I", "-m", "venv", "--without-pip", *site, venv], lock)
    if done.code:
        _raise_if_full(done)
        raise BackendUnavailable(
            f"{python.executable} -m venv failed: {_last_line(done)}; see whether {_apt_install(python)} mends that, or give another `python`."
        )
    # Not run from inside the wheel: pip starts itself once more to compile a package, which it cannot do from a zip file.
    try:
        with zipfile.ZipFile(pip) as archive:
            archive.extractall(_site_packages(venv))
    except zipfile.BadZipFile as error:
        raise BackendUnavailable(f"{pip} is damaged ({error}); run {_apt_install(python)} again.") from error
    wheels = (bundle.path / bundle.manifest.wheel).parent
    requirements = bundle.path / bundle.manifest.requirements
    offline = bundle.manifest.complete
    where = ["--no-index", "--find-links", wheels, "--require-hashes"] if offline else ["--find-links", wheels]
    _install([*where, "--requirement", requirements], bundle, venv, python, lock)
    _install(["--no-index", "--no-deps", bundle.path / bundle.manifest.wheel], bundle, venv, python, lock)
    return try_environment(venv, bundle.manifest.backend, python, system_packages, lock)


def _install(what: Sequence[str | Path], bundle: Bundle, venv: Path, python: HostPython, lock: int | None) -> None:
    # A device may have a pip.conf or variables of pip that lead to an index, or to another folder. Where the bundle has all, they have no say.
    offline = "--no-index" in what
    isolated = ["--isolated", "--no-cache-dir"] if offline else []
    command = [venv / "bin" / "python", "-I", "-m", "pip", "install", *_PIP_FLAGS, *isolated, *what]
    done = run_program(command, lock, build_environment(offline))
    if done.code:
        _raise_if_full(done)
        raise _explain_pip(done, bundle, python, offline)


def build_environment(offline: bool, cuda: Path = CUDA) -> dict[str, str]:
    """The environment variables for pip, which may have to compile pycuda: with CUDA's compiler on the PATH and ``CUDA_ROOT``, where CUDA is."""
    variables = dict(os.environ)
    if offline:
        variables["PIP_CONFIG_FILE"] = os.devnull
    if (cuda / "bin").is_dir():
        variables["PATH"] = os.pathsep.join([str(cuda / "bin"), variables.get("PATH", os.defpath)])
        variables.setdefault("CUDA_ROOT", str(cuda))
    return variables


def try_environment(
    venv: Path, backend: str, python: HostPython, system_packages: bool, lock: int | None = None
) -> str:
    """Import the detector in an environment and ask the backend whether it works there.

    Returns:
        What it says: its version and what it computes on.

    Raises:
        BackendUnavailable: it does not work, and why.
    """
    done = run_program([venv / "bin" / "python", "-I", "-c", _TRY, backend], lock, answers=True)
    try:
        answer = json.loads(done.answer)
    except ValueError:
        answer = None
    if answer is None:
        _raise_if_full(done)
        raise BackendUnavailable(
            f"What was installed into {venv} cannot be imported: {_last_line(done)}; see the log for the whole message."
        )
    if done.code == 0:
        version, device, _ = answer
        return f"{backend} {version} on {device}"
    reason, fix = answer
    if backend == "tensorrt":
        fix = explain_tensorrt(python, system_packages) or fix
    raise BackendUnavailable(f"{backend} does not work in the new environment: {reason}; {fix}.")


def explain_tensorrt(python: HostPython, system_packages: bool) -> str | None:
    """What to do where TensorRT does not work in an environment; None where nothing more is known than the backend says itself.

    On a Jetson it comes from apt, for the system's Python.
    """
    if python.has_tensorrt and not system_packages:
        return (
            f"{python.executable} has TensorRT, as from JetPack's apt packages, and the environment was made without --system-site-packages and "
            "does not see it; make the bundle for a Jetson target"
        )
    if not python.has_tensorrt and system_packages:
        own = (
            ""
            if python.executable.startswith("/usr/bin/")
            else ", or give `python` /usr/bin/python3, since apt installs it for that one"
        )
        return f"JetPack's TensorRT comes from apt and not from pip: run sudo apt install python3-libnvinfer{own}"
    return None


_NO_NETWORK = re.compile(
    r"NewConnectionError|NameResolutionError|Temporary failure in name resolution|Network is unreachable|Max retries exceeded|ConnectTimeout|"
    r"ReadTimeout|ProxyError|Connection refused|Connection reset"
)
_FULL = re.compile(r"No space left on device|\[Errno 28\]|Disk quota exceeded")
_REASONS = re.compile(r"^(?:ERROR: |error: |\w*Error: )(.*)")
_EMPTY = re.compile(
    r"Failed to build installable wheels|Failed building wheel|subprocess-exited-with-error|metadata-generation-failed|Could not find a version"
)


def _explain_pip(done: Finished, bundle: Bundle, python: HostPython, offline: bool) -> BackendUnavailable | BundleError:
    text = "\n".join(done.lines)
    said = _last_line(done)
    shown = ".".join(map(str, python.version[:2]))
    if "DO NOT MATCH THE HASHES" in text:
        return BundleError(
            f"A package is not the one that {bundle.manifest.requirements} names by its hash ({said}); do not use it, and make the bundle again."
        )
    if not offline and "certificate is not yet valid" in text:
        return BackendUnavailable(
            "pip refuses the package index, because the clock of this device is wrong (the index's certificate is not yet valid); set the clock, "
            "for example with timedatectl, or make the bundle with `wheels`."
        )
    if not offline and _NO_NETWORK.search(text):
        return BackendUnavailable(
            f"pip cannot reach the package index, and the bundle does not hold all packages ({said}); connect this device, or make the "
            "bundle with `wheels`."
        )
    if "pycuda" in text and re.search(
        r"cuda\.h|nvcc|building wheel for pycuda|build.* pycuda|Python\.h|g\+\+|gcc", text, re.IGNORECASE
    ):
        return BackendUnavailable(
            f"pycuda has no wheel for this device and could not be compiled ({said}): that needs CUDA's headers and nvcc in {CUDA}, g++ and Python's "
            f"headers, so run sudo apt install cuda-toolkit g++ python{shown}-dev and install again."
        )
    if offline:
        return BundleError(
            f"The wheels of the bundle do not suit this device, which has Python {shown} on {os.uname().machine} ({said}); give a `python` that they "
            "are for, or make the bundle for this one."
        )
    if "(from versions: none)" in text:
        return BackendUnavailable(
            f"pip fails ({said}): either it cannot reach the package index, or that has nothing for Python {shown} on {os.uname().machine}; connect "
            "this device, or make the bundle with `wheels`."
        )
    return BackendUnavailable(f"pip failed: {said}; see the log for the whole message, and install again.")


def _last_line(done: Finished) -> str:
    """The last line that says something: an error, else whatever was printed last."""
    lines = [
        printable(line.strip()) for line in done.lines if line.strip() and not line.startswith(("[notice]", "WARNING"))
    ]
    errors = [found[1] for line in lines if (found := _REASONS.match(line)) and found[1] and not _EMPTY.search(line)]
    text = (errors or lines or [f"it ended with code {done.code}"])[-1]
    return text.rstrip(".;: ")[:300]


def _raise_if_full(done: Finished) -> None:
    """Raise the operating system's own error where a program failed because the disk is full."""
    if any(_FULL.search(line) for line in done.lines):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _apt_install(python: HostPython) -> str:
    return f"sudo apt install python{python.version[0]}.{python.version[1]}-venv"


def check_environment(bundle: Bundle, venv: Path) -> int:
    """Hold the files of an environment against the wheels of the bundle that they came from.

    Args:
        bundle: whose files were checked.
        venv: the environment.

    Returns:
        How many files were compared. Those of packages that came from an index are not among them.

    Raises:
        BundleError: a file is missing or was changed; the message names the first one.
    """
    count = 0
    site = _site_packages(venv)
    for wheel in sorted((bundle.path / bundle.manifest.wheel).parent.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            names = [each for each in archive.infolist() if not each.is_dir()]
            # A wheel that was not needed here, as that of pip, or of another Python, left no folder of metadata.
            (about, *_) = sorted({each.filename.partition("/")[0] for each in names if ".dist-info/" in each.filename})
            if not (site / about).is_dir() or not _is_installed(archive, about, site):
                continue
            for each in names:
                if each.filename.startswith(f"{about}/") or ".data/" in each.filename:
                    continue
                try:
                    same = (site / each.filename).read_bytes() == archive.read(each)
                except OSError:
                    same = False
                if not same:
                    raise BundleError(f"{site / each.filename} is not what {wheel.name} has; install the bundle again.")
                count += 1
    return count


def _site_packages(venv: Path) -> Path:
    """The folder of an environment's packages. Raises BundleError where it is damaged."""
    sites = sorted((venv / "lib").glob("python3*/site-packages"))
    if len(sites) != 1 or not (venv / "bin" / "python").exists():
        raise BundleError(f"{venv} is not a whole environment, or its Python was removed; install the bundle again.")
    return sites[0]


def _is_installed(archive: zipfile.ZipFile, about: str, site: Path) -> bool:
    """Whether this very wheel was installed: there may be others of the same version, for other Pythons."""
    try:
        return (site / about / "WHEEL").read_bytes() == archive.read(f"{about}/WHEEL")
    except OSError:
        return False


def environment_inputs(bundle: Bundle, python: HostPython, system_packages: bool) -> Mapping[str, Any]:
    """All that an environment depends on, for the journal."""
    return {
        "bundle": bundle.sha256,
        "python": python.executable,
        "version": list(python.version[:2]),
        "system_packages": system_packages,
    }
