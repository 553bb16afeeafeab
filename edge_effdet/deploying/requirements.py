"""What pip installs on the device: exact versions with hashes, and on request the files.

pip itself chooses the versions, for the device's platform and Python. It chooses files by these, but it looks at the conditions of a
requirement (``; python_version < "3.11"``) with its own Python and platform (pypa/pip issue 11664). So what it chose is walked again with the
device's values: what is asked for there and was not chosen is asked for in another round, and what is asked for here alone is left out.

TensorRT is apart. On a Jetson it is JetPack's, which apt installs. On other machines its package on the index is a stub that fetches the
libraries while it is installed, which no hash covers and no bundle can hold. PyCUDA has no wheels, so its source is fetched with what compiles it.
"""

from __future__ import annotations

import json
import logging
import re
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edge_effdet.artifacts import file_sha256, temporary_folder
from edge_effdet.deploying.wheel import requirements_of
from edge_effdet.device.targets import JETPACKS, DeployTarget, get_target
from edge_effdet.errors import InputError, MissingDependency, UsageError

if TYPE_CHECKING:
    from packaging.requirements import Requirement

logger = logging.getLogger("edge_effdet.deploying.requirements")

EXTRAS = {
    "onnxruntime": "ort",
    "onnxruntime-cuda": "ort-cuda",
    "openvino": "openvino",
    "tensorrt": "tensorrt",
    "tensorrt-rtx": "tensorrt-rtx",
}
"""The extra of the package that brings each backend."""

FOR_CAMERAS = ("video", "mqtt", "track")
"""The extras of a device that watches a camera: what reads it, and what sends and follows what is found."""

STUBS = ("tensorrt", "tensorrt-rtx")
"""What is a source archive that fetches its content when pip installs it, or names it as requirements only then, so that no hash covers it."""

_GLIBC_OF_UBUNTU = {"22.04": 35, "24.04": 39}
"""The minor version of glibc 2, which decides which wheels run, by the release of Ubuntu."""

_OLDEST_GLIBC = 35
"""That of other targets, whose system is not known: Ubuntu 22.04 has 2.35, Debian 12 has 2.36. OpenVINO's wheels for Arm need 2.35."""

_ROUNDS = 10
_NO_NETWORK = re.compile(
    r"NewConnectionError|NameResolutionError|Temporary failure|Connect(ion)?Timeout|ReadTimeout|ProxyError|unreachable|Connection (refused|aborted|broken)"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pin:
    """A package in one version, and the file of it that a device takes.

    Attributes:
        name: the package.
        version: its version.
        file: the name of the wheel or source archive.
        sha256: of the file.
        python: the version of the device's Python that the file is for, as in 3.10.
        build_only: whether it is needed to install others and is not installed itself: pip, and what compiles a source.
    """

    name: str
    version: str
    file: str
    sha256: str
    python: str
    build_only: bool = False

    @property
    def is_source(self) -> bool:
        """Whether it is compiled on the device."""
        return not self.file.endswith(".whl")


class _NoNetwork(InputError):
    """pip reached no index."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChosenPackages:
    """What a device is to install, chosen and not yet fetched.

    Attributes:
        target: the machine.
        backend: what runs the engine there.
        pythons: the versions of Python that it is for, as in 3.10.
        pins: the packages, for each of these; None where no index was reached, and the device chooses for itself.
        stubs: requirements that the device's pip has to fetch for itself, which have no hash.
        wheels: whether the files are to be in the bundle.
        video: whether what reads videos and cameras is among the packages.
    """

    target: DeployTarget
    backend: str
    pythons: tuple[str, ...]
    pins: tuple[Pin, ...] | None
    stubs: tuple[str, ...] = ()
    wheels: bool = False
    video: bool = False


def choose_packages(
    target: DeployTarget, backend: str, python: str | None, wheels: bool, video: bool = False
) -> ChosenPackages:
    """Choose what a device installs, and refuse what it cannot: before minutes of work, since the answer does not depend on them.

    Args:
        target: the machine.
        backend: what runs the engine there.
        python: the device's Python, as in 3.10; None for those that the target's systems have, and on a target that is no Jetson for the version
            that runs this.
        wheels: whether the files are to go into the bundle.
        video: whether what reads videos and cameras is among the packages.

    Raises:
        UsageError: the target's systems do not have this Python, or ``wheels`` is asked for with a package that no bundle can hold.
        InputError: a package has no version for this target and Python; or with ``wheels``, there is no network.
        MissingDependency: ``packaging`` is not installed.
    """
    pythons, stubs = _pythons(target, python), tuple(_stubs(target, backend))
    if wheels and stubs:
        raise UsageError(
            f"`wheels` cannot gather {', '.join(map(_name, stubs))} for {target.name}, whose package fetches the libraries while it is installed; "
            "leave `wheels` out, or give another `backend`."
        )
    try:
        sources = _fetch_sources(target, backend)
        pins = tuple(pin for each in pythons for pin in _resolve(target, backend, each, sources, video))
    except _NoNetwork as error:
        if wheels:
            raise
        logger.warning(
            "%s The bundle has the bounds of versions alone, so the device takes the newest ones and checks no hash.",
            error,
        )
        pins = None
    return ChosenPackages(
        target=target, backend=backend, pythons=pythons, pins=pins, stubs=stubs, wheels=wheels, video=video
    )


def write_target_requirements(folder: Path, packages: ChosenPackages) -> bool:
    """Write ``requirements.txt`` of a bundle, and where that is asked for the files of all packages into the folder ``wheels``.

    Args:
        folder: the bundle.
        packages: what ``choose_packages`` gave.

    Returns:
        Whether the bundle has all that pip needs. Without pins ``requirements.txt`` has the bounds of the package in place of versions and hashes.

    Raises:
        InputError: there is no network any more, or a file is another than was chosen.
    """
    path, stubs, target = folder / "requirements.txt", packages.stubs, packages.target
    if packages.pins is None:
        bounds = (*unpinned_requirements(packages.backend, packages.video), *stubs)
        path.write_text("".join(f"{each}\n" for each in bounds), encoding="ascii")
        return False
    if packages.wheels:
        download(packages.pins, folder / "wheels", target.name)
    if stubs:
        logger.warning(
            "%s is fetched by the device and has no hash, so no other package has one either",
            ", ".join(map(_name, stubs)),
        )
    head = f"for {target.name}, {packages.backend}, CPython {', '.join(packages.pythons)}"
    write_requirements(path, packages.pins, stubs, head=head)
    return packages.wheels


def resolve(target: str, backend: str, python: str, video: bool = False) -> list[Pin]:
    """Let pip choose the packages of a device, without TensorRT.

    Args:
        target: a key of ``targets.TARGETS``.
        backend: what runs the engine there.
        python: the device's Python, as in 3.10.
        video: whether what reads videos and cameras is among the packages.

    Returns:
        The packages, by name, and those by which they are installed.

    Raises:
        InputError: there is no network, or a package has no version for this target and Python.
        MissingDependency: ``packaging`` is not installed.
    """
    machine = get_target(target)
    return _resolve(machine, backend, python, _fetch_sources(machine, backend), video)


def _resolve(target: DeployTarget, backend: str, python: str, sources: Sequence[_Source], video: bool) -> list[Pin]:
    platform = _platform_flags(target, python)
    bounds = [*unpinned_requirements(backend, video), *_cuda_bounds(target, backend, python)]
    wanted = [_requirement(text) for text in bounds if _name(text) not in target.compiled]
    wanted += [_requirement(text) for source in sources for text in source.requires]
    pins = [*_choose(wanted, target, python, platform), *(source.pin(python) for source in sources)]
    # Ubuntu's Python has pip only where python3-venv is installed.
    building = [_requirement(text) for text in ("pip", *(text for source in sources for text in source.build_requires))]
    present = {pin.file for pin in pins}
    pins += [pin for pin in _choose(building, target, python, platform, build_only=True) if pin.file not in present]
    return sorted(pins, key=lambda pin: (pin.name.lower(), pin.version))


def unpinned_requirements(backend: str, video: bool = False) -> list[str]:
    """The package's own bounds for a backend, as ``requirements.txt`` takes them, without TensorRT; ``video`` adds ``FOR_CAMERAS``."""
    extras = (EXTRAS[backend], *(FOR_CAMERAS if video else ()))
    found = [text for extra in extras for text in requirements_of(extra)]
    return [text for text in dict.fromkeys(found) if _name(text) not in STUBS]


def _stubs(target: DeployTarget, backend: str) -> list[str]:
    """What the device's pip has to fetch for itself; on a Jetson nothing, where the environment sees the system's."""
    return [] if target.system_packages else [text for text in requirements_of(EXTRAS[backend]) if _name(text) in STUBS]


def write_requirements(path: Path, pins: Iterable[Pin], stubs: Sequence[str] = (), head: str = "") -> None:
    """Write a file of requirements for pip, each with the hash of the one file that is right.

    Where the pins are for several versions of Python, each has its own lines.

    Args:
        path: the file.
        pins: those with ``build_only`` are left out.
        stubs: requirements that have no hash. pip takes hashes for all or for none, so then the pins are written without.
        head: what the comment at its top says.
    """
    kept = [pin for pin in pins if not pin.build_only]
    several = len({pin.python for pin in kept}) > 1
    lines = [f"# {head}\n"] if head else []
    for pin in sorted(kept, key=lambda pin: (pin.name.lower(), pin.python)):
        condition = f' ; python_version == "{pin.python}"' if several else ""
        digest = "" if stubs else f" \\\n    --hash=sha256:{pin.sha256}"
        lines.append(f"{pin.name}=={pin.version}{condition}{digest}\n")
    path.write_text("".join([*lines, *(f"{text}\n" for text in stubs)]), encoding="ascii")


def download(pins: Sequence[Pin], folder: Path, target: str) -> None:
    """Fetch the files of pins, and check their hashes.

    Args:
        pins: as ``resolve`` gave them.
        folder: it is made where it is missing.
        target: a key of ``targets.TARGETS``.

    Raises:
        InputError: there is no network, or a file is another than was chosen.
    """
    folder.mkdir(parents=True, exist_ok=True)
    groups: dict[tuple[str, bool, bool], list[Pin]] = {}
    for pin in pins:
        groups.setdefault((pin.python, pin.is_source, pin.build_only), []).append(pin)
    with temporary_folder() as aside:
        for (python, is_source, _), group in groups.items():
            listed = aside / "requirements.txt"
            listed.write_text("".join(f"{pin.name}=={pin.version} --hash=sha256:{pin.sha256}\n" for pin in group))
            names = ",".join(pin.name for pin in group)
            flags = ["--no-binary", names] if is_source else _platform_flags(get_target(target), python)
            _run_pip("download", "--no-deps", "--require-hashes", "-r", str(listed), "-d", str(folder), *flags)
    for pin in pins:
        path = folder / pin.file
        if not path.is_file() or file_sha256(path) != pin.sha256:
            raise InputError(f"pip fetched another file than {pin.file}, which it had chosen before; run this again.")


def _pythons(target: DeployTarget, python: str | None) -> tuple[str, ...]:
    if python is not None and python not in target.pythons:
        raise UsageError(
            f"{target.title} has Python {' or '.join(target.pythons)} and not {python}; give one of these as `python`."
        )
    if python is not None:
        return (python,)
    return target.pythons if target.is_jetson else (f"{sys.version_info.major}.{sys.version_info.minor}",)


def _cuda_bounds(target: DeployTarget, backend: str, python: str) -> list[str]:
    """The newest major version of cuda-bindings that the CUDA of every JetPack with this Python has, since another one may ask for a newer driver."""
    majors = [int(row.cuda.split(".")[0]) for row in _jetpacks(target, python)]
    return [f"cuda-bindings<{min(majors) + 1}"] if backend == "tensorrt" and majors else []


def _jetpacks(target: DeployTarget, python: str) -> list[Any]:
    return [JETPACKS[version] for version in target.jetpacks if JETPACKS[version].python == python]


def _platform_flags(target: DeployTarget, python: str) -> list[str]:
    """The flags by which pip takes wheels for the device in place of this machine, newest first."""
    newest = min((_GLIBC_OF_UBUNTU[row.ubuntu] for row in _jetpacks(target, python)), default=_OLDEST_GLIBC)
    oldest = 5 if target.machine == "x86_64" else 17
    names = [f"manylinux_2_{minor}" for minor in range(newest, oldest - 1, -1)] + ["manylinux2014"]
    # The names before PEP 600 and those of earlier years are for x86-64 alone.
    names += ["manylinux2010", "manylinux1"] if target.machine == "x86_64" else []
    flags = [flag for name in (*names, "linux") for flag in ("--platform", f"{name}_{target.machine}")]
    return [*flags, "--implementation", "cp", "--python-version", python, "--only-binary", ":all:"]


def _environment(target: DeployTarget, python: str) -> dict[str, str]:
    """The device's values of all that a condition may ask for (PEP 508)."""
    return {
        "implementation_name": "cpython",
        "implementation_version": f"{python}.0",
        "os_name": "posix",
        "platform_machine": target.machine,
        "platform_python_implementation": "CPython",
        "platform_release": "",
        "platform_system": "Linux",
        "platform_version": "",
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": "linux",
    }


def _choose(
    wanted: Sequence[Requirement], target: DeployTarget, python: str, platform: Sequence[str], build_only: bool = False
) -> list[Pin]:
    """What pip chooses for requirements, and for those that these have on the device."""
    environment = _environment(target, python)
    asked = [each for each in wanted if each.marker is None or each.marker.evaluate(environment)]
    missing: list[Requirement] = []
    for _ in range(_ROUNDS):
        items = _report(asked, platform)
        reached, missing = _walk(asked, items, environment)
        if not missing:
            return [_pin(items[name], python, build_only) for name in sorted(reached)]
        asked += missing
    raise InputError(
        f"pip finds no packages that fit together for {target.name} with Python {python}: {missing[0]} stays open; give another `python`."
    )


def _walk(
    roots: Sequence[Requirement], items: Mapping[str, Any], environment: Mapping[str, str]
) -> tuple[set[str], list[Requirement]]:
    """Follow requirements on the device.

    Returns:
        The names of the items that are needed there, and the requirements that no item meets.
    """
    from packaging.utils import canonicalize_name

    seen: set[tuple[str, str]] = set()
    missing: dict[str, Requirement] = {}
    queue = list(roots)
    while queue:
        need = queue.pop()
        name = canonicalize_name(need.name)
        item = items.get(name)
        if item is None or not need.specifier.contains(item["metadata"]["version"], prereleases=True):
            missing[str(need)] = need
            continue
        for extra in ("", *need.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            for text in item["metadata"].get("requires_dist", ()):
                each = _requirement(text)
                if each.marker is None or each.marker.evaluate({**environment, "extra": extra}):
                    each.marker = None
                    queue.append(each)
    return {name for name, _ in seen}, list(missing.values())


def _report(asked: Sequence[Requirement], flags: Sequence[str]) -> dict[str, Any]:
    """What pip would install, by canonical name, as its installation report has it (version 1, since pip 23.0)."""
    from packaging.utils import canonicalize_name

    with temporary_folder() as aside:
        path = aside / "report.json"
        # The folder is never written; pip allows other platforms with it alone.
        place = ["--dry-run", "--ignore-installed", "--target", str(aside / "target"), "--report", str(path)]
        texts = [_without_marker(each) for each in asked]
        _run_pip("install", *place, *flags, *texts)
        found = json.loads(path.read_text(encoding="utf-8"))
    return {canonicalize_name(item["metadata"]["name"]): item for item in found["install"]}


def _pin(item: Mapping[str, Any], python: str, build_only: bool = False) -> Pin:
    told = item["download_info"]
    return Pin(
        name=item["metadata"]["name"],
        version=item["metadata"]["version"],
        file=told["url"].partition("#")[0].rpartition("/")[2],
        sha256=told["archive_info"]["hashes"]["sha256"],
        python=python,
        build_only=build_only,
    )


@dataclass(frozen=True, slots=True)
class _Source:
    """A source archive: its hash, what it needs to run, and what it needs to be compiled."""

    name: str
    version: str
    file: str
    sha256: str
    requires: tuple[str, ...]
    build_requires: tuple[str, ...]

    def pin(self, python: str) -> Pin:
        return Pin(name=self.name, version=self.version, file=self.file, sha256=self.sha256, python=python)


def _fetch_sources(target: DeployTarget, backend: str) -> list[_Source]:
    """Fetch the newest source archives of what the target compiles, and read what they need."""
    needs = [_requirement(text) for text in unpinned_requirements(backend) if _name(text) in target.compiled]
    return [_fetch_source(need) for need in needs]


def _fetch_source(need: Requirement) -> _Source:
    import tomllib

    with temporary_folder() as aside:
        _run_pip("download", "--no-deps", "--no-binary", need.name, "-d", str(aside), _without_marker(need))
        (archive,) = aside.iterdir()
        with tarfile.open(archive) as tar:
            about = Parser().parsestr(_read_member(tar, "PKG-INFO"))
            build = tomllib.loads(_read_member(tar, "pyproject.toml"))["build-system"]["requires"]
        return _Source(
            name=about["Name"],
            version=about["Version"],
            file=archive.name,
            sha256=file_sha256(archive),
            requires=tuple(about.get_all("Requires-Dist") or ()),
            build_requires=tuple(build),
        )


def _read_member(tar: tarfile.TarFile, name: str) -> str:
    """A file at the top of a source archive."""
    (member,) = (each for each in tar.getmembers() if each.name.count("/") == 1 and each.name.endswith(f"/{name}"))
    content = tar.extractfile(member)
    assert content is not None
    return content.read().decode()


def _run_pip(command: str, *arguments: str) -> None:
    """Run pip. Raises InputError where it fails."""
    flags = ["--disable-pip-version-check", "--no-input", "--quiet", "--retries", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "pip", command, *flags, *arguments], capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return
    if "No module named pip" in done.stderr:
        raise MissingDependency("pip", "deploy", "to choose the packages of a device")
    if _NO_NETWORK.search(done.stderr):
        raise _NoNetwork(
            "pip reaches no package index, so the packages of the device could not be chosen; connect this machine to a network."
        )
    errors = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
    raise InputError(
        f"pip finds no packages for this target and Python ({(errors or done.stderr.splitlines() or ['no reason given'])[-1][:300]}); "
        "give another `python` or `backend`."
    )


def _requirement(text: str) -> Requirement:
    try:
        from packaging.requirements import Requirement
    except ModuleNotFoundError as error:
        raise MissingDependency("packaging", "deploy", "to choose the packages of a device") from error
    return Requirement(text)


def _without_marker(need: Requirement) -> str:
    return str(need).partition(";")[0].strip()


def _name(text: str) -> str:
    """The name that a requirement begins with."""
    found = re.match(r"[A-Za-z0-9._-]+", text)
    assert found is not None
    return found[0].lower().replace("_", "-")
