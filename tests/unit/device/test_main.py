"""The verbs of a bundle and of an installation: who is meant, and what is refused."""

from __future__ import annotations

import json

import pytest

from edge_effdet.device.__main__ import VERBS, main
from edge_effdet.device.service.status import status_path, write_status
from edge_effdet.device.store import Store
from tests.statuses import make_status


def test_without_a_verb_all_are_listed(capsys):
    assert main([]) == 0
    told = capsys.readouterr().out
    assert all(f"  {verb}" in told for verb in VERBS)


def test_the_version_is_told(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("edge-effdet ")


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("caller", [[], ["--bundle", "x"], ["--store", "x"]])
def test_every_verb_explains_itself(verb, caller, capsys):
    with pytest.raises(SystemExit) as ended:
        main([*caller, verb, "--help"])
    assert ended.value.code == 0
    told = capsys.readouterr().out
    assert "--json" in told and "example:" in told


def test_an_unknown_verb_gets_the_nearest(capsys):
    assert main(["instal"]) == 2
    assert (
        capsys.readouterr().err == "error: There is no verb 'instal'; the nearest is install, and --help lists all.\n"
    )


def test_nothing_is_installed(tmp_path, capsys):
    for verb in ("verify", "run", "rollback", "status", "uninstall"):
        assert main([verb, "--root", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert "nothing is installed" in error and error.count("\n") == 1


def test_the_entry_of_an_installation_means_this_one(tmp_path, capsys):
    store = Store.at(tmp_path, "bccd")
    store.create()
    assert main(["--store", str(store.folder), "status", "--json"]) == 4
    assert json.loads(capsys.readouterr().out)["store"] == str(store.folder)
    assert main(["--store", str(store.folder), "status", "--root", str(tmp_path / "other")]) == 2
    assert "leave it out" in capsys.readouterr().err


def test_a_folder_that_is_no_bundle_is_refused(tmp_path, capsys):
    (tmp_path / "photos").mkdir()
    assert main(["install", str(tmp_path / "photos"), "--root", str(tmp_path / "root")]) == 2
    assert "is not a bundle" in capsys.readouterr().err
    assert not (tmp_path / "root").exists()


def test_another_projects_folder_is_not_uninstalled(tmp_path, capsys):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("mine")
    assert main(["uninstall", "--root", str(tmp_path), "--name", "site"]) == 2
    assert "belongs to something else" in capsys.readouterr().err
    assert (tmp_path / "site" / "index.html").read_text() == "mine"


def test_status_ends_with_4_where_the_service_is_not_healthy(tmp_path, capsys):
    """What a monitor asks for."""
    store = Store.at(tmp_path, "bccd")
    store.create()
    command = ["--store", str(store.folder), "status"]
    assert main(command) == 4
    told = capsys.readouterr()
    assert "healthy  no: it has written no status" in told.out
    assert told.err == "error: The service of bccd is not healthy: it has written no status, so it has not started.\n"
    write_status(status_path(store.folder), make_status())
    assert main([*command, "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["healthy"] and told.err == ""
    write_status(status_path(store.folder), make_status(healthy=False, reason="no frame has come so far"))
    assert main([*command, "--json"]) == 4
    told = capsys.readouterr()
    assert json.loads(told.out)["reason"] == "no frame has come so far" and "no frame has come so far" in told.err


@pytest.mark.parametrize("arguments", [["status", "--root", ""], ["install", "--root", "", "bundle"], ["install", ""]])
def test_an_empty_path_is_not_the_present_folder(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "the path is empty; write . for the present folder" in capsys.readouterr().err
