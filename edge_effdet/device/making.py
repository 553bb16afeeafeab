"""The steps that make a version of a bundle, beside those that are there: copy, environment, engine, complete."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edge_effdet.artifacts import engine_json_path, file_sha256, load_engine
from edge_effdet.device.environment import environment_inputs, make_environment
from edge_effdet.device.integrity import find_engine
from edge_effdet.device.interpreter import DevicePython
from edge_effdet.device.manifest import Bundle, files_of, read_bundle
from edge_effdet.device.options import InstallOptions
from edge_effdet.device.restart import see_log
from edge_effdet.device.signature import require_trusted
from edge_effdet.device.steps import Journal, Step, run_program
from edge_effdet.device.store import CACHE, Store
from edge_effdet.device.targets import get_target
from edge_effdet.device.version import Version, VersionRecord
from edge_effdet.errors import BundleError, EngineError


@dataclass(frozen=True, slots=True, kw_only=True)
class InstallWork:
    """One bundle on its way into one store.

    Attributes:
        store: where it goes.
        bundle: as it was found, and checked.
        options: how it is installed.
        python: what its environment is made with.
        workspace_mib: limit of the scratch memory of TensorRT's builder, 0 for none.
        keys: the public keys that are trusted here.
    """

    store: Store
    bundle: Bundle
    options: InstallOptions
    python: DevicePython
    workspace_mib: int
    keys: tuple[str, ...]

    @property
    def precision(self) -> str:
        """The precision of the engine."""
        return self.options.precision or self.bundle.manifest.precision

    @property
    def system_packages(self) -> bool:
        """Whether the environment sees the packages of the system's Python."""
        return get_target(self.bundle.manifest.target).system_packages

    @property
    def request(self) -> Mapping[str, Any]:
        """All that decides what is made of the bundle."""
        inputs = environment_inputs(self.bundle, self.python, self.system_packages)
        return {**inputs, "precision": self.precision, "workspace_mib": self.workspace_mib}


def making_steps(work: InstallWork, version: Version, lock: int | None) -> list[Step]:
    """The steps.

    Args:
        work: what is made.
        version: what it becomes.
        lock: of the store; None for a plan.
    """
    journal = Journal(version.folder / "done")
    copied = replace(work.bundle, path=version.bundle)
    what = f"copy the bundle into {version.folder}"
    copy = journal.step("copy", what, work.request, [version.bundle], lambda: _copy(work, version))
    inputs = environment_inputs(work.bundle, work.python, work.system_packages)
    steps = [
        # What lies there since another run is not trusted unseen.
        replace(copy, is_done=lambda: copy.is_done() and _is_bundle(work, version.bundle)),
        journal.step(
            "environment",
            f"make {version.venv} with {work.python.executable} and install the packages",
            inputs,
            [version.venv],
            lambda: make_environment(copied, version.venv, work.python, work.system_packages, lock),
        ),
        journal.step(
            "engine",
            f"build the {work.precision.upper()} engine with {work.bundle.manifest.backend}, check and time it",
            work.request,
            [version.engine_folder],
            lambda: _build_engine(work, version, lock),
        ),
        Step(
            name="complete",
            what=f"declare {version.id} whole",
            is_done=lambda: work.store.version(version.id).record is not None,
            do=lambda: _complete(work, version),
        ),
    ]
    if version.record is None:
        return steps
    # It may be the one that runs, so nothing in it is made again; that it is as it was has been checked.
    return [replace(each, is_done=lambda: True) for each in steps]


def _is_bundle(work: InstallWork, folder: Path) -> bool:
    """Whether the folder has the bundle, as it was checked, with the signature that was."""
    try:
        copy = read_bundle(folder)
        if work.bundle.signed_by is not None:
            require_trusted(folder, work.keys, required=True)
        # The manifest too: whoever can write the source may have shown another one for a moment.
        return copy.sha256 == work.bundle.sha256 and copy.manifest == work.bundle.manifest
    except BundleError:
        return False


def _copy(work: InstallWork, version: Version) -> None:
    work.store.begin(version, work.request)
    source = work.bundle.path
    for name in files_of(source):
        target = version.bundle / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target)
        target.chmod(0o755 if os.access(source / name, os.X_OK) else 0o644)
    # What was checked is the source, which may have changed since; from here on the copy is used.
    if not _is_bundle(work, version.bundle):
        raise BundleError(f"{source} changed while it was copied; leave it alone and install again.")
    if work.keys:
        require_trusted(version.bundle, work.keys, required=True)


def _build_engine(work: InstallWork, version: Version, lock: int | None) -> str:
    command: list[str | Path] = [version.python, "-I", "-m", "edge_effdet.device.engine"]
    command += ["--bundle", version.bundle, "--output", version.engine_folder, "--precision", work.precision]
    command += ["--timing-cache", work.store.folder / CACHE / "timing.cache"]
    command += ["--workspace-mib", str(work.workspace_mib), "--json"]
    done = run_program(command, lock, answers=True, tell=True)
    if done.code == 0:
        report = json.loads(done.answer)
        return f"{Path(report['engine']).name}, {report['latency']['median_ms']:.2f} ms a run (median)"
    if done.code < 0:
        raise EngineError(
            f"Building the engine was ended by signal {-done.code}, as the kernel does it when memory is short; end other programs, add swap, or "
            "give a lower `workspace_mib`, and install again."
        )
    said = done.complaint
    if said is None:
        last = (done.lines or ("it said nothing",))[-1]
        said = f"Building the engine failed ({last}); {see_log(work.store)}."
    if os.strerror(errno.ENOSPC) in said:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    raise done.as_error(said)


def _complete(work: InstallWork, version: Version) -> None:
    engine = load_engine(find_engine(version.engine_folder))
    signed_by = work.bundle.signed_by
    record = VersionRecord(
        bundle=work.bundle.id,
        bundle_sha256=work.bundle.sha256,
        release=work.bundle.manifest.release,
        precision=engine.precision,
        backend=engine.backend,
        engine=engine.path.relative_to(version.folder).as_posix(),
        engine_sha256=engine.sha256,
        record_sha256=file_sha256(engine_json_path(engine.path)),
        signed_by=signed_by,
        keys=work.keys if signed_by is not None else (),
    )
    work.store.complete(version, record)
