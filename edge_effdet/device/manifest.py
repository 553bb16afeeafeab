"""A bundle: a folder with all that a device needs, and the two files that its trust hangs on.

``SHA256SUMS`` has the hash of every other file, in the form of ``sha256sum``, so that ``sha256sum -c SHA256SUMS`` checks a bundle without any
program of ours. Where the bundle is signed, ``SHA256SUMS.minisig`` is the signature over it (``signature``), and it is the one file that has
no hash. ``bundle.json`` says what the bundle is. A file that is missing, changed, added, or a link makes the bundle unusable.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from edge_effdet.artifacts import file_sha256, printable
from edge_effdet.artifacts.reading import from_json, to_json
from edge_effdet.errors import BundleError

BUNDLE_FORMAT = 1
"""The format of ``bundle.json`` that this version writes, and the only one that it reads."""

MANIFEST = "bundle.json"
SUMS = "SHA256SUMS"
SIGNATURE = "SHA256SUMS.minisig"
ENTRY = "edge-effdet"

MOST_BYTES = 8 << 20
"""Of ``SHA256SUMS`` and of ``bundle.json``, which are read whole before anything is known of them. Ten thousand files take 2 MiB."""

_LINE = re.compile(r"([0-9a-f]{64})  ([!-~]+)")
"""A line of ``SHA256SUMS``. Names in a bundle are ours, so they are plain ASCII."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_RELEASE = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9}){0,5}")


@dataclass(frozen=True, slots=True, kw_only=True)
class BundledGraph:
    """A graph in one precision, and what was proven of it on the host. The paths are relative to the bundle.

    Attributes:
        graph: the optimized graph, ONNX.
        record: the record of an engine that the host built of this graph and measured, with its golden pictures (``EngineRecord``).
        layers: the convolutions of the graph and their work (``backends.work.Convolution``), which a device without onnx cannot count.
    """

    graph: str
    record: str
    layers: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a bundle is: ``bundle.json``.

    Attributes:
        format: the format of this file, ``BUNDLE_FORMAT``.
        name: the name under which it is installed: letters, digits, ``.``, ``_`` and ``-``.
        release: numbers with dots between them, by which an update is told from a downgrade.
        created_at: when it was made, ISO 8601 in UTC.
        made_by: the version of edge_effdet that made it, which is the version of its wheel.
        target: a key of ``targets.TARGETS``.
        backend: the backend that compiles and runs the engine there.
        precision: the precision that ``install`` builds unless it is told another.
        graphs: by precision.
        wheel: the wheel of the device side of edge_effdet.
        requirements: pip's file of what the wheel needs there, pinned, with hashes where they were known.
        complete: whether the wheels of all requirements are in the folder ``wheels``, so that the device needs no network.
        trusted_keys: public keys of minisign; where there are any, a device that installs this bundle trusts these from then on, and no others.
    """

    format: int = BUNDLE_FORMAT
    name: str
    release: str
    created_at: str
    made_by: str
    target: str
    backend: str
    precision: str
    graphs: Mapping[str, BundledGraph]
    wheel: str
    requirements: str
    complete: bool
    trusted_keys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require_name(self.name)
        parse_release(self.release)
        if self.precision not in self.graphs:
            raise BundleError(f"The bundle has no graph in its own precision, {self.precision}; make it again.")


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose files were all found to be what they were when it was made.

    Attributes:
        path: the folder.
        manifest: what it is.
        sha256: the hash of its ``SHA256SUMS``, which stands for all of it.
        signed_by: the id of the key whose signature was checked; None where none was, be it that there is none, or no key to check it with.
        archive: the archive of it, where one was written.
    """

    path: Path
    manifest: Manifest
    sha256: str
    signed_by: str | None = None
    archive: Path | None = field(default=None, compare=False)

    @property
    def id(self) -> str:
        """``<release>-<hash>``: the name of its folder among the installed versions."""
        return f"{self.manifest.release}-{self.sha256[:12]}"


def require_name(name: str) -> str:
    """The name, where it can be the name of a folder and of a service. Raises BundleError for another."""
    if not _NAME.fullmatch(name):
        raise BundleError(
            f"{printable(name)!r} cannot be the name of a bundle; take letters, digits, '.', '_' and '-', 64 at most, and begin with a letter or digit."
        )
    return name


def parse_release(release: str) -> tuple[int, ...]:
    """``1.10.2`` to (1, 10, 2), so that releases can be ordered. Raises BundleError for anything else."""
    if not _RELEASE.fullmatch(release):
        raise BundleError(f"{printable(release)!r} is no release; write numbers with dots between them, as in 1.10.2.")
    numbers = [int(each) for each in release.split(".")]
    while len(numbers) > 1 and not numbers[-1]:
        numbers.pop()
    return tuple(numbers)


def write_manifest(folder: Path, manifest: Manifest) -> str:
    """Write ``bundle.json``, and ``SHA256SUMS`` over all files of the folder, which has to be complete but for a signature.

    Returns:
        The hash of ``SHA256SUMS``.
    """
    (folder / MANIFEST).write_text(json.dumps(to_json(manifest), indent=2) + "\n", encoding="ascii")
    names = sorted(name for name in files_of(folder) if name not in (SUMS, SIGNATURE))
    lines = [f"{file_sha256(folder / name)}  {name}\n" for name in names]
    (folder / SUMS).write_text("".join(lines), encoding="ascii")
    return file_sha256(folder / SUMS)


def files_of(folder: Path) -> list[str]:
    """The paths of all files below a folder, relative to it, with ``/``.

    Raises:
        BundleError: something in it is neither a file nor a folder, as a link.
    """
    found: list[str] = []
    for place, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(place, name)
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                raise BundleError(f"{path} is a link or no plain file, which no bundle has; copy the bundle again.")
        found += [Path(place, name).relative_to(folder).as_posix() for name in names]
    return found


def file_sizes(folder: Path) -> dict[str, int]:
    """The bytes of each file below a folder, by its path in it. Raises BundleError as ``files_of`` does."""
    return {name: (folder / name).stat().st_size for name in files_of(folder)}


def is_bundle(folder: Path) -> bool:
    """Whether a folder claims to be a bundle; ``check_files`` and ``read_manifest`` see whether it is one."""
    return (folder / SUMS).is_file() and (folder / MANIFEST).is_file()


def read_bundle(folder: Path, signed_by: str | None = None) -> Bundle:
    """Read a bundle and hold every file against its hash.

    Args:
        folder: the bundle.
        signed_by: the key whose signature over ``SHA256SUMS`` was found right before.

    Raises:
        BundleError: it is none, or a file is missing, changed, added, or a link; the message names the first one.
    """
    sums = read_sums(folder)
    check_files(folder, sums)
    return Bundle(folder, read_manifest(folder), file_sha256(folder / SUMS), signed_by)


def read_sums(folder: Path) -> dict[str, str]:
    """The hash of each file by its name, from ``SHA256SUMS``.

    Raises:
        BundleError: the folder is no bundle, or the file is damaged.
    """
    if not is_bundle(folder):
        raise BundleError(
            f"{folder} is not a bundle, for it has no {SUMS} and {MANIFEST}; give the folder that python -m edge_effdet.deploy wrote, all of it."
        )
    try:
        text = read_bounded(folder / SUMS, MOST_BYTES).decode("ascii")
    except (OSError, ValueError) as error:
        raise _damaged(folder, SUMS, f"cannot be read ({error})") from error
    if not text.endswith("\n"):
        raise _damaged(folder, SUMS, "is cut off")
    sums: dict[str, str] = {}
    for line in text[:-1].split("\n"):
        found = _LINE.fullmatch(line)
        if found is None or found[2] in sums or not _is_inside(found[2]):
            raise _damaged(folder, SUMS, f"has the line {line[:80]!r}")
        sums[found[2]] = found[1]
    return sums


def check_files(folder: Path, sums: Mapping[str, str]) -> None:
    """Hold every file of a bundle against its hash.

    Raises:
        BundleError: a file is missing, changed, added, or a link; the message names the first one.
    """
    present = set(files_of(folder)) - {SUMS, SIGNATURE}
    for name in sorted(sums):
        if name not in present:
            raise _damaged(folder, name, "is missing")
        try:
            right = file_sha256(folder / name) == sums[name]
        except OSError as error:
            raise _damaged(folder, name, f"cannot be read ({error.strerror})") from error
        if not right:
            raise _damaged(folder, name, "is not what it was when the bundle was made (its SHA-256 differs)")
    for name in sorted(present - set(sums)):
        raise BundleError(
            f"{printable(str(folder / name))} does not belong to the bundle; remove it, or copy the bundle again, and keep other files out of it."
        )


def read_manifest(folder: Path) -> Manifest:
    """Read ``bundle.json``. Raises BundleError where it is damaged, of another format, or names files that are not there."""
    try:
        raw = json.loads(read_bounded(folder / MANIFEST, MOST_BYTES).decode("ascii"))
        if isinstance(raw, dict) and raw.get("format") != BUNDLE_FORMAT:
            raise BundleError(
                f"{folder / MANIFEST} is of format {raw.get('format')!r}, and this version of edge_effdet reads format {BUNDLE_FORMAT}; make "
                "the bundle again with this version, or install the version that made it."
            )
        manifest = from_json(Manifest, raw)
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(folder, MANIFEST, f"cannot be read ({error})") from error
    named = [manifest.wheel, manifest.requirements]
    named += [name for each in manifest.graphs.values() for name in (each.graph, each.record, each.layers)]
    for name in named:
        if not _is_inside(name) or not (folder / name).is_file():
            raise _damaged(folder, MANIFEST, f"names {name[:80]!r}, which is not there")
    return manifest


def read_bounded(path: Path, most: int) -> bytes:
    """The content of a file that nobody has checked. Raises ValueError where it has more than ``most`` bytes."""
    with open(path, "rb") as stream:
        size = os.fstat(stream.fileno()).st_size
        # Not more than the limit, of which Python would take the memory for each small file.
        content = b"" if size > most else stream.read(size + 1)
    if max(size, len(content)) > most:
        raise ValueError(f"it has more than {most:,} bytes")
    return content


def _is_inside(name: str) -> bool:
    """Whether a name leads to a file below the folder and is the only way to write it."""
    path = PurePosixPath(name)
    return bool(name) and not path.is_absolute() and ".." not in path.parts and path.as_posix() == name


def _damaged(folder: Path, name: str, what: str) -> BundleError:
    return BundleError(f"{printable(str(folder / name))} {what}, so the bundle cannot be trusted; copy it again.")
