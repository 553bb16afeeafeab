"""The wheel of the device side: the part of edge_effdet that a device runs, without training, export and the shipped model.

It is written here and not by a build backend, because it is made from the package as it is installed, where no source tree need be. The
form is that of the specification "Binary distribution format" of the Python Packaging User Guide.
"""

from __future__ import annotations

import base64
import hashlib
import re
import time
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from edge_effdet.artifacts import atomic_output
from edge_effdet.deploying.archive import EPOCH
from edge_effdet.errors import InputError

PARTS = (
    "__init__.py",
    "__main__.py",
    "artifacts",
    "backends",
    "cli.py",
    "detect.py",
    "device",
    "errors.py",
    "options.py",
    "py.typed",
    "runtime",
    "sending",
    "serve.py",
    "serving",
    "signals.py",
)
"""What is in the wheel, by its place in the package."""

EXTRAS = ("mqtt", "openvino", "ort", "ort-cuda", "serve", "tensorrt", "tensorrt-rtx", "track", "video")
"""The extras of the package that the wheel has: one for each backend, and what a device may be asked for beside detecting."""

_DISTRIBUTION = "edge-effdet"
_HEADERS = ("Metadata-Version", "Name", "Version", "Summary", "Requires-Python")
_LICENSE = ("License-Expression: Apache-2.0", "License-File: LICENSE")
"""Of the code alone: the photographs, which are under MIT, are not in the wheel."""

_DESCRIPTION = "The part of edge_effdet that a device runs: detection, serving, and the installer of bundles. The host has the whole package."
_EXTRA = re.compile(r"""extra\s*==\s*['"]([^'"]+)['"]""")


def write_device_wheel(folder: Path) -> Path:
    """Write the wheel of the device side; the same package gives the same bytes.

    Args:
        folder: it is made where it is missing.

    Returns:
        The wheel ``edge_effdet-<version>-py3-none-any.whl`` in it.

    Raises:
        InputError: the folder cannot be written, or the installed package has no metadata.
    """
    try:
        distribution = metadata.distribution(_DISTRIBUTION)
    except metadata.PackageNotFoundError as error:
        raise InputError(
            "edge_effdet is not installed, so the version and the requirements of its wheel are unknown; run pip install -e . in its folder."
        ) from error
    stem = f"edge_effdet-{distribution.version}"
    info = f"{stem}.dist-info"
    contents = dict(_package_files())
    contents[f"{info}/METADATA"] = _metadata(distribution).encode()
    contents[f"{info}/WHEEL"] = (
        b"Wheel-Version: 1.0\nGenerator: edge_effdet\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    )
    license_text = distribution.read_text("licenses/LICENSE")
    if license_text is not None:
        contents[f"{info}/licenses/LICENSE"] = license_text.encode()
    rows = [f"{name},sha256={_digest(content)},{len(content)}\n" for name, content in sorted(contents.items())]
    contents[f"{info}/RECORD"] = "".join([*rows, f"{info}/RECORD,,\n"]).encode()
    path = folder / f"{stem}-py3-none-any.whl"
    with atomic_output(path) as temporary, zipfile.ZipFile(temporary, "w") as archive:
        # The metadata stands last, as the specification recommends.
        for name in sorted(contents, key=lambda each: (each.startswith(info), each)):
            entry = zipfile.ZipInfo(name, time.gmtime(EPOCH)[:6])
            entry.compress_type, entry.external_attr = zipfile.ZIP_DEFLATED, 0o100644 << 16
            # Else the byte tells on which system the wheel was written.
            entry.create_system = 3
            archive.writestr(entry, contents[name], compresslevel=9)
    return path


def requirements_of(extra: str) -> list[str]:
    """The requirements of the installed package and of one of its extras, each with its marker but without that of the extra.

    Raises:
        InputError: the package is not installed.
    """
    try:
        given = metadata.requires(_DISTRIBUTION) or []
    except metadata.PackageNotFoundError as error:
        raise InputError(
            "edge_effdet is not installed, so its requirements are unknown; run pip install -e . in its folder."
        ) from error
    found = []
    for text in given:
        name, _, marker = (part.strip() for part in text.partition(";"))
        extras = _EXTRA.findall(marker)
        if extras and extras != [extra]:
            continue
        rest = re.sub(r"\s*\band\s*$", "", _EXTRA.sub("", marker)).strip()
        found.append(f"{name}; {rest}" if rest else name)
    return found


def _package_files() -> Iterator[tuple[str, bytes]]:
    """The files of the parts and their contents, by their names in the wheel."""
    root = Path(__file__).parents[1]
    for part in PARTS:
        found = sorted((root / part).rglob("*")) if (root / part).is_dir() else [root / part]
        for path in found:
            inside = path.relative_to(root.parent)
            # Neither compiled files nor what editors leave.
            if path.is_file() and "__pycache__" not in inside.parts and not path.name.startswith("."):
                yield inside.as_posix(), path.read_bytes()


def _metadata(distribution: metadata.Distribution) -> str:
    """The metadata of the installed package, with the extras of the device alone."""
    given = distribution.metadata
    lines = [f"{name}: {value}" for name in _HEADERS for value in given.get_all(name) or ()]
    lines += _LICENSE
    for text in distribution.requires or []:
        extras = _EXTRA.findall(text)
        if not extras or all(each in EXTRAS for each in extras):
            lines.append(f"Requires-Dist: {text}")
    lines += [f"Provides-Extra: {extra}" for extra in EXTRAS]
    return "\n".join([*lines, "Description-Content-Type: text/markdown", "", _DESCRIPTION, ""])


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
