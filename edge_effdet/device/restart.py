"""Starting the service again after a switch, and waiting until it is healthy."""

from __future__ import annotations

import logging

from edge_effdet.device.integrity import check_version
from edge_effdet.device.manifest import ENTRY
from edge_effdet.device.service.health import Health, wait_until_healthy
from edge_effdet.device.service.processes import process_owner
from edge_effdet.device.service.starting import ServiceManager, get_manager
from edge_effdet.device.service.status import ServiceStatus, read_status, status_path
from edge_effdet.device.settings import fit_settings
from edge_effdet.device.steps import LOG_FILE
from edge_effdet.device.store import LOG, Store
from edge_effdet.device.version import Version
from edge_effdet.errors import BundleError, EdgeEffDetError, EngineError

logger = logging.getLogger("edge_effdet.device")


def manager_of(store: Store, kind: str) -> ServiceManager | None:
    """What runs the engine of a store; None where nothing does.

    Args:
        store: whose.
        kind: of ``starting.KINDS``; for ``auto`` the kind that was used before, and nothing where none was.
    """
    if kind == "auto":
        kind = store.service_kind() or "none"
    return None if kind == "none" else get_manager(kind, store.name, store.folder)


def end_other_kind(store: Store, manager: ServiceManager | None) -> None:
    """Stop what ran the engine until now where that is of another kind: it would go on beside the new one."""
    before = manager_of(store, "auto")
    if before is not None and (manager is None or before.kind != manager.kind):
        before.stop()
        before.remove()


def find_good(store: Store, beside: Version | None = None) -> Version | None:
    """The last good version that is still as it was; one that is not is marked bad. None where there is none.

    Args:
        store: where the versions are.
        beside: the version that is left; None for the current one.
    """
    while True:
        version = store.last_good(beside)
        if version is None:
            return None
        try:
            check_version(version)
        except (BundleError, EngineError) as error:
            logger.warning("%s is damaged and is passed over: %s", version.id, error)
            store.mark_bad(version, f"damaged: {error}")
        else:
            return version


def restart_and_wait(store: Store, version: Version, manager: ServiceManager, seconds: float) -> Health:
    """Start the service again and wait until it says that it runs the version and is healthy.

    Returns:
        Whether it is; an error while it is started is a reason why not.
    """
    try:
        manager.install()
        manager.restart()
        return wait_until_healthy(store.folder, version.id, seconds)
    except EdgeEffDetError as error:
        return Health(False, str(error).rstrip(".").split("\n")[0])


def go_back(store: Store, version: Version, manager: ServiceManager, reason: str, seconds: float | None) -> str:
    """Leave a version that did not become healthy: mark it bad, switch to the one before it, and start that.

    Args:
        store: where both are.
        version: the one that is left.
        manager: of the service.
        reason: why it is left.
        seconds: how long the one before it may take to become healthy; None not to wait for that.

    Returns:
        What was done, as a part of a sentence.
    """
    # Marked before the switch: after a kill in between, no rollback returns to it.
    store.mark_bad(version, reason)
    before = find_good(store, version)
    if before is None:
        stop_quietly(manager)
        return "there is no version before it to return to and the service was stopped"
    fit_settings(store, before, version)
    store.switch(before)
    logger.warning("switched back to %s", before.id)
    health = restart_and_wait(store, before, manager, seconds or 0)
    if health.healthy or seconds is None:
        return f"{before.id} runs again"
    return f"{before.id} was switched back to, which is not healthy either ({health.reason})"


def find_running(store: Store) -> ServiceStatus | None:
    """What runs an engine of the store now, as its status tells: the service, or a ``run`` that somebody started. None where nothing does."""
    status = read_status(store.folder)
    if status is None or not status.alive:
        return None
    # The user of the service owns the file, and could name any process in it.
    owner = status_path(store.folder).lstat().st_uid
    return status if owner in (0, process_owner(status.pid)) else None


def tell_of_other(store: Store, version: Version) -> None:
    """Say that a process goes on with another version than the current one, which nothing of ours restarts: it was started by hand."""
    running = find_running(store)
    if running is not None and running.version != version.id:
        logger.warning(
            "process %d still runs %s, since somebody started it by hand; end it and run %s run again, which takes %s",
            running.pid, running.version, store.folder / ENTRY, version.id,
        )  # fmt: skip


def stop_quietly(manager: ServiceManager) -> None:
    """Stop the service; where that fails it was not running."""
    try:
        manager.stop()
    except EdgeEffDetError as error:
        logger.warning("%s", error)


def see_log(store: Store) -> str:
    """The end of a message that leads to the log."""
    return f"see {store.folder / LOG / LOG_FILE}"
