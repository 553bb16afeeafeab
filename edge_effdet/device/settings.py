"""The settings of the service where versions differ in what they know.

A version refuses a setting in ``config.json`` that it does not know: a misspelled one would else be passed over in silence. A later version may have more
settings, and the one before it is returned to. So what a version does not know, and another one that is installed does, is set aside for that one.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

from edge_effdet.artifacts import json_text
from edge_effdet.artifacts.reading import from_json, to_json
from edge_effdet.device.durable import write_durably
from edge_effdet.device.service.options import ServiceOptions, read_options, write_options
from edge_effdet.device.steps import run_program
from edge_effdet.device.store import CONFIG, Store
from edge_effdet.device.version import Version, read_json
from edge_effdet.errors import EdgeEffDetError

logger = logging.getLogger("edge_effdet.device")

ASIDE = "config.aside.json"
"""In the folder of an installation: settings that the version that runs does not know, until one runs that does."""

_ASK = """
import dataclasses, json
from edge_effdet.device.service.options import ServiceOptions
print(json.dumps([each.name for each in dataclasses.fields(ServiceOptions)]))
"""


@dataclass(frozen=True, slots=True)
class KnownSettings:
    """The settings of an installation as this version sees them.

    Attributes:
        options: those that it knows.
        aside: those that it does not know and another installed version does.
        moved: whether some of them stand in another file than they should.
    """

    options: ServiceOptions
    aside: dict[str, Any]
    moved: bool


def read_settings(store: Store) -> KnownSettings:
    """Read ``config.json``, and what was set aside.

    Raises:
        InputError: the file is damaged, or has a setting that no installed version knows.
        UsageError: a setting in it makes no sense.
    """
    raw, aside = _read(store)
    own = _own_names()
    unknown = [name for name in raw if name not in own]
    foreign = _known_to(store.versions(), unknown)
    back = {name: value for name, value in aside.items() if name in own}
    options = read_options(store.folder, foreign)
    if back:
        try:
            options = from_json(ServiceOptions, {**to_json(options), **back, **_of(raw, own)})
        except (ValueError, EdgeEffDetError) as error:
            logger.warning("%s is left out, since this version cannot use it: %s", store.folder / ASIDE, error)
    kept = {name: value for name, value in aside.items() if name not in own}
    return KnownSettings(options, {**kept, **_of(raw, foreign)}, bool(back or foreign))


def write_settings(store: Store, settings: KnownSettings) -> None:
    """Write both files, so that a kill in between loses nothing: what moves from the one to the other stands in both for a moment."""
    _write_aside(store, {**_read(store)[1], **settings.aside})
    write_options(store.folder, settings.options)
    _write_aside(store, settings.aside)


def fit_settings(store: Store, version: Version, left: Version | None) -> None:
    """Let ``config.json`` have what a version knows, which is about to be returned to.

    Args:
        store: of the installation.
        version: the one that is returned to.
        left: the one that is left; None where there is none.
    """
    raw, aside = _read(store)
    known = _ask(version)
    unknown = [name for name in raw if name not in known]
    if not known or not unknown:
        return
    foreign = [name for name in unknown if name in _own_names()]
    foreign += _known_to([left] if left is not None else [], [name for name in unknown if name not in foreign])
    if foreign:
        logger.warning(
            "%s has settings that %s does not know (%s): they are set aside for a version that does",
            store.folder / CONFIG, version.id, ", ".join(foreign),
        )  # fmt: skip
        _write_aside(store, {**aside, **_of(raw, foreign)})
        rest = {name: value for name, value in raw.items() if name not in foreign}
        write_durably(store.folder / CONFIG, json_text(rest, indent=2) + "\n", mode=0o600)


def _read(store: Store) -> tuple[dict[str, Any], dict[str, Any]]:
    raw, aside = (read_json(store.folder / name) for name in (CONFIG, ASIDE))
    return raw if isinstance(raw, dict) else {}, aside if isinstance(aside, dict) else {}


def _write_aside(store: Store, aside: dict[str, Any]) -> None:
    path = store.folder / ASIDE
    if aside:
        # The address of a receiver may hold a password.
        write_durably(path, json_text(aside, indent=2) + "\n", mode=0o600)
    else:
        path.unlink(missing_ok=True)


def _own_names() -> set[str]:
    return {each.name for each in fields(ServiceOptions)}


def _known_to(versions: Iterable[Version], names: list[str]) -> list[str]:
    """Those of the names that one of the versions knows as a setting. Nothing is asked where there are no names."""
    found: set[str] = set()
    for version in versions if names else ():
        if version.record is not None and not found.issuperset(names):
            found |= _ask(version)
    return [name for name in names if name in found]


def _ask(version: Version) -> set[str]:
    """The settings that a version knows; none where it cannot be asked."""
    try:
        done = run_program([version.python, "-I", "-c", _ASK], answers=True)
        return set(json.loads(done.answer)) if done.code == 0 else set()
    except (ValueError, TypeError, EdgeEffDetError):
        return set()


def _of(raw: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: raw[name] for name in names if name in raw}
