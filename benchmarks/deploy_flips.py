"""Whether a bundle in which one byte was changed is refused, wherever the byte is.

python -m benchmarks.deploy_flips --bundle bundles/bccd-1.0-x86-cpu

A copy of the bundle is signed with a key that is made for the run. Then one byte after the other is changed, checked as ``install`` checks a
bundle, with the key trusted and without any key, and set back. One more byte of each file is checked by the bundle's own entry.
"""

from __future__ import annotations

import argparse
import logging
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.latency import positive
from benchmarks.machine import save_result
from benchmarks.parser import make_parser
from edge_effdet.cli import Result, progress, run_verb, table
from edge_effdet.deploying.signing import make_keys, sign_file
from edge_effdet.device.manifest import ENTRY, SUMS, files_of, read_bundle
from edge_effdet.device.signature import require_trusted
from edge_effdet.errors import BundleError


@dataclass
class Tally:
    """What became of the changes to one file.

    Attributes:
        size: of the file, bytes.
        flips: how many bytes were changed, one at a time.
        with_key: how many of them were refused where the key is trusted.
        without_key: how many of them were refused where no key is.
        by_entry: whether ``./edge-effdet verify`` refused a change too.
    """

    size: int
    flips: int = 0
    with_key: int = 0
    without_key: int = 0
    by_entry: bool = False


def flip_bytes(bundle: Path, key: str, count: int, seed: int) -> dict[str, Tally]:
    """Change one byte after the other of a signed bundle and see whether it is refused.

    Args:
        bundle: a copy that nothing else uses.
        key: the public key that signed it.
        count: how many bytes; they are spread over the files evenly, and over the bytes of each at random.
        seed: of the draws.

    Returns:
        What became of them, by file.
    """
    require_trusted(bundle, [key], required=True)
    read_bundle(bundle)
    draws = random.Random(seed)
    tallies = {name: Tally((bundle / name).stat().st_size) for name in sorted(files_of(bundle))}
    names = [name for name, tally in tallies.items() if tally.size]
    for number in progress(range(count), count, "bytes"):
        name = names[number % len(names)]
        tally = tallies[name]
        with _one_byte_changed(bundle / name, draws):
            tally.flips += 1
            tally.with_key += _is_refused(bundle, [key])
            tally.without_key += _is_refused(bundle, [])
    for name in names:
        with _one_byte_changed(bundle / name, draws):
            tallies[name].by_entry = _entry_refuses(bundle, key)
    read_bundle(bundle)
    return tallies


@contextmanager
def _one_byte_changed(path: Path, draws: random.Random) -> Iterator[None]:
    with open(path, "r+b") as stream:
        place = draws.randrange(path.stat().st_size)
        stream.seek(place)
        before = stream.read(1)
        _write(stream, place, bytes([before[0] ^ draws.randrange(1, 256)]))
        try:
            yield
        finally:
            _write(stream, place, before)


def _write(stream: Any, place: int, content: bytes) -> None:
    stream.seek(place)
    stream.write(content)
    stream.flush()


def _is_refused(bundle: Path, keys: Sequence[str]) -> bool:
    try:
        read_bundle(bundle, require_trusted(bundle, keys, required=bool(keys)))
    except BundleError:
        return True
    return False


def _entry_refuses(bundle: Path, key: str) -> bool:
    with tempfile.TemporaryDirectory() as root:
        command = [sys.executable, str(bundle / ENTRY), "verify", "--public-key", key, "--root", root]
        return subprocess.run(command, capture_output=True, check=False).returncode != 0


def _run(arguments: argparse.Namespace) -> Result:
    # Each of the changes has its warning.
    logging.getLogger("edge_effdet.device.signature").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as aside:
        copy = Path(aside, "bundle")
        shutil.copytree(arguments.bundle, copy)
        key = make_keys(Path(aside, "keys"), None)
        sign_file(copy / SUMS, key)
        manifest = read_bundle(copy).manifest
        # Else the refusals below would say nothing.
        if _entry_refuses(copy, key.public):
            raise BundleError(f"The entry of {arguments.bundle} refuses the bundle as it is; make the bundle again.")
        tallies = flip_bytes(copy, key.public, arguments.flips, arguments.seed)
    rows = [{"file": name, **vars(tally)} for name, tally in tallies.items()]

    def total(field: str) -> int:
        return sum(int(row[field]) for row in rows)

    result = {
        "bundle": f"{manifest.name}-{manifest.release}-{manifest.target}",
        "bytes": total("size"),
        "seed": arguments.seed,
        "flips": total("flips"),
        "refused_with_key": total("with_key"),
        "refused_without_key": total("without_key"),
        "files": len(rows),
        "refused_by_entry": total("by_entry"),
        "rows": rows,
    }
    path = save_result("deploy-flips", result)
    shown = [("file", "bytes", "changed", "refused, key trusted", "refused, no key", "by the entry")]
    for name, tally in tallies.items():
        counts = (str(tally.size), str(tally.flips), str(tally.with_key), str(tally.without_key))
        shown.append((name, *counts, "yes" if tally.by_entry else "no"))
    summary = (
        f"{result['refused_with_key']} of {result['flips']} were refused with a trusted key, {result['refused_without_key']} by the hashes alone, "
        f"and {result['refused_by_entry']} of {result['files']} by ./{ENTRY} verify"
    )
    return Result(f"{table(shown)}\n\n{summary}\n{path}", result)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        "deploy_flips",
        "Whether a bundle in which one byte was changed is refused.",
        "--bundle bundles/bccd-1.0-x86-cpu",
    )
    parser.add_argument(
        "--bundle", type=Path, required=True, metavar="DIR", help="a bundle that deploy wrote; it is copied"
    )
    parser.add_argument(
        "--flips", type=positive, default=1000, metavar="N", help="how many bytes are changed (default: 1000)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the draws (default: 0)")
    return run_verb(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
