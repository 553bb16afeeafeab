"""What an installation is told: defaults that suit most, and numbers that make no sense."""

from __future__ import annotations

from pathlib import Path

import pytest

from edge_effdet.device.options import InstallOptions, PlaceOptions, RollbackOptions
from edge_effdet.device.store import default_root
from edge_effdet.errors import UsageError


def test_the_place_is_absolute_and_without_links(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    monkeypatch.chdir(tmp_path)
    assert PlaceOptions(root="link").place == tmp_path / "real"
    assert PlaceOptions().place == Path(default_root())


def test_an_empty_place_is_not_the_present_folder():
    with pytest.raises(UsageError, match="A path is empty"):
        _ = PlaceOptions(root="").place


@pytest.mark.parametrize(
    "wrong",
    [
        {"keep": 0},
        {"workspace_mib": -1},
        {"threads": -1},
        {"healthy_within": -1},
        {"precision": "int4"},
        {"service": "cron"},
    ],
)
def test_what_makes_no_sense_is_refused(wrong):
    (name,) = wrong
    with pytest.raises(UsageError, match=f"`{name}`"):
        InstallOptions(**wrong)


def test_a_rollback_restarts_what_there_is():
    assert RollbackOptions().service == "auto"
    with pytest.raises(UsageError, match="`service`"):
        RollbackOptions(service="cron")
