"""Bring the packages of the GPU check to a machine that reaches no index, through a way that takes a few megabytes a call.

    python -m benchmarks.gpu_check_wheels list --python 3.12
    python -m benchmarks.gpu_check_wheels fetch --python 3.12 --work runs/gpu-check-work --output runs/gpu-check
    python benchmarks/gpu_check_wheels.py join runs/gpu-check

``fetch`` downloads what gpu_check_wheels.json names, holds it against the sizes and hashes there, and lays it into ``part-01``, ``part-02`` and so on,
a large wheel in pieces, so that each folder fits into one call; behind the first group go the files that ``gpu_check --prepare`` made. ``join``, on the
other machine, puts the pieces together into the folders ``wheels`` and ``work``, holds the whole files against their hashes, and says which pieces are
still missing. It needs the standard library alone.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

LIST = Path(__file__).with_name("gpu_check_wheels.json")
SUMS = "sums.json"
"""In the first part: the whole files with their bytes, SHA-256 and pieces, by which ``join`` knows what has to be there."""

WHEELS, WORK = "wheels", "work"
"""The folders of the whole files on the other machine."""

PIECE_MIB = 24
"""How large a part is at most. A call takes 64 MiB, of which the checkout itself has 37."""

PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64", "manylinux2014_x86_64")
_BLOCK = 1 << 20


class WheelsError(Exception):
    """What is wrong with a wheel, a piece or an index, in one sentence."""


def read_list(python: str, groups: Sequence[str] = (), path: Path = LIST) -> list[dict[str, Any]]:
    """The packages for one version of Python.

    Args:
        python: such as ``3.12``.
        groups: names of groups; all where it is empty.
        path: the list.

    Returns:
        The rows of the list, each with its ``group``.

    Raises:
        WheelsError: a group is not in the list, or a package of it has no wheel for that Python.
    """
    found = json.loads(path.read_text(encoding="utf-8"))
    known = {group["name"]: group for group in found["groups"]}
    rows: list[dict[str, Any]] = []
    for name in groups or known:
        if name not in known:
            raise WheelsError(f"{path.name} has no group {name}; it has {', '.join(known)}.")
        packages = known[name]["packages"]
        here = [row for row in packages if python in row.get("python", [python])]
        for lacking in sorted({row["name"] for row in packages} - {row["name"] for row in here}):
            raise WheelsError(
                f"{path.name} has no wheel of {lacking} for Python {python}; give {', '.join(found['machine']['python'])}."
            )
        rows += [{**row, "group": name} for row in here]
    return rows


def check_file(path: Path, row: dict[str, Any]) -> None:
    """Hold a file against its bytes and its SHA-256. Raises WheelsError where they differ."""
    size, digest = path.stat().st_size, file_digest(path)
    if (size, digest) != (row["bytes"], row["sha256"]):
        raise WheelsError(
            f"{path.name} has {size} bytes and the hash {digest[:12]}…, and {row['bytes']} and {row['sha256'][:12]}… are expected; bring it again."
        )


def split_files(files: Iterable[tuple[str, Path]], folder: Path, piece_bytes: int) -> list[Path]:
    """Lay files into ``part-01``, ``part-02`` and so on, none larger than ``piece_bytes``, in the order given; one that is larger goes into pieces.

    Args:
        files: ``WHEELS`` or ``WORK``, and a whole file; no two have the same name.
        folder: where the parts are made; parts that are there already are removed.
        piece_bytes: the most bytes of a part.

    Returns:
        The parts. The first one has ``SUMS`` too.
    """
    for old in folder.glob("part-*"):
        shutil.rmtree(old)
    sums: dict[str, Any] = {}
    parts: list[list[tuple[Path, int, int, str]]] = [[]]
    room = piece_bytes
    for kind, path in files:
        size = path.stat().st_size
        pieces: list[str] = []
        # A file that fits into a part is not taken apart.
        if room < size <= piece_bytes:
            parts.append([])
            room = piece_bytes
        begin = 0
        while begin < size or not pieces:
            if room == 0:
                parts.append([])
                room = piece_bytes
            length = min(room, size - begin)
            pieces.append(f"{path.name}.{len(pieces) + 1:03d}")
            parts[-1].append((path, begin, length, pieces[-1]))
            begin, room = begin + length, room - length
        sums[path.name] = {"folder": kind, "bytes": size, "sha256": file_digest(path), "pieces": pieces}
    made = []
    for number, inside in enumerate(parts, 1):
        part = folder / f"part-{number:02d}"
        part.mkdir(parents=True)
        for path, begin, length, name in inside:
            _copy(path, begin, length, part / name)
        made.append(part)
    (made[0] / SUMS).write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")
    return made


def join_files(folder: Path) -> list[str]:
    """Put together what has arrived in the parts of a folder, in its folders ``WHEELS`` and ``WORK``. A file that is whole already stays as it is.

    Args:
        folder: has ``part-01`` and whatever other parts have arrived.

    Returns:
        The names of the pieces that are missing.

    Raises:
        WheelsError: the first part is missing, or a file has another hash than the one that was taken apart.
    """
    sums = folder / "part-01" / SUMS
    if not sums.is_file():
        raise WheelsError(f"{sums} is missing; bring part-01 first.")
    for each in (WHEELS, WORK):
        (folder / each).mkdir(exist_ok=True)
    missing: list[str] = []
    for name, row in json.loads(sums.read_text(encoding="utf-8")).items():
        whole = folder / row["folder"] / name
        if whole.is_file() and whole.stat().st_size == row["bytes"]:
            continue
        found = {piece: next(folder.glob(f"part-*/{_literal(piece)}"), None) for piece in row["pieces"]}
        missing += [piece for piece, path in found.items() if path is None]
        there = [path for path in found.values() if path is not None]
        if len(there) == len(found):
            _join(there, whole, row)
    return missing


def _join(pieces: Sequence[Path], whole: Path, row: dict[str, Any]) -> None:
    """Write a file from its pieces, under its name only when its hash is right."""
    beside = whole.with_name(f"{whole.name}.tmp")
    try:
        with beside.open("wb") as stream:
            for path in pieces:
                with path.open("rb") as piece:
                    shutil.copyfileobj(piece, stream, _BLOCK)
        check_file(beside, row)
        os.replace(beside, whole)
    finally:
        beside.unlink(missing_ok=True)


def fetch_files(rows: Sequence[dict[str, Any]], python: str, interpreter: str, folder: Path) -> list[Path]:
    """Download packages with pip, and make wheels of those that come as source.

    Args:
        rows: of ``read_list``.
        python: the version of the other machine's Python.
        interpreter: a Python of that version on this machine, for packages that are compiled.
        folder: where the files are put.

    Raises:
        WheelsError: pip failed, or a file has another hash than the list.
    """
    files = []
    for row in rows:
        if "build" in row:
            files.append(_build(row, interpreter, folder))
            continue
        words = ["download", "--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", python]
        words += [word for name in PLATFORMS for word in ("--platform", name)]
        words += ["--abi", "cp" + python.replace(".", ""), "--abi", "abi3", "--abi", "none"]
        _run_pip(sys.executable, [*words, "--dest", str(folder), f"{row['name']}=={row['version']}"])
        path = folder / row["file"]
        if not path.is_file():
            raise WheelsError(
                f"pip brought another file of {row['name']} {row['version']} than {row['file']}; bring the list up to date."
            )
        check_file(path, row)
        files.append(path)
    return files


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(_BLOCK), b""):
            digest.update(block)
    return digest.hexdigest()


def _build(row: dict[str, Any], interpreter: str, folder: Path) -> Path:
    """Make a wheel of a source archive, which pip holds against the hash of the list."""
    with tempfile.TemporaryDirectory() as made:
        wanted = Path(made) / "requirements.txt"
        wanted.write_text(f"{row['name']}=={row['version']} --hash=sha256:{row['sha256']}\n", encoding="ascii")
        words = ["wheel", "--no-deps", "--no-binary", row["name"], "--wheel-dir", made, "--requirement", str(wanted)]
        try:
            _run_pip(interpreter, words)
        except WheelsError as error:
            raise WheelsError(f"{error} A wheel of {row['name']} is made {row['build']}.") from error
        (wheel,) = Path(made).glob("*.whl")
        return Path(shutil.move(str(wheel), str(folder / wheel.name)))


def _run_pip(python: str, words: Sequence[str]) -> None:
    done = subprocess.run(
        [python, "-m", "pip", "--quiet", "--disable-pip-version-check", *words],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
        raise WheelsError(f"pip {words[0]} failed ({lines[-1].strip()}).")


def _copy(source: Path, begin: int, length: int, target: Path) -> None:
    with source.open("rb") as stream, target.open("wb") as written:
        stream.seek(begin)
        while length:
            block = stream.read(min(_BLOCK, length))
            written.write(block)
            length -= len(block)


def _literal(name: str) -> str:
    """A name as a pattern that matches it alone."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)


def _show(rows: Sequence[dict[str, Any]]) -> str:
    width = max(len(row["file"]) for row in rows)
    lines = [
        f"{row['group']:<14}{row['file']:<{width + 2}}{row['bytes'] / 2**20:8.1f} MiB  {row['sha256']}" for row in rows
    ]
    total = sum(row["bytes"] for row in rows)
    return "\n".join([*lines, f"{total / 2**20:.1f} MiB, {-(-total // (PIECE_MIB << 20))} parts of {PIECE_MIB} MiB"])


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("list", "fetch"):
        each = verbs.add_parser(verb)
        each.add_argument("--python", default="3.12", metavar="X.Y", help="the other machine's Python (default: 3.12)")
        each.add_argument("--groups", nargs="+", default=[], metavar="G", help="groups of the list (default: all)")
    each.add_argument(
        "--interpreter", default=sys.executable, metavar="F", help="a Python of that version here, for what is compiled"
    )
    each.add_argument("--work", type=Path, metavar="DIR", help="what gpu_check --prepare made, to be brought too")
    each.add_argument("--output", type=Path, required=True, metavar="DIR", help="the folder for the parts")
    each.add_argument(
        "--piece-mib", type=int, default=PIECE_MIB, metavar="N", help=f"the most MiB of a part (default: {PIECE_MIB})"
    )
    each = verbs.add_parser("join")
    each.add_argument(
        "folder", type=Path, help="the folder with the parts; the whole files go into its folders wheels and work"
    )
    arguments = parser.parse_args(argv)
    try:
        if arguments.verb == "join":
            missing = join_files(arguments.folder)
            if missing:
                print("not yet here: " + ", ".join(missing), file=sys.stderr)
            return 0
        rows = read_list(arguments.python, arguments.groups)
        print(_show(rows))
        if arguments.verb == "fetch":
            arguments.output.mkdir(parents=True, exist_ok=True)
            work = [] if arguments.work is None else sorted(path for path in arguments.work.iterdir() if path.is_file())
            with tempfile.TemporaryDirectory(dir=arguments.output) as folder:
                wheels = fetch_files(rows, arguments.python, arguments.interpreter, Path(folder))
                first = sum(row["group"] == rows[0]["group"] for row in rows)
                files = [(WHEELS, path) for path in wheels]
                files[first:first] = [(WORK, path) for path in work]
                for part in split_files(files, arguments.output, arguments.piece_mib << 20):
                    print(part, *(path.name for path in sorted(part.iterdir())))
    except WheelsError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
