"""Installing a bundle: from a folder or an archive to a version that runs, in steps that can be cut off anywhere.

Nothing is made before the bundle was checked and the device was looked at. A new version is made beside those that are there (``making``), and the link
``current`` is switched when its engine was built and found right on this device (``using``). A service that does not become healthy then takes the switch
back.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from edge_effdet.artifacts import refuse_overwrite, temporary_folder
from edge_effdet.artifacts.reading import to_json
from edge_effdet.device.durable import folder_mib, is_disk_full, telling_errors
from edge_effdet.device.inspect import Plans, inspect_device
from edge_effdet.device.integrity import check_version
from edge_effdet.device.interpreter import DevicePython
from edge_effdet.device.making import InstallWork, making_steps
from edge_effdet.device.manifest import Bundle, files_of, parse_release, read_bundle, read_manifest, read_sums
from edge_effdet.device.options import InstallOptions
from edge_effdet.device.service.starting import SystemdService
from edge_effdet.device.service.unit import HOMES, sees_homes
from edge_effdet.device.settings import read_settings
from edge_effdet.device.signature import check_signature, read_public_key, require_trusted
from edge_effdet.device.steps import logging_to, output_logger, plan_steps, run_steps
from edge_effdet.device.store import LOG, Store
from edge_effdet.device.targets import get_target
from edge_effdet.device.unpack import unpacked
from edge_effdet.device.using import choose_manager, take_config_back, using_steps
from edge_effdet.device.version import Version
from edge_effdet.errors import BundleError, EdgeEffDetError, EngineError, InputError, UsageError

logger = logging.getLogger("edge_effdet.device")


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """How an installation went.

    Attributes:
        store: the folder of the installation, ``ROOT/NAME``.
        version: the id of the version.
        bundle: what was installed.
        before: the id of the version that ran before; None where there was none.
        plan: for a dry run, what would be done, a line for each step; else empty.
        done: the steps that were done now.
        skipped: the steps that an earlier run had done.
        engine: the engine's file; None for a dry run.
        report: what was found of the engine on this device (``engine.DEVICE_RECORD``); empty for a dry run.
    """

    store: Path
    version: str
    bundle: Bundle
    before: str | None
    plan: tuple[str, ...] = ()
    done: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    engine: Path | None = None
    report: Mapping[str, Any] = field(default_factory=dict)


def install(source: Path | str, options: InstallOptions, into: str | None = None) -> Installed:
    """Install a bundle, or go on with an installation that was cut off.

    Args:
        source: the folder of a bundle, or its archive.
        options: where and how.
        into: the name that the bundle has to have, where an installed version is asked to update itself; None for any.

    Returns:
        What was done, or for a dry run what would be done.

    Raises:
        BundleError: the bundle is damaged, not trusted, an earlier release, or not for this device.
        InputError: another installation is at work, or something cannot be read or written, as on a full or read-only disk. What was half made of a
            version is removed where the disk was full.
        BackendUnavailable: the device lacks a package, a program, or a network.
        AccuracyGateFailed: the engine finds other objects here than on the host. The version that runs stays.
        NotHealthy: the service did not become healthy, and the version before runs again.
    """
    source, root = Path(source), options.place
    if not source.exists():
        raise InputError(
            f"There is no {source}; give the folder or the archive that python -m edge_effdet.deploy wrote."
        )
    if os.pathsep in str(root):
        raise UsageError(
            f"`root` {root} has a {os.pathsep!r}, with which Python makes no environments; give another one."
        )
    # A bundle inside the root could be taken for an installation, and a root inside the bundle would change it.
    refuse_overwrite([root], [source], field="root")
    given = read_given_keys(options.public_key)
    with _opened(source, options, given, into) as folder:
        work = _prepare(folder, options, given, into)
        if options.dry_run:
            return _plan(work)
        store = work.store
        with _readable_by_all():
            store.create()
            with store.lock() as lock, telling_errors(store.folder):
                # Whoever held the lock until now may have removed a part.
                store.create()
                with logging_to(store.folder / LOG):
                    return _run(work, lock, given)


def read_given_keys(given: str | None) -> tuple[str, ...]:
    """The key that an option gives, as a file or as text.

    Raises:
        BundleError: it is no public key.
        InputError: the file cannot be read.
    """
    if given is None:
        return ()
    path = Path(given)
    with telling_errors(path):
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else given
    return (read_public_key(text).text,)


@contextlib.contextmanager
def _opened(source: Path, options: InstallOptions, given: Sequence[str], into: str | None) -> Iterator[Path]:
    """The folder of a bundle. An archive is unpacked, after its own signature was checked where there is one and a key for it."""
    if source.is_dir():
        yield source
        return
    signature = source.with_name(source.name + ".minisig")
    known = [*given, *(Store.at(options.place, into).trusted_keys() if into else ())]
    if known and signature.is_file():
        check_signature(source, signature, known)
    with contextlib.ExitStack() as stack:
        # A dry run leaves nothing in the root, not even for a moment.
        place = stack.enter_context(temporary_folder()) if options.dry_run else options.place
        folder = stack.enter_context(unpacked(source, place))
        try:
            yield folder
        except EdgeEffDetError as error:
            # The folder is gone when the sentence is read.
            error.args = (str(error).replace(str(folder.parent), str(source)),)
            raise


@contextlib.contextmanager
def _readable_by_all() -> Iterator[None]:
    """The service may run as another user than the one who installs, whatever that one's mask is."""
    before = os.umask(0o022)
    try:
        yield
    finally:
        os.umask(before)


def _prepare(folder: Path, options: InstallOptions, given: Sequence[str], into: str | None) -> InstallWork:
    """Check the bundle and look at the device. Nothing is changed."""
    read_sums(folder)
    manifest = read_manifest(folder)
    if into is not None and manifest.name != into:
        raise BundleError(
            f"The bundle is of {manifest.name}, and this installation is of {into}; start the ./edge-effdet in the bundle to install it beside this one."
        )
    store = Store.at(options.place, manifest.name)
    keys = tuple(dict.fromkeys([*store.trusted_keys(), *given]))
    # The signature first: what it covers is only then worth being read.
    signed_by = require_trusted(folder, keys, options.require_signature or bool(keys))
    bundle = read_bundle(folder, signed_by)
    logger.info(
        "check: the files of %s %s are what they were when it was made%s",
        manifest.name, manifest.release, f", and it is signed by {signed_by}" if signed_by else "",
    )  # fmt: skip
    if options.precision is not None and options.precision not in manifest.graphs:
        raise BundleError(
            f"The bundle has no graph in {options.precision.upper()}, only in {' and '.join(sorted(manifest.graphs)).upper()}; give another `precision`."
        )

    def work_of(python: DevicePython, suggested_mib: int) -> InstallWork:
        limit = suggested_mib if options.workspace_mib is None else options.workspace_mib
        return InstallWork(store=store, bundle=bundle, options=options, python=python, workspace_mib=limit, keys=keys)

    plans = _plans(store, options, lambda python, limit: _made_mib(work_of(python, limit)))
    inspection = inspect_device(manifest.target, manifest, plans=plans, folder=folder)
    if options.dry_run:
        # All that was found, also where one thing stands in the way: a person mends everything at once.
        logger.info("inspect: this device, held against the target %s:\n\n%s\n", manifest.target, inspection.text())
    inspection.require()
    for each in () if options.dry_run else inspection.warnings:
        logger.warning("inspect: %s is %s; %s", each.what, each.found, each.fix)
    logger.info("inspect: this device suits %s", get_target(manifest.target).title)
    assert inspection.python is not None
    work = work_of(inspection.python, inspection.workspace_mib)
    _refuse_downgrade(work)
    return work


def _plans(store: Store, options: InstallOptions, made: Callable[[DevicePython, int], int | None]) -> Plans:
    """What the device has to suit beside the bundle."""
    source = options.source or read_settings(store).options.source
    manager = choose_manager(store, options.service, source)
    closed = isinstance(manager, SystemdService) and manager.system
    hidden = HOMES if closed and not sees_homes(store.folder, source) else ()
    return Plans(install_root=options.place, python=options.python, made=made, hidden=hidden, closed=closed)


def _made_mib(work: InstallWork) -> int | None:
    """How much an earlier run made of the version, MiB; None where it is whole."""
    version = work.store.choose_folder(work.bundle.id, work.request)
    if version.record is not None:
        return None
    return folder_mib(version.folder) if work.store.read_request(version) == work.request else 0


def _refuse_downgrade(work: InstallWork) -> None:
    current = work.store.current()
    # Where the one that runs failed there may be nothing else to return to.
    if current is None or current.standing.bad is not None or work.options.allow_downgrade:
        return
    manifest, running = work.bundle.manifest, current.require_record().release
    if parse_release(manifest.release) < parse_release(running):
        raise BundleError(
            f"{manifest.name} {manifest.release} is an earlier release than {running}, which runs; roll back to a version that is still there, or "
            "set `allow_downgrade`."
        )


def _plan(work: InstallWork) -> Installed:
    """What ``_run`` would do. Nothing is changed."""
    version = _choose(work)
    lines = [
        f"check: {len(files_of(work.bundle.path))} files are what they were when the bundle was made",
        f"inspect: this device suits {get_target(work.bundle.manifest.target).title}",
        *plan_steps([*making_steps(work, version, None), *using_steps(work, version)]),
    ]
    before = _current_id(work.store)
    return Installed(store=work.store.folder, version=version.id, bundle=work.bundle, before=before, plan=tuple(lines))


def _run(work: InstallWork, lock: int, given: Sequence[str]) -> Installed:
    """Install. The store is locked; ``given`` are the keys that the options name."""
    store = work.store
    # What runs and what is trusted may have changed until the lock was taken.
    _refuse_downgrade(work)
    keys = tuple(dict.fromkeys([*store.trusted_keys(), *given]))
    signed_by = require_trusted(work.bundle.path, keys, work.options.require_signature or bool(keys))
    work = replace(work, keys=keys, bundle=replace(work.bundle, signed_by=signed_by))
    if given:
        # Before anything can fail: from now on an unsigned bundle is refused.
        store.replace_keys(keys)
    store.sweep()
    version, before = _choose(work, mark=True), _current_id(store)
    _tell_of_cut_off(store, version)
    logger.info("installing %s into %s", version.id, store.folder)
    try:
        with telling_errors(store.folder):
            steps = [*making_steps(work, version, lock), *using_steps(work, version)]
            done, skipped = run_steps(steps)
    except EdgeEffDetError as error:
        # Into the file alone: the command tells it on the terminal.
        output_logger.error("%s", error)
        if is_disk_full(error):
            _make_room(store, version)
        raise
    version = store.version(version.id)
    return Installed(
        store=store.folder,
        version=version.id,
        bundle=replace(work.bundle, path=version.bundle),
        before=before,
        done=tuple(done),
        skipped=tuple(skipped),
        engine=version.engine,
        report=json.loads((version.engine_folder / "device.json").read_text(encoding="utf-8")),
    )


def _tell_of_cut_off(store: Store, version: Version) -> None:
    """Say that an earlier installation was cut off before its version had proven itself. Its settings are taken back, unless it goes on now."""
    current = store.current()
    if current is not None and current.unproven:
        after = "this goes on with that" if current.id == version.id else f"{version.id} takes its place"
        logger.warning("the installation of %s was cut off before that had proven itself; %s", current.id, after)
    for each in store.versions():
        if each.id != version.id and take_config_back(store, each):
            logger.warning("the settings from before the installation of %s are back", each.id)


def _current_id(store: Store) -> str | None:
    current = store.current()
    return None if current is None else current.id


def _choose(work: InstallWork, mark: bool = False) -> Version:
    """The version that the bundle becomes: one that is there already and whole, one that was begun, or a new one.

    Args:
        work: what is installed.
        mark: whether a version that turns out to be damaged is marked bad.
    """
    damaged: list[str] = []
    while True:
        version = work.store.choose_folder(work.bundle.id, work.request, damaged)
        if version.record is None:
            return version
        try:
            check_version(version)
        except (BundleError, EngineError) as error:
            logger.warning("%s is damaged, so it is made again beside it: %s", version.id, error)
            damaged.append(version.id)
            if mark:
                work.store.mark_bad(version, f"damaged: {error}")
        else:
            return version


def _make_room(store: Store, version: Version) -> None:
    """Remove what was half made of a version when the disk ran full."""
    with contextlib.suppress(OSError, EdgeEffDetError):
        if store.version(version.id).record is None and version.folder.exists():
            store.remove(version)
            logger.info("what was half made of %s was removed", version.id)


def bundle_json(bundle: Bundle) -> dict[str, Any]:
    """What a machine reads of a bundle (``--json``)."""
    return {
        "id": bundle.id,
        "sha256": bundle.sha256,
        "signed_by": bundle.signed_by,
        "manifest": to_json(bundle.manifest),
    }
