"""Settings that one version knows and another one does not are set aside, and misspelled ones are told. ``test_install.py`` has real versions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edge_effdet.device import settings
from edge_effdet.device.service.options import ServiceOptions
from edge_effdet.device.settings import ASIDE, fit_settings, read_settings, write_settings
from edge_effdet.device.store import CONFIG, Store
from edge_effdet.device.version import VersionRecord
from edge_effdet.errors import InputError

EARLIER = {"source", "score_threshold"}
LATER = {"source", "score_threshold", "threads", "siren"}


@pytest.fixture
def store(tmp_path: Path, monkeypatch) -> Store:
    """A store with an earlier and a later version, whose Pythons are not there: what they would answer is put in their place."""
    store = Store.at(tmp_path / "root", "cells")
    store.create()
    for name in ("1.0-earlier", "2.0-later"):
        store.begin(store.version(name), {"bundle": name})
        record = VersionRecord(
            bundle=name, bundle_sha256="0" * 64, release="1.0", precision="int8", backend="onnxruntime", engine="engine/cells.onnx",
            engine_sha256="1" * 64, record_sha256="2" * 64, signed_by=None, keys=(),
        )  # fmt: skip
        store.complete(store.version(name), record)
    known = {"1.0-earlier": EARLIER, "2.0-later": LATER}
    monkeypatch.setattr(settings, "_ask", lambda version: known[version.id])
    return store


def write(store: Store, raw: dict[str, object], name: str = CONFIG) -> None:
    (store.folder / name).write_text(json.dumps(raw))


def read(store: Store, name: str = CONFIG) -> dict[str, object]:
    path = store.folder / name
    return json.loads(path.read_text()) if path.exists() else {}


def test_what_the_version_before_does_not_know_is_set_aside_and_comes_back(store):
    earlier, later = store.version("1.0-earlier"), store.version("2.0-later")
    write(store, {"source": "0", "threads": 2, "siren": "loud"})
    fit_settings(store, earlier, later)
    assert (read(store), read(store, ASIDE)) == ({"source": "0"}, {"threads": 2, "siren": "loud"})
    # This version knows the one and not the other.
    found = read_settings(store)
    assert found.options == ServiceOptions(source="0", threads=2) and found.moved
    assert found.aside == {"siren": "loud"}
    write_settings(store, found)
    assert (read(store)["threads"], read(store, ASIDE)) == (2, {"siren": "loud"})
    assert not read_settings(store).moved


def test_what_is_set_in_the_meantime_counts(store):
    write(store, {"threads": 2}, ASIDE)
    write(store, {"source": "0", "threads": 4})
    assert read_settings(store).options.threads == 4


def test_a_misspelled_setting_is_told_and_stays(store):
    write(store, {"source": "0", "sauce": "1", "siren": "loud"})
    with pytest.raises(InputError, match="sauce is not a field"):
        read_settings(store)
    fit_settings(store, store.version("1.0-earlier"), store.version("2.0-later"))
    assert (read(store), read(store, ASIDE)) == ({"source": "0", "sauce": "1"}, {"siren": "loud"})


def test_nothing_is_written_where_all_is_known(store):
    write(store, {"source": "0"})
    before = (store.folder / CONFIG).stat().st_mtime_ns
    fit_settings(store, store.version("1.0-earlier"), store.version("2.0-later"))
    assert (store.folder / CONFIG).stat().st_mtime_ns == before and not (store.folder / ASIDE).exists()
    assert read_settings(store) == settings.KnownSettings(ServiceOptions(source="0"), {}, False)


def test_a_value_that_makes_no_sense_any_more_is_left_out(store, caplog):
    write(store, {"threads": "many"}, ASIDE)
    write(store, {"source": "0"})
    assert read_settings(store).options == ServiceOptions(source="0")
    assert "is left out" in caplog.text
