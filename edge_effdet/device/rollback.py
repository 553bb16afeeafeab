"""Returning to the version before, and removing all versions."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

from edge_effdet.device.durable import remove_path, sync_folder, telling_errors
from edge_effdet.device.manifest import ENTRY
from edge_effdet.device.options import RollbackOptions, UninstallOptions
from edge_effdet.device.restart import (
    end_other_kind,
    find_good,
    find_running,
    manager_of,
    restart_and_wait,
    see_log,
    stop_quietly,
    tell_of_other,
)
from edge_effdet.device.service.options import read_options
from edge_effdet.device.settings import ASIDE, fit_settings
from edge_effdet.device.steps import logging_to
from edge_effdet.device.store import (
    CACHE,
    CONFIG,
    CURRENT,
    KEYS,
    LOCK,
    LOG,
    MARKER,
    ROLLBACK,
    SERVICE,
    STATE,
    VERSIONS,
    Store,
)
from edge_effdet.device.using import take_config_back
from edge_effdet.device.version import Version
from edge_effdet.errors import BundleError, InputError, NotHealthy

logger = logging.getLogger("edge_effdet.device")


@dataclass(frozen=True, slots=True)
class RolledBack:
    """How a rollback went.

    Attributes:
        store: the folder of the installation.
        left: the id of the version that ran; None where none did.
        version: the id of the one that runs now.
        service: ``healthy``, or that no service is kept.
    """

    store: Path
    left: str | None
    version: str
    service: str


def rollback(name: str | None, options: RollbackOptions) -> RolledBack:
    """Return to the last good version before the one that runs.

    The one that runs is marked bad, so that a second rollback goes further back; it can be installed again from its bundle. A rollback that was cut off
    is finished first, and then goes no further.

    Args:
        name: of the installation; None where there is only one.
        options: where and how.

    Raises:
        BundleError: there is no version to return to.
        InputError: nothing is installed, or another process is at work on it.
        NotHealthy: the service is not healthy with that version either, which stays the current one.
    """
    store = Store.find(options.place, name)
    with store.lock(), telling_errors(store.folder), logging_to(store.folder / LOG):
        store.sweep()
        current, manager = store.current(), manager_of(store, options.service)
        if manager is not None:
            # Damaged settings would stop a service that runs well.
            read_options(store.folder)
        pending = store.pending_rollback()
        if pending is not None:
            left, version = pending
            logger.info("finishing the rollback from %s to %s, which was cut off", left, version.id)
        else:
            left, version = None if current is None else current.id, _find_target(store, current)
            store.begin_rollback(current, version)
        if current is not None and current.id != version.id:
            # Before the switch: after a kill in between nothing returns to it.
            store.mark_bad(current, "rolled back by hand")
            # Settings of an installation that was cut off before its service was healthy.
            take_config_back(store, current)
        fit_settings(store, version, current)
        store.switch(version)
        logger.info("rolled back from %s to %s", left or "nothing", version.id)
        if options.service != "auto":
            end_other_kind(store, manager)
            store.keep_service_kind("none" if manager is None else manager.kind)
        service = "no service is kept"
        if manager is not None:
            health = restart_and_wait(store, version, manager, options.healthy_within)
            if not health.healthy:
                store.end_rollback()
                raise NotHealthy(
                    f"{version.id} was switched back to, and its service did not become healthy in {options.healthy_within:g} s ({health.reason}); "
                    f"roll back further, or {see_log(store)}."
                )
            service = "healthy"
        else:
            tell_of_other(store, version)
        store.end_rollback()
        return RolledBack(store.folder, left, version.id, service)


def _find_target(store: Store, current: Version | None) -> Version:
    """The last good version before the current one that is still as it was. Raises BundleError where there is none."""
    version = find_good(store)
    if version is None:
        running = f"{current.id} runs, and " if current is not None else ""
        raise BundleError(
            f"{running}there is no version before it in {store.folder} that was good and is still whole; install an earlier bundle with "
            "`allow_downgrade`."
        )
    return version


def uninstall(name: str | None, options: UninstallOptions) -> list[str]:
    """Stop the service and remove all versions.

    Args:
        name: of the installation; None where there is only one.
        options: where, and whether the settings and the keys go too.

    Returns:
        What is left in the folder: the settings and the keys unless they were purged, and files of others, which are never removed.

    Raises:
        BundleError: the folder belongs to something else.
        InputError: nothing is installed, or another process is at work on it or runs the engine, or something cannot be removed.
    """
    store = Store.find(options.place, name)
    with store.lock(), telling_errors(store.folder):
        manager = manager_of(store, "auto")
        if manager is not None:
            stop_quietly(manager)
            manager.remove()
        running = find_running(store)
        if running is not None:
            # Without its files it would fail somewhere, and make folders anew where they were.
            raise InputError(
                f"Process {running.pid} still runs {running.version}, since somebody started it by hand, so nothing was removed; end it and run this again."
            )
        store.sweep()
        # First what makes it run: a kill later leaves nothing that half works. Last what tells that the folder is ours, so that a second run goes on.
        # Nothing else than a link is ours.
        if (store.folder / CURRENT).is_symlink():
            (store.folder / CURRENT).unlink()
        sync_folder(store.folder)
        for version in store.versions():
            store.remove(version)
        for each in (VERSIONS, CACHE, STATE, LOG, SERVICE, ROLLBACK, ENTRY):
            remove_path(store.folder / each)
        if options.purge:
            for each in (CONFIG, ASIDE, KEYS, MARKER, LOCK):
                remove_path(store.folder / each)
        left = sorted(each.name for each in store.folder.iterdir())
        if not left:
            store.folder.rmdir()
        return left
