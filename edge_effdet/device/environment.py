"""The virtual environment of a version: made with the device's own Python, filled from the bundle's wheels, and tried before it is used.

pip comes out of its wheel, which the bundle brings or ``ensurepip`` has, and is not installed by ``ensurepip``: unpacking takes less time, much less
under emulation, and works where Debian's package of ``ensurepip`` is missing.
"""

from __future__ import annotations

import ast
import errno
import json
import logging
import os
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_effdet.artifacts import printable
from edge_effdet.device.interpreter import DevicePython, apt_install
from edge_effdet.device.manifest import Bundle
from edge_effdet.device.steps import Finished, run_program
from edge_effdet.device.wheels import Wheel, metadata_folder, needed_wheels
from edge_effdet.errors import BackendUnavailable, BundleError

logger = logging.getLogger("edge_effdet.device")

CUDA = Path("/usr/local/cuda")
"""Where JetPack and NVIDIA's packages put CUDA, which is not on the PATH there."""


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


def find_pip(bundle: Bundle, python: DevicePython) -> Path:
    """The wheel of pip: the bundle's, else the one of the Python. Raises BackendUnavailable where there is none."""
    bundled = sorted((bundle.path / bundle.manifest.wheel).parent.glob("pip-*.whl"))
    if bundled:
        return bundled[-1]
    if python.pip_wheel is None:
        raise BackendUnavailable(
            f"{python.executable} has no ensurepip, which brings pip; run {apt_install(python)}, or make the bundle with `wheels`."
        )
    return Path(python.pip_wheel)


def make_environment(
    bundle: Bundle, venv: Path, python: DevicePython, system_packages: bool, lock: int | None = None
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
            f"{python.executable} -m venv failed: {_last_line(done)}; see whether {apt_install(python)} mends that, or give another `python`."
        )
    # Not run from inside the wheel: pip starts itself once more to compile a package, which it cannot do from a zip file.
    try:
        with zipfile.ZipFile(pip) as archive:
            archive.extractall(_site_packages(venv))
    except zipfile.BadZipFile as error:
        raise BackendUnavailable(f"{pip} is damaged ({error}); run {apt_install(python)} again.") from error
    wheels = (bundle.path / bundle.manifest.wheel).parent
    requirements = bundle.path / bundle.manifest.requirements
    offline, hashed = bundle.manifest.complete, "--hash=" in requirements.read_text(encoding="utf-8")
    where = [*(["--no-index"] if offline else []), "--find-links", wheels]
    # Of all that it installs pip then wants a hash, be it named by the bundle or by somebody else.
    where += ["--require-hashes"] if offline or hashed else []
    reaching = {} if offline else read_pip_settings(venv, lock)
    if reaching and not hashed:
        logger.warning(
            "the bundle knows no hashes of its packages, and this device's settings of pip say where they are fetched (%s): what lies there is installed",
            ", ".join(reaching),
        )
    _install([*where, "--requirement", requirements], bundle, venv, python, lock, reaching)
    _install(["--no-index", "--no-deps", bundle.path / bundle.manifest.wheel], bundle, venv, python, lock)
    return try_environment(venv, bundle.manifest.backend, python, system_packages, lock)


def _install(
    what: Sequence[str | Path],
    bundle: Bundle,
    venv: Path,
    python: DevicePython,
    lock: int | None,
    reaching: Mapping[str, str] | None = None,
) -> None:
    offline = "--no-index" in what
    command = [venv / "bin" / "python", "-I", "-m", "pip", "install", *_PIP_FLAGS]
    command += ["--no-cache-dir"] if offline else []
    done = run_program([*command, *what], lock, build_environment(reaching or {}))
    if done.code:
        _raise_if_full(done)
        raise _explain_pip(done, bundle, python, offline)


_REACHING = (
    "cert",
    "client-cert",
    "default-timeout",
    "extra-index-url",
    "find-links",
    "index-url",
    "keyring-provider",
    "no-index",
    "proxy",
    "pypi-url",
    "retries",
    "timeout",
    "trusted-host",
)
"""pip's settings that say where packages are fetched and how that place is reached, as behind a company's mirror or proxy. All others have no say: they
would install elsewhere (target, prefix), install more (requirement), or otherwise than the bundle says (constraint, no-deps)."""


def read_pip_settings(venv: Path, lock: int | None = None) -> dict[str, str]:
    """What this device tells pip of where packages are fetched and how.

    Args:
        venv: an environment with pip.
        lock: of the installation.

    Returns:
        Variables for pip's environment, of ``_REACHING`` alone. They come from the user's variables and from pip's files for the system and the user.
    """
    done = run_program([venv / "bin" / "python", "-I", "-m", "pip", "config", "list"], lock, answers=True)
    if done.code:
        logger.warning("this device's settings of pip cannot be read and are left out: %s", _last_line(done))
        return {}
    # In the order in which pip lets one override the other.
    found: dict[str, dict[str, str]] = {"global": {}, "install": {}, ":env:": {}}
    for line in done.answer.splitlines():
        key, _, value = line.partition("=")
        section, _, name = key.partition(".")
        if section in found and name in _REACHING:
            found[section][name] = str(ast.literal_eval(value))
    merged = {name: value for section in found.values() for name, value in section.items() if value}
    return {f"PIP_{name.upper().replace('-', '_')}": value for name, value in sorted(merged.items())}


def build_environment(reaching: Mapping[str, str], cuda: Path = CUDA) -> dict[str, str]:
    """The environment variables for pip and for what it starts, which may have to compile pycuda.

    Args:
        reaching: pip's settings that count (``read_pip_settings``). No others do, nor its files, nor what leads a Python to other modules.
        cuda: CUDA's folder; where it is there, its compiler is on the PATH and ``CUDA_ROOT`` is set.
    """
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "PYTHON"))}
    variables |= {**reaching, "PIP_CONFIG_FILE": os.devnull}
    if (cuda / "bin").is_dir():
        variables["PATH"] = os.pathsep.join([str(cuda / "bin"), variables.get("PATH", os.defpath)])
        variables.setdefault("CUDA_ROOT", str(cuda))
    return variables


def try_environment(
    venv: Path, backend: str, python: DevicePython, system_packages: bool, lock: int | None = None
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


def explain_tensorrt(python: DevicePython, system_packages: bool) -> str | None:
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


def _explain_pip(
    done: Finished, bundle: Bundle, python: DevicePython, offline: bool
) -> BackendUnavailable | BundleError:
    text = "\n".join(done.lines)
    said = _last_line(done)
    shown = python.version
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


def check_environment(bundle: Bundle, venv: Path) -> int:
    """Hold the files of an environment against the wheels of the bundle that they came from.

    Args:
        bundle: whose files were checked.
        venv: the environment.

    Returns:
        How many files were compared. Those of packages that came from an index, or were compiled, are not among them.

    Raises:
        BundleError: a package or a file is missing or was changed; the message names the first one.
    """
    count = 0
    site = _site_packages(venv)
    for name, wheels in needed_wheels(bundle.path, bundle.manifest, site.parent.name.removeprefix("python")):
        wheel = next((each for each in wheels if _is_installed(each, site)), None)
        if wheel is None:
            # A package of the system's Python may have stood in for it, which then left nothing here.
            if _sees_system(venv) and not any(_left_files(each, site) for each in wheels):
                continue
            raise BundleError(f"{venv} does not have {name} as the bundle has it; install the bundle again.")
        with zipfile.ZipFile(wheel.path) as archive:
            for each in _own_files(archive):
                try:
                    same = (site / each).read_bytes() == archive.read(each)
                except OSError:
                    same = False
                if not same:
                    raise BundleError(f"{site / each} is not what {wheel.path.name} has; install the bundle again.")
                count += 1
    return count


def _own_files(archive: zipfile.ZipFile) -> list[str]:
    """The files of a wheel that pip unpacks into the folder of the packages as they are, without its metadata."""
    about = metadata_folder(archive)
    names = [each.filename for each in archive.infolist() if not each.is_dir()]
    return [name for name in names if not name.startswith(f"{about}/") and ".data/" not in name]


def _left_files(wheel: Wheel, site: Path) -> bool:
    with zipfile.ZipFile(wheel.path) as archive:
        return any((site / name).exists() for name in _own_files(archive))


def _sees_system(venv: Path) -> bool:
    """Whether an environment sees the packages of the Python that it was made with."""
    try:
        return "include-system-site-packages = true" in (venv / "pyvenv.cfg").read_text(encoding="utf-8")
    except OSError:
        return False


def _site_packages(venv: Path) -> Path:
    """The folder of an environment's packages. Raises BundleError where it is damaged."""
    sites = sorted((venv / "lib").glob("python3*/site-packages"))
    if len(sites) != 1 or not (venv / "bin" / "python").exists():
        raise BundleError(f"{venv} is not a whole environment, or its Python was removed; install the bundle again.")
    return sites[0]


def _is_installed(wheel: Wheel, site: Path) -> bool:
    """Whether this very wheel was installed: there may be others of the same version, for other Pythons."""
    try:
        with zipfile.ZipFile(wheel.path) as archive:
            about = f"{metadata_folder(archive)}/WHEEL"
            return (site / about).read_bytes() == archive.read(about)
    except (OSError, KeyError):
        return False


def environment_inputs(bundle: Bundle, python: DevicePython, system_packages: bool) -> Mapping[str, Any]:
    """All that an environment depends on, for the journal."""
    return {
        "bundle": bundle.sha256,
        "python": python.executable,
        "version": [int(each) for each in python.version.split(".")],
        "system_packages": system_packages,
    }
