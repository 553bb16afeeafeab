"""An engine: the file that a backend compiled and its record, which are read and replaced as one."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from edge_effdet.artifacts.files import (
    file_sha256,
    json_text,
    printable,
    refuse_device,
    sync_file,
    sync_folder,
    writing_failed,
)
from edge_effdet.artifacts.record import RECORD_FORMAT, EngineRecord, record_from_json, record_to_json
from edge_effdet.artifacts.spec import ModelSpec
from edge_effdet.errors import EngineError, InputError

logger = logging.getLogger("edge_effdet.artifacts")

_PATIENCE = 1.0
"""Seconds that another build is waited for without a word. It holds its lock for a few calls of ``fsync``."""


@dataclass(frozen=True, slots=True)
class Engine:
    """A compiled file, byte for byte as the backend made it, and the record in the JSON beside it (``<file>.json``).

    Attributes:
        path: the file.
        spec: the model's spec, unchanged from the graph that the engine was built from.
        backend: the name in ``backends.base.BACKENDS`` that made it and runs it.
        precision: ``fp32``, ``fp16`` or ``int8``.
        sha256: the hash of the file; empty for an engine that is not kept, and then no backend keeps what it compiles for a next start.
        record: what is known of it; None for an engine that was not built but stands for a graph.
        waiting: the file that the record was read from, where a build was killed before it gave this file the name of the JSON and this user may not do it
            (``replace_engine``); else None.
    """

    path: Path
    spec: ModelSpec
    backend: str
    precision: str
    sha256: str = ""
    record: EngineRecord | None = None
    waiting: Path | None = None

    @property
    def json_path(self) -> Path:
        """The file that holds the record: the JSON beside the engine's file, or ``waiting``."""
        return self.waiting or engine_json_path(self.path)

    def require_record(self) -> EngineRecord:
        """The record. Raises EngineError where there is none."""
        if self.record is None:
            raise EngineError(
                f"{self.path} has no record, so nothing is known of its proof; build it with python -m edge_effdet.build_engine."
            )
        return self.record


def engine_json_path(engine: Path) -> Path:
    """The JSON beside an engine's file."""
    return engine.with_name(engine.name + ".json")


def waiting_record_path(engine: Path) -> Path:
    """Where the record of a new engine is while ``replace_engine`` replaces an earlier one."""
    return engine.with_name(engine.name + ".json.new")


def replace_engine(made: Engine, path: Path) -> Engine:
    """Put an engine and its record where an earlier engine may be.

    A process that is killed at any moment of this leaves at ``path`` the earlier engine with its record, or the new one with its own. First the new record
    is written into a file of its own (``waiting_record_path``), then the engine's file is replaced, then the record gets its name. ``load_engine`` takes
    of both records the one that has the hash of the engine's file.

    Args:
        made: the engine and its record; its file is on the same disk.
        path: where the engine's file is to be. Other processes may put engines there at the same time; one of them is there in the end.

    Returns:
        The engine at ``path``.

    Raises:
        InputError: the folder cannot be written, or no file is where the record has to wait.
        UsageError: a device or a pipe is at ``path``.
    """
    refuse_device(path)
    try:
        sync_file(made.path)
        with _waiting_record(path) as stream:
            stream.write(printable(json_text(record_to_json(made.require_record()), indent=2) + "\n"))
            stream.flush()
            os.fsync(stream.fileno())
            # Each change is on the disk before the next one, for the power may fail in between.
            sync_folder(path.parent)
            os.replace(made.path, path)
            sync_folder(path.parent)
            os.replace(waiting_record_path(path), engine_json_path(path))
            sync_folder(path.parent)
    except BaseException as error:
        # Ctrl-C may have come right after the file was made, and then nobody has told that it was.
        with contextlib.suppress(OSError, InputError):
            _clear(path, wait=False)
        if isinstance(error, OSError):
            raise writing_failed(path, error) from error
        raise
    return replace(made, path=path, waiting=None)


@contextlib.contextmanager
def _waiting_record(path: Path) -> Iterator[IO[str]]:
    """Make the file that a record waits in. Its lock, which is held until the block ends, keeps other processes from replacing the engine at ``path``."""
    waiting = waiting_record_path(path)
    while True:
        try:
            handle = os.open(waiting, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
        except FileExistsError:
            # Of another process, which is waited for, or of a killed one.
            _clear(path, wait=True)
            continue
        with open(handle, "w", encoding="utf-8") as stream:
            # On a file system without locks two processes at once are not kept apart.
            with contextlib.suppress(OSError):
                fcntl.flock(handle, fcntl.LOCK_EX)
            # Another process that got the lock first took the file for one of a killed process, and removed it.
            if _leads_to(waiting, handle):
                yield stream
                return


@contextlib.contextmanager
def _held(waiting: Path, wait: bool) -> Iterator[bool]:
    """Hold the lock of a record that waits; False where it is gone by then. Raises OSError where it is not there, or others hold the lock and nobody waits."""
    # NFS gives this lock only on a file that is open for writing.
    handle = os.open(waiting, os.O_RDWR if os.access(waiting, os.W_OK) else os.O_RDONLY)
    try:
        with contextlib.suppress(OSError) if wait else contextlib.nullcontext():
            _lock(handle, waiting, wait)
        yield _leads_to(waiting, handle)
    finally:
        os.close(handle)


def _lock(handle: int, waiting: Path, wait: bool) -> None:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if not wait:
            raise
        told = threading.Timer(
            _PATIENCE,
            lambda: logger.warning(
                "waiting for another build, which replaces the same engine and has locked %s; if it hangs, end it",
                waiting,
            ),
        )
        told.start()
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        finally:
            told.cancel()


def _clear(path: Path, wait: bool) -> None:
    """Remove the record of a killed process, or give it its name where its engine is there.

    Raises:
        OSError: as ``_held`` and ``_finish``.
        InputError: it is no file.
    """
    waiting = waiting_record_path(path)
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISREG(waiting.lstat().st_mode):
            raise InputError(
                f"{waiting} is a link, a pipe or a folder, and a new engine's record has to be a file there until the engine is at its place; move it away."
            )
        with _held(waiting, wait) as held:
            if held and not _finish(path):
                waiting.unlink()


def _leads_to(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(path.lstat(), os.fstat(handle))
    except FileNotFoundError:
        return False


def _finish(path: Path) -> bool:
    """Give a record that waits its name, where it is that of the engine's file; only under its lock. Returns whether it was.

    It may be of another format than this version reads.

    Raises:
        OSError: one of both cannot be read, so nobody can tell, or the record cannot get its name.
    """
    waiting = waiting_record_path(path)
    try:
        described = json.loads(waiting.read_text(encoding="utf-8"))["engine_sha256"]
    # No JSON, or none that is a record.
    except (ValueError, LookupError, TypeError, RecursionError):
        return False
    if not path.is_file() or file_sha256(path) != described:
        return False
    os.replace(waiting, engine_json_path(path))
    sync_folder(path.parent)
    return True


def load_engine(path: Path) -> Engine:
    """Read an engine's record and check the file against the hash in it.

    Raises:
        EngineError: the file or its JSON is missing, damaged, of another format, or they do not belong together.
    """
    path = Path(path)
    if not path.is_file():
        raise EngineError(f"There is no engine at {path}; build one with python -m edge_effdet.build_engine.")
    try:
        engine = _read_engine(path)
    except EngineError:
        # A build may have replaced both while they were read.
        engine = _read_engine(path)
    if engine.waiting is not None:
        # So that both files can be copied. Who may not write here, or comes while the build still is at it, leaves it.
        with contextlib.suppress(OSError), _held(engine.waiting, wait=False) as held:
            if held:
                _finish(path)
        # Whoever gave it its name.
        with contextlib.suppress(EngineError):
            engine = _read_engine(path)
    return engine


def _read_engine(path: Path) -> Engine:
    """The engine at ``path``, with the record that has the hash of the file. Raises EngineError as ``load_engine``."""
    json_path, waiting = engine_json_path(path), waiting_record_path(path)
    # The one that may get the other's name is looked for first, lest it is missed under both.
    there = [each for each in (waiting, json_path) if each.is_file()][::-1]
    problem = EngineError(
        f"{path.name} has no {json_path.name} beside it, so its classes and input size are unknown; "
        "copy both files that build_engine wrote, or build the engine again."
    )
    if not there:
        raise problem
    try:
        digest = file_sha256(path)
    except OSError as error:
        raise EngineError(
            f"{path} cannot be read ({error.strerror or error}); see who may read it, or copy it again."
        ) from error
    for each in there:
        try:
            record = _read_record(each)
            if record.engine_sha256 != digest:
                raise EngineError(
                    f"{path} is not the file that {json_path.name} describes (its SHA-256 differs), so its accuracy is unproven; "
                    "copy both files again or rebuild the engine."
                )
        except EngineError as error:
            # Of a record that waits and is not this engine's, nobody needs to know.
            problem = error if each == json_path else problem
            continue
        return Engine(
            path,
            record.spec,
            record.backend,
            record.precision,
            record.engine_sha256,
            record,
            None if each == json_path else each,
        )
    raise problem


def _read_record(path: Path) -> EngineRecord:
    """A record. Raises EngineError where the file is damaged or of another format."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(raw, dict):
            raise ValueError("it holds no object")
        # Other formats have other fields, so the format is looked at first.
        if raw.get("format", 1) != RECORD_FORMAT:
            raise EngineError(
                f"{path} is of format {raw.get('format', 1)!r}, and this version of edge_effdet reads format {RECORD_FORMAT}; install "
                "the version that built the engine, or build it again with this one."
            )
        return record_from_json(raw)
    # Besides what a damaged file raises: JSON in JSON deeper than Python reads.
    except (OSError, ValueError, RecursionError) as error:
        raise EngineError(
            f"{path} is not an engine description ({error}); copy it again or rebuild the engine."
        ) from error
