"""The wheels in a bundle: which of them a Python on a machine takes, and what is missing for it.

A wheel's name tells what it is for ("Platform compatibility tags" of the Python Packaging User Guide): the version of Python, the ABI, and the system
with its processor and the oldest glibc. Its metadata names the versions of Python that it supports. pip looks at both, but only when the bundle has
been copied and an environment made.
"""

from __future__ import annotations

import itertools
import os
import re
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from email.parser import Parser
from pathlib import Path

from edge_effdet.device.manifest import Manifest

_WHEEL = re.compile(
    r"(?P<name>[^-]+)-(?P<version>[^-]+)(-\d[^-]*)?-(?P<pythons>[^-]+)-(?P<abis>[^-]+)-(?P<systems>[^-]+)\.whl"
)
_LINE = re.compile(
    r"(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)==(?P<version>[^\s;\\]+)(\s*;\s*python_version == \"(?P<python>[\d.]+)\")?"
)
_OLD_SYSTEMS = {"manylinux1": 5, "manylinux2010": 12, "manylinux2014": 17}
"""The minor version of glibc 2 that the names before PEP 600 stand for."""

_OPERATION = re.compile(r"(~=|==|!=|<=|>=|<|>)\s*([\d.]+?)(\.\*)?")


@dataclass(frozen=True, slots=True)
class Wheel:
    """A wheel, by its file's name.

    Attributes:
        path: the file.
        name: of the package, in lower case with single dashes.
        version: of the package.
        pythons, abis, systems: its tags.
    """

    path: Path
    name: str
    version: str
    pythons: tuple[str, ...]
    abis: tuple[str, ...]
    systems: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WheelHost:
    """What a wheel has to suit.

    Attributes:
        python: the version of CPython, as in 3.10.
        processor: as ``uname`` tells it.
        glibc: the minor version of glibc 2; None where it is not known, and then any will do.
    """

    python: str
    processor: str
    glibc: int | None = None

    def __str__(self) -> str:
        glibc = "" if self.glibc is None else f" with glibc 2.{self.glibc}"
        return f"Python {self.python} on {self.processor}{glibc}"


def read_wheel(path: Path) -> Wheel | None:
    """A wheel by its file's name; None for another file."""
    found = _WHEEL.fullmatch(path.name)
    if found is None:
        return None
    tags = (tuple(found[part].split(".")) for part in ("pythons", "abis", "systems"))
    return Wheel(path, _canonical(found["name"]), found["version"], *tags)


def own_glibc() -> int | None:
    """The minor version of this machine's glibc 2; None where it has none."""
    try:
        found = re.fullmatch(r"glibc 2\.(\d+).*", os.confstr("CS_GNU_LIBC_VERSION") or "")
    except (OSError, ValueError):
        return None
    return int(found[1]) if found else None


def suits(wheel: Wheel, machine: WheelHost) -> bool:
    """Whether pip takes a wheel there: by its name, and by the versions of Python that its metadata allows."""
    minor = int(machine.python.partition(".")[2])
    tags = itertools.product(wheel.pythons, wheel.abis, wheel.systems)
    return any(
        _suits_python(python, abi, minor) and _suits_system(system, abi, machine) for python, abi, system in tags
    ) and _supports(wheel, machine.python)


def metadata_folder(archive: zipfile.ZipFile) -> str:
    """The folder of a wheel's metadata, in the wheel and where it is installed. Its name may be written otherwise than the file's.

    Raises:
        KeyError: there is none.
    """
    for name in archive.namelist():
        if name.partition("/")[0].endswith(".dist-info"):
            return name.partition("/")[0]
    raise KeyError("it has no metadata")


def _suits_python(python: str, abi: str, minor: int) -> bool:
    found = re.fullmatch(r"(cp|py)3(\d*)", python)
    if found is None:
        return False
    own = int(found[2] or 0)
    if found[1] == "py":
        return abi == "none" and own <= minor
    return own <= minor if abi == "abi3" else own == minor and abi in (python, "none")


def _suits_system(system: str, abi: str, machine: WheelHost) -> bool:
    if system == "any":
        # What has an ABI has compiled code.
        return abi == "none"
    if system == f"linux_{machine.processor}":
        return True
    if not system.endswith(f"_{machine.processor}"):
        return False
    found = re.match(r"manylinux_2_(\d+)_", system)
    least = int(found[1]) if found else _OLD_SYSTEMS.get(system.partition("_")[0])
    return least is not None and (machine.glibc is None or least <= machine.glibc)


def _supports(wheel: Wheel, python: str) -> bool:
    """Whether a wheel's metadata allows a version of Python. What cannot be read, or means nothing here, forbids nothing."""
    try:
        with zipfile.ZipFile(wheel.path) as archive:
            text = archive.read(f"{metadata_folder(archive)}/METADATA").decode("utf-8", "replace")
    except (OSError, KeyError, zipfile.BadZipFile):
        return True
    wanted = Parser().parsestr(text, headersonly=True)["Requires-Python"] or ""
    return all(_allows(each.strip(), python) for each in wanted.split(",") if each.strip())


def _allows(operation: str, python: str) -> bool:
    """Whether a condition of ``Requires-Python`` (PEP 440) allows a version whose last part is open, as 3.10 stands for 3.10.4."""
    found = _OPERATION.fullmatch(operation)
    if found is None:
        return True
    sign, digits, any_last = found.groups()
    wanted, have = _numbers(digits), _numbers(python)
    shorter = wanted[: len(have)]
    if sign in ("==", "!="):
        # Of a version in three parts, only some of the Pythons that this one may be are meant.
        return (have[: len(wanted)] == wanted if sign == "==" else have != wanted) if any_last else True
    if sign == "~=":
        return have >= shorter and have[: len(wanted) - 1] == wanted[: len(have)][: len(wanted) - 1]
    if sign in ("<", ">"):
        # Python 3.10.4 is not below 3.10, above it, and below 3.10.5.
        return have < wanted if sign == "<" else have >= shorter
    if sign == "<=":
        return have < wanted if len(wanted) <= len(have) else have <= shorter
    return have >= shorter


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(each) for each in version.split(".") if each)


def needed_wheels(folder: Path, manifest: Manifest, python: str) -> Iterator[tuple[str, list[Wheel]]]:
    """What pip installs of a bundle's wheels.

    Args:
        folder: of the bundle.
        manifest: what it is.
        python: the version of Python that it is installed for, as in 3.10.

    Yields:
        The name of a package and its wheels, for this and for other machines; none where the bundle lacks it. A package that is compiled of its source
        is not among them, nor one that pip fetches from an index.
    """
    own = folder / manifest.wheel
    wheels = [wheel for path in sorted(own.parent.glob("*.whl")) if (wheel := read_wheel(path)) is not None]
    yield from ((wheel.name, [wheel]) for wheel in wheels if wheel.path == own)
    if not manifest.complete:
        return
    sources = [_canonical(path.name) for path in own.parent.iterdir() if path.suffix != ".whl"]
    for name, version in _needed(folder / manifest.requirements, python):
        named = [wheel for wheel in wheels if wheel.name == name]
        if not named and any(source.startswith(f"{name}-") for source in sources):
            continue
        # Wheels of pure Python are there in several versions where the Pythons of a bundle take different ones.
        yield name, [wheel for wheel in named if wheel.version == version] or named


def pythons_of(folder: Path) -> list[str]:
    """The versions of Python for which a folder has wheels with compiled code, as in 3.10."""
    wheels = [wheel for path in folder.glob("*.whl") if (wheel := read_wheel(path)) is not None]
    tags = {tag for wheel in wheels if "abi3" not in wheel.abis for tag in wheel.pythons}
    return [f"3.{minor}" for minor in sorted(int(tag[3:]) for tag in tags if re.fullmatch(r"cp3\d+", tag))]


def pinned_pythons(folder: Path, manifest: Manifest) -> list[str]:
    """The versions of Python that a bundle's file of requirements has lines for; none where its lines are for any."""
    lines = (folder / manifest.requirements).read_text(encoding="utf-8").splitlines()
    found = (_LINE.match(line) for line in lines)
    return sorted({each["python"] for each in found if each is not None and each["python"]})


def _needed(requirements: Path, python: str) -> Iterator[tuple[str, str]]:
    """The packages that a bundle's file of requirements names for a version of Python."""
    for line in requirements.read_text(encoding="utf-8").splitlines():
        found = _LINE.match(line)
        if found is not None and found["python"] in (None, python):
            yield _canonical(found["name"]), found["version"]


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
