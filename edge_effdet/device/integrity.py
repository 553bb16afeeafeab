"""Whether an installed version is still what was installed: its bundle, its environment, its engine and the engine's record."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edge_effdet.artifacts import engine_json_path, file_sha256, load_engine
from edge_effdet.device.environment import check_environment
from edge_effdet.device.manifest import files_of, read_bundle
from edge_effdet.device.signature import require_trusted
from edge_effdet.device.store import Store
from edge_effdet.device.version import Version
from edge_effdet.errors import BundleError, EngineError


@dataclass(frozen=True, slots=True)
class VerifiedVersion:
    """What was checked of a version, all of which was right.

    Attributes:
        version: the version.
        bundle_files: how many files of the bundle were held against their hashes.
        environment_files: how many files of the environment were held against the bundle's wheels.
        signed_by: the id of the key whose signature was checked again; None where the bundle was not checked with a key when it was installed.
    """

    version: Version
    bundle_files: int
    environment_files: int
    signed_by: str | None


def verify_installed(store: Store) -> VerifiedVersion:
    """Check the version that runs.

    Raises:
        BundleError: nothing runs, or a file of the bundle or the environment is missing or was changed.
        EngineError: the engine or its record is missing or was changed.
    """
    current = store.current()
    if current is None:
        raise BundleError(f"No version runs in {store.folder}; install a bundle.")
    return check_version(current)


def check_version(version: Version) -> VerifiedVersion:
    """Check a version that is whole.

    Raises:
        BundleError: a file of the bundle or the environment is missing or was changed, or the signature no longer belongs to it.
        EngineError: the engine or its record is missing or was changed.
    """
    record = version.require_record()
    bundle = read_bundle(version.bundle)
    if bundle.sha256 != record.bundle_sha256:
        raise BundleError(
            f"{version.bundle} is another bundle than the one that was installed; install the bundle again."
        )
    signed_by = require_trusted(version.bundle, record.keys, required=True) if record.signed_by is not None else None
    engine = load_engine(version.engine)
    if engine.sha256 != record.engine_sha256 or file_sha256(engine_json_path(engine.path)) != record.record_sha256:
        raise EngineError(
            f"{engine.path} or its record is not what was built and checked here; install the bundle again."
        )
    compared = check_environment(bundle, version.venv)
    return VerifiedVersion(version, len(files_of(version.bundle)), compared, signed_by)


def find_engine(folder: Path) -> Path:
    """The engine that was built into a folder: the file that has a record beside it.

    Raises:
        EngineError: there is none, or several.
    """
    found = [each for each in sorted(folder.iterdir()) if engine_json_path(each).is_file()] if folder.is_dir() else []
    if len(found) != 1:
        raise EngineError(f"{folder} does not hold one engine with its record; install the bundle again.")
    return found[0]
