"""The steps that let a version run which was made: switch, configure, service, retain, keys."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from edge_effdet.device.durable import sync_all, write_durably
from edge_effdet.device.making import InstallWork
from edge_effdet.device.restart import end_other_kind, go_back, manager_of, restart_and_wait, see_log, tell_of_other
from edge_effdet.device.service.options import ServiceOptions
from edge_effdet.device.service.starting import ServiceManager, get_manager
from edge_effdet.device.settings import KnownSettings, read_settings, write_settings
from edge_effdet.device.signature import read_public_key
from edge_effdet.device.steps import Step
from edge_effdet.device.store import CONFIG, CURRENT, Store
from edge_effdet.device.version import EARLIER_CONFIG, Version
from edge_effdet.errors import NotHealthy, UsageError

logger = logging.getLogger("edge_effdet.device")


def using_steps(work: InstallWork, version: Version) -> list[Step]:
    """The steps.

    Args:
        work: what is installed.
        version: the version that it became.

    Raises:
        UsageError: a service is asked for that has nothing to look at.
    """
    store, keep = work.store, work.options.keep
    settings = _wanted_settings(work)
    config = settings.options
    manager = choose_manager(store, work.options.service, config.source)
    keys = _keys_to_keep(work)

    kind = "none" if manager is None else manager.kind

    def is_proven() -> bool:
        proven = store.version(version.id).standing.good and not (version.folder / EARLIER_CONFIG).exists()
        # What ran the engine until now may be of another kind, and is then to be stopped.
        return proven and store.service_kind() in (None, kind) and (manager is None or manager.is_running())

    within = f"{work.options.healthy_within:g} s"
    serve = "keep no service" if manager is None else f"restart it and wait {within} at most until it is healthy"
    return [
        Step(
            name="switch",
            what=f"let {store.folder / CURRENT} lead to {version.id}",
            is_done=lambda: _is_current(store, version),
            do=lambda: _switch(store, version),
        ),
        # After the switch: cut off in between, the version before would run with settings that nothing has proven.
        Step(
            name="configure",
            what=f"write {store.folder / CONFIG}",
            is_done=lambda: _is_configured(store, config),
            do=lambda: _configure(store, version, settings),
        ),
        Step(name="service", what=serve, is_done=is_proven, do=lambda: _serve(work, version, manager)),
        Step(
            name="retain",
            what=f"remove {' and '.join(each.id for each in store.superfluous(keep, version))}",
            is_done=lambda: not store.superfluous(keep, version),
            do=lambda: _retain(store, keep),
            idle="nothing to do",
        ),
        # Last: a run that is cut off before this is repeated while the keys that signed the bundle are still trusted.
        Step(
            name="keys",
            what=f"trust {' and '.join(read_public_key(each).id for each in keys)}",
            is_done=lambda: not keys or set(keys) == {read_public_key(each).text for each in store.trusted_keys()},
            do=lambda: store.replace_keys(keys),
            idle="nothing to do",
        ),
    ]


def _is_current(store: Store, version: Version) -> bool:
    """Whether the link leads there, and by a switch: a version that was made again in its place has no number yet."""
    current = store.current()
    return current is not None and current.id == version.id and current.standing.order > 0


def _wanted_settings(work: InstallWork) -> KnownSettings:
    """What ``CONFIG`` has to be: as it is, with the options that were given."""
    names = ("source", "score_threshold", "threads")
    given = {name: value for name in names if (value := getattr(work.options, name)) is not None}
    found = read_settings(work.store)
    wanted = replace(found.options, **given)
    # As write_options writes it.
    is_path = wanted.source and Path(wanted.source).exists()
    wanted = replace(wanted, source=str(Path(wanted.source).absolute())) if is_path else wanted
    return replace(found, options=wanted)


def _is_configured(store: Store, config: ServiceOptions) -> bool:
    """Whether ``CONFIG`` was written, and is as it has to be."""
    if not (store.folder / CONFIG).exists():
        return False
    found = read_settings(store)
    return found.options == config and not found.moved


def choose_manager(store: Store, asked: str, source: str) -> ServiceManager | None:
    """What will run the engine. Without a source there is nothing to run, so a service that nobody asked for is left out.

    Args:
        store: of the installation.
        asked: of ``starting.KINDS``.
        source: what the service will look at.

    Raises:
        UsageError: a service is asked for that has nothing to look at.
    """
    if asked == "auto" and not source:
        return None
    if asked == "auto" and store.service_kind() is None:
        return get_manager(asked, store.name, store.folder)
    manager = manager_of(store, asked)
    if manager is not None and not source:
        raise UsageError(f"A service needs something to look at; give `source`, or `service` none in place of {asked}.")
    return manager


def _configure(store: Store, version: Version, settings: KnownSettings) -> None:
    path, earlier = store.folder / CONFIG, version.folder / EARLIER_CONFIG
    # After several attempts it is the one from before the first that a service that fails goes back to.
    if not earlier.exists():
        write_durably(earlier, path.read_text(encoding="utf-8") if path.exists() else "", mode=0o600)
    write_settings(store, settings)
    sync_all()


def take_config_back(store: Store, version: Version) -> bool:
    """Restore the settings from before the installation. Returns whether they were others."""
    path, earlier = store.folder / CONFIG, version.folder / EARLIER_CONFIG
    if not earlier.exists():
        return False
    text = earlier.read_text(encoding="utf-8")
    if text:
        write_durably(path, text, mode=0o600)
    else:
        path.unlink(missing_ok=True)
    earlier.unlink()
    return True


def _serve(work: InstallWork, version: Version, manager: ServiceManager | None) -> str:
    store, seconds = work.store, work.options.healthy_within
    version = store.version(version.id)
    end_other_kind(store, manager)
    # Without a source nothing runs for now, which is no choice for later.
    if manager is not None or work.options.service == "none":
        store.keep_service_kind("none" if manager is None else manager.kind)
    if manager is None:
        _prove(store, version)
        tell_of_other(store, version)
        return f"no service is kept; {store.folder}/edge-effdet run starts the engine"
    try:
        health = restart_and_wait(store, version, manager, seconds)
    except KeyboardInterrupt:
        reverted = take_config_back(store, version)
        if version.standing.good and reverted:
            restart_and_wait(store, version, manager, 0)
            logger.warning("interrupted: the earlier settings are back")
        else:
            logger.warning(
                "interrupted: %s", go_back(store, version, manager, "interrupted before it was healthy", None)
            )
        raise
    if health.healthy:
        _prove(store, version)
        return "healthy"
    logger.error("%s is not healthy: %s", version.id, health.reason)
    reverted = take_config_back(store, version)
    if version.standing.good and reverted:
        again = restart_and_wait(store, version, manager, seconds)
        back = "the earlier settings are back"
        back += "" if again.healthy else f", with which it is not healthy either ({again.reason})"
    else:
        back = go_back(store, version, manager, health.reason, seconds)
    raise NotHealthy(
        f"The service of {version.id} did not become healthy in {seconds:g} s ({health.reason}), so {back}; {see_log(store)}."
    )


def _switch(store: Store, version: Version) -> None:
    store.switch(store.count_up(store.version(version.id)))
    # A rollback that was cut off before is not to be finished now.
    store.end_rollback()


def _prove(store: Store, version: Version) -> None:
    store.mark_good(version)
    (version.folder / EARLIER_CONFIG).unlink(missing_ok=True)


def _retain(store: Store, keep: int) -> str:
    removed = store.superfluous(keep)
    for each in removed:
        store.remove(each)
    return f"removed {' and '.join(each.id for each in removed)}"


def _keys_to_keep(work: InstallWork) -> tuple[str, ...]:
    """The keys that this device trusts from now on: those of a bundle that a trusted key signed, else those that are trusted now."""
    named = work.bundle.manifest.trusted_keys
    if named and work.bundle.signed_by is not None:
        return tuple(read_public_key(each).text for each in named)
    if named:
        logger.warning("the bundle names keys to trust, which are not taken over, since no trusted key signed it")
    return tuple(read_public_key(each).text for each in work.keys)
