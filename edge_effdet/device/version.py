"""One installed version: its folder, what is known of it, and how it has done."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from edge_effdet.artifacts.reading import from_json
from edge_effdet.errors import BundleError

T = TypeVar("T")

COMPLETE = "complete.json"
STANDING = "standing.json"
REQUEST = "request.json"

EARLIER_CONFIG = "config.before.json"
"""In the folder of a version: what ``config.json`` was before its installation changed it, until the service proves healthy with the new one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRecord:
    """What is known of a version from the moment on at which it is whole: ``complete.json``.

    Attributes:
        bundle: the id of its bundle.
        bundle_sha256: the hash of the bundle's ``SHA256SUMS``.
        release: of the bundle.
        precision: of the engine.
        backend: that runs the engine.
        engine: the path of the engine, relative to the version.
        engine_sha256: of the engine.
        record_sha256: of the record beside it.
        signed_by: the id of the key that signed the bundle; None where nothing was checked.
        keys: the keys that were trusted when it was installed, with which its signature is checked again after the trusted ones have changed.
    """

    bundle: str
    bundle_sha256: str
    release: str
    precision: str
    backend: str
    engine: str
    engine_sha256: str
    record_sha256: str
    signed_by: str | None
    keys: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """How a version has done: ``standing.json``.

    Attributes:
        order: counts the installations; a version that is installed again gets a new number. 0 before the first switch to it.
        good: whether it was switched to and, where there is a service, became healthy.
        bad: why it is not to be returned to; None where nothing speaks against it.
    """

    order: int = 0
    good: bool = False
    bad: str | None = None


@dataclass(frozen=True, slots=True)
class Version:
    """A version in the folder ``versions``.

    Attributes:
        folder: its folder, in which all of it lies.
        record: what is known of it; None for one whose installation was not finished.
        standing: how it has done.
    """

    folder: Path
    record: VersionRecord | None
    standing: Standing

    @property
    def id(self) -> str:
        """The name of its folder: the bundle's id, with ``.2`` and so on where the bundle was installed again in another way."""
        return self.folder.name

    @property
    def bundle(self) -> Path:
        return self.folder / "bundle"

    @property
    def venv(self) -> Path:
        return self.folder / "venv"

    @property
    def python(self) -> Path:
        return self.venv / "bin" / "python"

    @property
    def engine_folder(self) -> Path:
        return self.folder / "engine"

    @property
    def unproven(self) -> bool:
        """Whether it, or its new settings, came into use and have neither proven themselves nor failed: their installation is at that, or was cut off."""
        standing = self.standing
        new = standing.order > 0 and not standing.good and standing.bad is None
        return new or (self.folder / EARLIER_CONFIG).exists()

    @property
    def engine(self) -> Path:
        """The engine's file. Raises BundleError where the version is not whole."""
        return self.folder / self.require_record().engine

    def require_record(self) -> VersionRecord:
        """What is known of it. Raises BundleError where the version is not whole."""
        if self.record is None:
            raise BundleError(
                f"The version {self.id} is not whole, since its installation was interrupted; install it again."
            )
        return self.record


def read_json(path: Path) -> Any:
    """What is in a file of JSON; None where it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def read_record(kind: type[T], path: Path) -> T | None:
    """A record; None where it is missing or damaged, and what it speaks for is then taken for unfinished."""
    try:
        return from_json(kind, read_json(path))
    except ValueError:
        return None
