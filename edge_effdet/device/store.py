"""What is installed on a device under one name: the versions side by side, and the link that says which of them runs.

A device loses its power at any moment. So a version is whole, and on the disk (``durable``), before the link ``current`` leads to it, and the link is
replaced in one step.

Which version came when is told by a number that each installation counts up, and never by the clock: a Jetson without a battery for it starts in 1970.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edge_effdet.artifacts import json_text, printable
from edge_effdet.artifacts.reading import to_json
from edge_effdet.artifacts.temporary import is_temporary, remove_leftovers
from edge_effdet.device.durable import remove_path, sync_all, sync_folder, telling_errors, write_durably
from edge_effdet.device.manifest import ENTRY, require_name
from edge_effdet.device.signature import read_public_key
from edge_effdet.device.version import (
    COMPLETE,
    REQUEST,
    STANDING,
    Standing,
    Version,
    VersionRecord,
    read_json,
    read_record,
)
from edge_effdet.errors import BundleError, InputError, UsageError

STORE_FORMAT = 1
"""The format of the folder that this version writes, and the only one that it reads."""

MARKER = "edge-effdet.json"
LOCK = "lock"
VERSIONS = "versions"
CURRENT = "current"
KEYS = "keys"
CONFIG = "config.json"
SERVICE = "service.json"
CACHE = "cache"
LOG = "log"
STATE = "state"

ROLLBACK = "rollback.json"
"""What a rollback is about to do, until it is done."""

_LEFT = re.compile(r"\.gone-.+|\.current\.\d+")
"""What a run that was killed leaves, besides temporary files: a version on its way out, and a link that was not moved yet."""

_GONE = ".gone-"
"""What the name of a version begins with while it is removed, so that what is left of it after a kill is never taken for a version."""

_ENTRY_TEXT = """\
#!/bin/sh
# Written by edge-effdet install. Runs the version that the link "current" leads to while it starts: a program that
# is running keeps its own version when the link is switched.
store=$(CDPATH= cd -- "$(dirname -- "$(readlink -f -- "$0")")" && pwd -P) || exit 2
version=$(readlink -f -- "$store/current")
if [ ! -x "$version/venv/bin/python" ]; then
  echo "error: no version is installed in $store; run ./edge-effdet install in a bundle." >&2
  exit 2
fi
exec "$version/venv/bin/python" -I -m edge_effdet.device --store "$store" "$@"
"""


@dataclass(frozen=True, slots=True)
class Store:
    """The folder ``ROOT/NAME``. What changes it is called under ``lock`` alone.

    Attributes:
        folder: absolute, without links.
        name: of the bundles in it.
    """

    folder: Path
    name: str

    @classmethod
    def at(cls, root: Path, name: str) -> Store:
        """The store of a name under a root, be it there or not.

        Raises:
            BundleError: no bundle can have this name, or the folder belongs to something else.
            InputError: the folder cannot be read, or cannot be one because a file is in its place.
            UsageError: the root is an installation itself, or lies in one.
        """
        folder = _outside(root) / require_name(name)
        store = cls(Path(os.path.realpath(folder)), name)
        for each in (store.folder, *store.folder.parents):
            if os.path.lexists(each):
                if not each.is_dir():
                    raise InputError(f"{each} is a file and has to be a folder; give another `root`.")
                break
        try:
            present = [each.name for each in store.folder.iterdir()]
        except FileNotFoundError:
            return store
        except OSError as error:
            raise InputError(
                f"{store.folder} cannot be read ({error.strerror}); run this as its owner, for example with sudo."
            ) from error
        if MARKER in present:
            store._check_marker()
        # A run that was killed while it wrote the marker, or after it removed it as the last thing but one, left no more than these.
        elif any(each != LOCK and not each.startswith(f".{MARKER}.") and not is_temporary(each) for each in present):
            raise BundleError(
                f"{store.folder} is not empty and has no {MARKER}, so it belongs to something else; give another `root`, or move that away."
            )
        return store

    @classmethod
    def find(cls, root: Path, name: str | None) -> Store:
        """The store that is installed under a root.

        Args:
            root: of all stores.
            name: of the store; None where there is only one.

        Raises:
            InputError: nothing is installed there, not under this name, or several are and none was named.
            UsageError: the root is an installation itself, or lies in one.
        """
        root = _outside(root)
        if name is None:
            try:
                names = sorted(each.name for each in root.iterdir() if (each / MARKER).is_file())
            except OSError:
                names = []
            if len(names) != 1:
                found = (
                    f"several are installed in {root} ({', '.join(names)}); say which"
                    if names
                    else f"nothing is installed in {root}"
                )
                raise InputError(f"There is no telling which bundle is meant, for {found}, or give another `root`.")
            (name,) = names
        store = cls.at(root, name)
        if not store.exists:
            raise InputError(
                f"Nothing is installed in {store.folder}; run ./edge-effdet install in a bundle, or give another `root`."
            )
        return store

    @property
    def exists(self) -> bool:
        return (self.folder / MARKER).is_file()

    def _check_marker(self) -> None:
        raw = read_json(self.folder / MARKER)
        if not isinstance(raw, dict) or raw.get("name") != self.name:
            raise BundleError(
                f"{self.folder} is not the folder of {self.name}, going by its {MARKER}; give another `root`, or move that away."
            )
        if raw.get("format") != STORE_FORMAT:
            raise BundleError(
                f"{self.folder} is of format {raw.get('format')!r}, and this version of edge_effdet reads format {STORE_FORMAT}; install with the "
                "version that made it, or give another `root`."
            )

    def create(self) -> None:
        """Make the folder and its parts, or those of them that are missing.

        Raises:
            InputError: it cannot be written.
        """
        with telling_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            # Before anything else: a folder that has something in it and no marker is taken for another project's.
            if not self.exists:
                try:
                    write_durably(self.folder / MARKER, json_text({"format": STORE_FORMAT, "name": self.name}) + "\n")
                except InputError:
                    # Another installation may have written it meanwhile, and cleared away what it took for the rest of a killed one.
                    if not self.exists:
                        raise
            for name in (VERSIONS, KEYS, CACHE, LOG, STATE):
                (self.folder / name).mkdir(exist_ok=True)
            entry = self.folder / ENTRY
            if not entry.is_file() or entry.read_text(encoding="utf-8") != _ENTRY_TEXT:
                write_durably(entry, _ENTRY_TEXT)
            # After a kill the file may be there without its mode.
            entry.chmod(0o755)

    @contextlib.contextmanager
    def lock(self) -> Iterator[int]:
        """Keep all others out until the block ends.

        The lock is the kernel's (``flock``): it ends with the processes that hold it, and a kill leaves none behind.

        Returns:
            The descriptor that holds it. A program that gets it too (``steps.run_program``) holds the lock until it has ended itself, so that what
            a killed installation started is not at work on a version while the next one is.

        Raises:
            InputError: another process holds the lock, or the folder cannot be written.
        """
        with telling_errors(self.folder):
            handle = self._take_lock()
        try:
            yield handle
        finally:
            os.close(handle)

    def _take_lock(self) -> int:
        path = self.folder / LOCK
        while True:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The one who held it may have removed the whole folder.
                if os.fstat(handle).st_nlink:
                    os.ftruncate(handle, 0)
                    os.write(handle, f"{os.getpid()}\n".encode())
                    return handle
            except BlockingIOError:
                holder = os.read(handle, 32).decode("ascii", "replace").strip()
                os.close(handle)
                raise InputError(f"{_holder(holder)} is at work on {self.folder}; wait until it has ended.") from None
            except BaseException:
                os.close(handle)
                raise
            os.close(handle)

    @property
    def busy(self) -> bool:
        """Whether a process is at work on it: has the lock."""
        try:
            handle = os.open(self.folder / LOCK, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(handle)
        return False

    def sweep(self) -> None:
        """Remove what a killed run left: files and folders that were not finished, or not removed to the end. Hidden files of others stay."""
        with telling_errors(self.folder):
            for folder in (self.folder, self.folder / KEYS, self.folder / VERSIONS, *self._version_folders()):
                remove_leftovers(folder)
                for name in _names(folder):
                    if _LEFT.fullmatch(name):
                        remove_path(folder / name)

    def versions(self) -> list[Version]:
        """All versions, those that are not whole among them, in the order in which they were switched to."""
        found = [self.version(folder.name) for folder in self._version_folders()]
        return sorted(found, key=lambda each: (each.standing.order, each.id))

    def _version_folders(self) -> list[Path]:
        folder = self.folder / VERSIONS
        return [folder / name for name in _names(folder) if not name.startswith(".") and (folder / name).is_dir()]

    def version(self, name: str) -> Version:
        """The version of this id, be it there or not."""
        folder = self.folder / VERSIONS / name
        return Version(
            folder,
            read_record(VersionRecord, folder / COMPLETE),
            read_record(Standing, folder / STANDING) or Standing(),
        )

    def current(self) -> Version | None:
        """The version that runs; None where there is none, or the link leads to nothing that is whole.

        Raises:
            InputError: something else than a link is in its place.
        """
        link = self.folder / CURRENT
        if not link.is_symlink():
            if link.exists():
                raise InputError(
                    f"{link} has to be a link to a version, and something else was put in its place; move that away."
                )
            return None
        target = link.readlink()
        if target.parent != Path(VERSIONS):
            raise InputError(
                f"{link} was made to lead to {printable(str(target))}, which is no version of this folder; remove the link and install again."
            )
        version = self.version(target.name)
        return version if version.record is not None else None

    def last_good(self, beside: Version | None = None) -> Version | None:
        """The version to return to: the last one that was switched to and did well, without those that are marked bad.

        Args:
            beside: the version that is returned from; None for the current one.
        """
        current = beside or self.current()
        others = [each for each in self.versions() if current is None or each.id != current.id]
        good = [each for each in others if each.record is not None and each.standing.good and each.standing.bad is None]
        return good[-1] if good else None

    def switch(self, version: Version) -> None:
        """Let ``current`` lead to a version that is whole, in one step.

        Raises:
            BundleError: it is not whole.
        """
        version.require_record()
        with telling_errors(self.folder):
            temporary = self.folder / f".{CURRENT}.{os.getpid()}"
            temporary.unlink(missing_ok=True)
            temporary.symlink_to(Path(VERSIONS, version.id), target_is_directory=True)
            os.replace(temporary, self.folder / CURRENT)
            sync_folder(self.folder)

    def count_up(self, version: Version) -> Version:
        """Give a version the next number, before it is switched to.

        It is written before the switch, so that no kill leaves a current version without one. A number alone makes no version good, so one that was
        never reached is not returned to.
        """
        latest = max((each.standing.order for each in self.versions()), default=0)
        return self._stand(version, Standing(order=latest + 1))

    def mark_good(self, version: Version) -> Version:
        """Note that a version does well."""
        return self._stand(version, replace(version.standing, good=True, bad=None))

    def mark_bad(self, version: Version, reason: str) -> Version:
        """Note why a version is not to be returned to, until it is installed again."""
        return self._stand(version, replace(version.standing, good=False, bad=printable(reason)))

    def _stand(self, version: Version, standing: Standing) -> Version:
        with telling_errors(self.folder):
            write_durably(version.folder / STANDING, json_text(to_json(standing)) + "\n")
        return replace(version, standing=standing)

    def pending_rollback(self) -> tuple[str | None, Version] | None:
        """The id of the version that a rollback left when it was cut off, and the version that it was on its way to.

        None where none was cut off, or others were installed since.
        """
        found, current = read_json(self.folder / ROLLBACK), self.current()
        if not isinstance(found, dict) or current is None or current.id not in (found.get("from"), found.get("to")):
            return None
        version = self.version(str(found.get("to")))
        return (found.get("from"), version) if version.record is not None and version.standing.good else None

    def cut_off(self) -> str:
        """What an interrupted command left to be finished, as a power cut leaves it, and what to do; empty where nothing, or a process is at work."""
        current, pending = self.current(), self.pending_rollback()
        if self.busy:
            return ""
        if pending is not None:
            return f"the rollback to {pending[1].id} was cut off; roll back again, which finishes it"
        if current is not None and current.unproven:
            return (
                f"the installation of {current.id} was cut off before that had proven itself; install its bundle again, which goes on with that, or "
                "roll back"
            )
        return ""

    def begin_rollback(self, current: Version | None, version: Version) -> None:
        """Note what a rollback is about to do, so that one that is cut off is finished by the next, which else would go further back."""
        start = None if current is None else current.id
        with telling_errors(self.folder):
            write_durably(self.folder / ROLLBACK, json_text({"from": start, "to": version.id}) + "\n")

    def end_rollback(self) -> None:
        """Note that no rollback is on its way."""
        with telling_errors(self.folder):
            (self.folder / ROLLBACK).unlink(missing_ok=True)
            sync_folder(self.folder)

    def choose_folder(self, bundle_id: str, request: Mapping[str, Any], passed: Sequence[str] = ()) -> Version:
        """The version that a bundle becomes where it is installed as ``request`` says.

        A version that is whole is never worked on again, since it may be the one that runs. So the same request leads to the same folder, and
        another one to the next that is free, ``<bundle_id>.2`` and so on.

        Args:
            bundle_id: of the bundle.
            request: all that decides what is made of the bundle.
            passed: ids of versions that are not to be taken, as they are damaged.
        """
        number = 1
        while True:
            version = self.version(bundle_id if number == 1 else f"{bundle_id}.{number}")
            whole = version.record is not None
            if version.id not in passed and (not whole or self.read_request(version) == request):
                return version
            number += 1

    def read_request(self, version: Version) -> Any:
        """The request that a version was begun for; None where it was not."""
        return read_json(version.folder / REQUEST)

    def begin(self, version: Version, request: Mapping[str, Any]) -> None:
        """Make the folder of a version. What is left of one that was begun for another request is removed first."""
        with telling_errors(self.folder):
            if version.folder.exists() and self.read_request(version) != request:
                self.remove(version)
            version.folder.mkdir(parents=True, exist_ok=True)
            sync_folder(version.folder.parent)
            write_durably(version.folder / REQUEST, json_text(request, indent=2) + "\n")

    def complete(self, version: Version, record: VersionRecord) -> Version:
        """Declare a version whole, after all of it has reached the disk."""
        with telling_errors(self.folder):
            sync_all()
            write_durably(version.folder / COMPLETE, json_text(to_json(record), indent=2) + "\n")
        return replace(version, record=record)

    def superfluous(self, keep: int, coming: Version | None = None) -> list[Version]:
        """The versions that retention removes.

        It never removes the current one, nor the one that a rollback returns to. Of the rest those go first that are not whole, then those that are
        marked bad, then those that were switched to earlier.

        Args:
            keep: how many versions stay; 2 at least, the current one and the one before.
            coming: a version that will be the current one, for a plan.
        """
        current = coming or self.current()
        needed = [each.id for each in (current, self.last_good(current)) if each is not None]
        rest = [each for each in self.versions() if each.id not in needed]
        whole = [each for each in rest if each.record is not None]
        whole.sort(key=lambda each: (each.standing.bad is None, each.standing.order))
        staying = {each.id for each in whole[::-1][: max(0, keep - len(needed))]}
        return [each for each in rest if each.id not in staying]

    def remove(self, version: Version) -> None:
        """Remove a version that is not the current one.

        Raises:
            InputError: it is the current one, or cannot be removed.
        """
        link = self.folder / CURRENT
        if link.is_symlink() and link.readlink().name == version.id:
            raise InputError(f"{version.id} runs, so it cannot be removed; roll back or install another version first.")
        with telling_errors(self.folder):
            gone = version.folder.with_name(f"{_GONE}{version.id}")
            remove_path(gone)
            # Under a hidden name first: a kill in the middle leaves nothing that looks like a version.
            os.replace(version.folder, gone)
            sync_folder(gone.parent)
            remove_path(gone)

    def trusted_keys(self) -> list[str]:
        """The public keys of minisign that are trusted, one text each.

        Raises:
            InputError: a key cannot be read, and without it trust would be less strict than it was meant to be.
        """
        folder = self.folder / KEYS
        with telling_errors(folder):
            names = [name for name in _names(folder) if name.endswith(".pub") and not name.startswith(".")]
            return [(folder / name).read_text(encoding="ascii", errors="replace").strip() for name in names]

    def replace_keys(self, keys: Sequence[str]) -> None:
        """Trust these public keys and no others.

        The new ones are written before the old ones go, so that at no moment none is there and unsigned bundles would be taken.

        Raises:
            BundleError: a text is no public key, or there is none at all.
        """
        if not keys:
            raise BundleError("There has to be a key, or bundles that nobody signed would be taken.")
        wanted = {f"{read_public_key(text).id}.pub": text.strip() + "\n" for text in keys}
        folder = self.folder / KEYS
        with telling_errors(folder):
            folder.mkdir(exist_ok=True)
            for name, text in wanted.items():
                write_durably(folder / name, text)
            for name in _names(folder):
                if name.endswith(".pub") and name not in wanted:
                    (folder / name).unlink()
            sync_folder(folder)

    def service_kind(self) -> str | None:
        """What runs the engine, as the last installation was told; None before there was one."""
        found = read_json(self.folder / SERVICE)
        return found.get("kind") if isinstance(found, dict) else None

    def keep_service_kind(self, kind: str) -> None:
        """Note what runs the engine, so that a later update or rollback restarts the same."""
        if self.service_kind() != kind:
            with telling_errors(self.folder):
                write_durably(self.folder / SERVICE, json_text({"kind": kind}) + "\n")


def _outside(root: Path) -> Path:
    """The root of stores, absolute and without links. Raises UsageError where it is a store itself, or lies in one."""
    root = Path(os.path.realpath(root.expanduser()))
    for folder in (root, *root.parents):
        # Path.is_file raises where a folder above may not be entered.
        if os.path.isfile(folder / MARKER):  # noqa: PTH113
            raise UsageError(
                f"`root` {root} lies in the installation of {folder.name}, and others would be made in it; give the folder above, {folder.parent}."
            )
    return root


def default_root() -> Path:
    """``/opt/edge-effdet`` for root; for others a folder of their own."""
    if os.geteuid() == 0:
        return Path("/opt/edge-effdet")
    data = os.environ.get("XDG_DATA_HOME", "")
    return (Path(data) if Path(data).is_absolute() else Path.home() / ".local/share") / "edge-effdet"


def _holder(pid: str) -> str:
    if not pid.isdecimal():
        return "Another edge-effdet"
    alive = Path("/proc", pid).exists()
    return (
        f"Another edge-effdet (process {pid})"
        if alive
        else f"A program that edge-effdet (process {pid}, which has ended) started"
    )


def _names(folder: Path) -> list[str]:
    try:
        return sorted(each.name for each in folder.iterdir())
    except FileNotFoundError:
        return []
