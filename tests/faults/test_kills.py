"""An installation, an update, a rollback and a removal are killed at every step and before every change of a file: what worked goes on working."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from edge_effdet.device.install import install
from edge_effdet.device.integrity import verify_installed
from edge_effdet.device.options import InstallOptions, RollbackOptions, UninstallOptions
from edge_effdet.device.rollback import rollback, uninstall
from edge_effdet.device.store import Store
from tests.bundles import copy_root, write_bundle
from tests.faults.killed import MOMENTS

HERE = Path(__file__).parents[2]
MARKED, OTHERS = ("copy", "environment", "engine"), ("complete", "switch", "configure", "service", "retain")


def kills(without: str) -> list[tuple[str, str]]:
    """All moments of all steps but of one, in their order. A step without a mark is done as soon as its work is."""
    all_of_them = [(step, moment) for step in MARKED for moment in MOMENTS]
    all_of_them += [(step, moment) for step in OTHERS for moment in MOMENTS[:-1]]
    return [each for each in all_of_them if each[0] != without]


@pytest.fixture(scope="module")
def bundles(template, tmp_path_factory):
    """Three releases, and a root in which the first two are installed, of which the first one runs."""
    folder = tmp_path_factory.mktemp("kills")
    for release in ("1.0", "2.0", "3.0"):
        write_bundle(template, folder / release, release=release)
    return folder


@pytest.fixture(scope="module")
def prepared(bundles):
    """A root in which the second release runs and the first one was before."""
    root = bundles / "prepared"
    for release in ("1.0", "2.0"):
        put(bundles / release, root)
    return root


def put(source: Path, root: Path, keep: int = 3) -> None:
    install(source, InstallOptions(root=root, service="none", keep=keep))


def killed(moment: str, *arguments: object) -> bool:
    """Whether an operation was killed; else it ended well."""
    command = [sys.executable, "-m", "tests.faults.killed", moment, *map(str, arguments)]
    done = subprocess.run(command, cwd=HERE, capture_output=True, text=True)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode != 0


def works(root: Path) -> str | None:
    """The release that runs, all of whose files are right; None where none does."""
    store = Store.at(root, "cells")
    if not store.exists or not (store.folder / "current").is_symlink():
        return None
    return verify_installed(store).version.require_record().release


def test_a_first_installation_is_killed_at_each_step(bundles, tmp_path):
    root, switched = tmp_path / "root", False
    # There is no version that could be removed.
    for step, moment in kills(without="retain"):
        assert killed(f"{step}:{moment}", "install", root, bundles / "1.0", 3), f"{step} was not done again"
        switched = switched or (step, moment) == ("switch", "done")
        assert works(root) == ("1.0" if switched else None)
    put(bundles / "1.0", root)
    assert works(root) == "1.0"
    assert len(Store.at(root, "cells").versions()) == 1


def test_an_update_is_killed_at_each_step(bundles, prepared, tmp_path):
    root, switched = copy_root(prepared, tmp_path / "root"), False
    # The settings are those of the version before.
    for step, moment in kills(without="configure"):
        assert killed(f"{step}:{moment}", "install", root, bundles / "3.0", 2), f"{step} was not done again"
        switched = switched or (step, moment) == ("switch", "done")
        assert works(root) == ("3.0" if switched else "2.0")
    put(bundles / "3.0", root, keep=2)
    assert works(root) == "3.0"
    assert [each.require_record().release for each in Store.at(root, "cells").versions()] == ["2.0", "3.0"]
    rollback(None, RollbackOptions(root=root, service="none"))
    assert works(root) == "2.0"


def kill_before_each_change(prepared: Path, place: Path, *operation: object):
    """Kill an operation before its first change of a file, before its second one, and so on until it ends. Gives the root after each kill."""
    for number in range(1, 1000):
        root = copy_root(prepared, place / str(number))
        what, *more = operation
        if not killed(str(number), what, root, *more):
            assert number > 5, "nothing was changed"
            return
        yield root
        shutil.rmtree(root)
    raise AssertionError("it never ended")


@pytest.mark.slow
def test_a_rollback_is_killed_before_each_change_of_a_file(prepared, tmp_path):
    ready = copy_root(prepared, tmp_path / "ready")
    store = Store.at(ready, "cells")
    (oldest,) = (each for each in store.versions() if each.id.startswith("1.0"))
    before = copy_root(oldest.folder, oldest.folder.with_name("0.9-before"))
    (before / "standing.json").unlink()
    (before / "standing.json").write_text('{"order": 0, "good": true, "bad": null}')
    assert [each.id.partition("-")[0] for each in store.versions()] == ["0.9", "1.0", "2.0"]
    for root in kill_before_each_change(ready, tmp_path, "rollback"):
        assert works(root) in ("1.0", "2.0")
        # The next one finishes it and goes no further, though there is another version before.
        rollback(None, RollbackOptions(root=root, service="none"))
        assert works(root) == "1.0"


@pytest.mark.slow
def test_a_switch_is_killed_before_each_change_of_a_file(bundles, prepared, tmp_path):
    """All that comes after the engine: the release is there from before, and another one is removed."""
    ready = copy_root(prepared, tmp_path / "ready")
    put(bundles / "3.0", ready)
    rollback(None, RollbackOptions(root=ready, service="none"))
    assert works(ready) == "2.0"
    for root in kill_before_each_change(ready, tmp_path, "install", bundles / "3.0", 2):
        assert works(root) in ("2.0", "3.0")
        put(bundles / "3.0", root, keep=2)
        assert works(root) == "3.0"
        assert [each.require_record().release for each in Store.at(root, "cells").versions()] == ["2.0", "3.0"]


def test_a_removal_is_killed_before_each_change_of_a_file(prepared, tmp_path):
    small = copy_root(prepared, tmp_path / "small")
    # Of the thousands of files of the environments a few are enough.
    for venv in (small / "cells" / "versions").glob("*/venv"):
        shutil.rmtree(venv / "lib")
    for root in kill_before_each_change(small, tmp_path, "uninstall"):
        # Either it works as before, or there is nothing left that looks as if it did.
        store = Store.at(root, "cells")
        current = store.current()
        assert current is None or current.engine.is_file()
        if store.exists:
            uninstall("cells", UninstallOptions(root=root, purge=True))
            assert not store.folder.exists()
        assert not store.folder.exists() or {each.name for each in store.folder.iterdir()} <= {"lock"}
