"""A small bundle is installed, updated, rolled back and removed for real: venv, pip, the engine, the link, the service."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from edge_effdet.deploying.archive import write_archive
from edge_effdet.deploying.signing import make_keys, sign_file
from edge_effdet.device import inspect, steps, using
from edge_effdet.device.__main__ import main
from edge_effdet.device.durable import folder_mib
from edge_effdet.device.install import Installed, install
from edge_effdet.device.integrity import verify_installed
from edge_effdet.device.manifest import SIGNATURE, SUMS
from edge_effdet.device.options import InstallOptions, RollbackOptions, UninstallOptions
from edge_effdet.device.restart import manager_of
from edge_effdet.device.rollback import rollback, uninstall
from edge_effdet.device.service.options import ServiceOptions, write_options
from edge_effdet.device.service.status import read_status
from edge_effdet.device.settings import ASIDE
from edge_effdet.device.signature import read_public_key
from edge_effdet.device.store import Store
from edge_effdet.errors import (
    AccuracyGateFailed,
    BundleError,
    EngineError,
    InputError,
    NotHealthy,
    UsageError,
)
from tests.bundles import PACKAGES, all_files, copy_root, write_bundle, write_template
from tests.emulation.small_detector import make_pictures
from tests.once import make_once
from tests.statuses import wait

LETTERS = "Straße mit Ähren"


@pytest.fixture(scope="session")
def bundles(template, tmp_path_factory):
    """Two releases of the small bundle, in a folder whose name has spaces and letters beyond ASCII."""

    def make(folder: Path) -> None:
        place = folder / LETTERS
        place.mkdir()
        for release in ("1.0", "1.10"):
            write_bundle(template, place / release, release=release)

    return make_once(tmp_path_factory, "bundles", make) / LETTERS


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "Wurzel é"


@pytest.fixture(scope="session")
def installed_once(bundles, tmp_path_factory):
    """An installation of the first release. A test that changes nothing uses it as it is."""

    def make(folder: Path) -> None:
        install(bundles / "1.0", InstallOptions(root=folder / "root", service="none"))

    return make_once(tmp_path_factory, "installed", make) / "root"


@pytest.fixture
def ready(installed_once, root):
    """A root of a test's own in which the first release is installed."""
    return copy_root(installed_once, root)


def put(bundle: Path, root: Path, **options) -> Installed:
    return install(bundle, InstallOptions(root=root, **{"service": "none", **options}))


def current(root: Path) -> str | None:
    version = Store.at(root, "cells").current()
    return None if version is None else version.id


def rewrite(path: Path, text: str) -> None:
    """Replace a file, which other roots may share (``copy_root``)."""
    path.unlink()
    path.write_text(text)


def release_of(root: Path) -> str:
    version = Store.at(root, "cells").current()
    assert version is not None
    return version.require_record().release


def detects(root: Path, picture: Path) -> int:
    """Runs the current version's own detect and returns how many objects it finds."""
    version = Store.at(root, "cells").current()
    assert version is not None
    command = [
        version.python,
        "-I",
        "-m",
        "edge_effdet.detect",
        "--engine",
        version.engine,
        "--source",
        picture,
        "--json",
        "--threads",
        "1",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return (
        len(json.loads(done.stdout)["images"][0]["detections"])
        if "images" in done.stdout
        else done.stdout.count("score")
    )


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, picture in enumerate(make_pictures()):
        Image.fromarray(picture).save(folder / f"{number}.png")
    return folder


# All is well


def test_a_bundle_is_installed_updated_rolled_back_and_removed(bundles, root, pictures):
    first = put(bundles / "1.0", root)
    assert first.done == ("copy", "environment", "engine", "complete", "switch", "configure", "service")
    assert first.before is None and first.report["golden"]["passed"] and first.report["latency"]["median_ms"] > 0
    assert current(root) == first.version == first.bundle.id
    assert detects(root, pictures / "0.png") > 0
    second = put(bundles / "1.10", root)
    assert second.before == first.version and release_of(root) == "1.10"
    done = rollback(None, RollbackOptions(root=root))
    assert (done.left, done.version, current(root)) == (second.version, first.version, first.version)
    with pytest.raises(BundleError, match=r"runs, and there is no version before it"):
        rollback("cells", RollbackOptions(root=root))
    assert uninstall("cells", UninstallOptions(root=root)) == ["config.json", "edge-effdet.json", "keys", "lock"]
    assert current(root) is None
    put(bundles / "1.0", root)
    assert uninstall(None, UninstallOptions(root=root, purge=True)) == []
    assert list(root.iterdir()) == []


def test_a_second_time_nothing_is_done(bundles, ready):
    before = all_files(ready, but=["cells/log", "cells/lock"])
    again = put(bundles / "1.0", ready)
    assert again.done == () and len(again.skipped) == 7
    assert all_files(ready, but=["cells/log", "cells/lock"]) == before


def test_a_dry_run_tells_all_steps_and_changes_nothing(bundles, root, installed_once):
    plan = put(bundles / "1.0", root, dry_run=True).plan
    assert [line.partition(":")[0] for line in plan] == [
        "check", "inspect", "copy", "environment", "engine", "complete", "switch", "configure", "service", "retain", "keys",
    ]  # fmt: skip
    assert "done already" not in plan[4] and not root.exists()
    archive = write_archive(shutil.copytree(bundles / "1.0", root.parent / "cells-1.0"), "gz")
    put(archive, root, dry_run=True)
    assert not root.exists()
    before = all_files(installed_once)
    plan = put(bundles / "1.0", installed_once, dry_run=True).plan
    assert all(line.endswith(("done already", "nothing to do")) for line in plan[2:])
    update = put(bundles / "1.10", installed_once, dry_run=True, keep=1).plan
    assert update[2].startswith("copy: copy the bundle into ") and "lead to 1.10-" in update[6]
    assert all_files(installed_once) == before


@pytest.mark.parametrize("kind", ["gz", "zst"])
def test_an_archive_is_installed(bundles, root, tmp_path, kind):
    folder = shutil.copytree(bundles / "1.0", tmp_path / "cells-1.0-x86-cpu")
    archive = write_archive(folder, kind)
    shutil.rmtree(folder)
    put(archive, root)
    assert release_of(root) == "1.0"
    assert sorted(each.name for each in root.iterdir()) == ["cells"]


def test_another_way_of_building_is_made_beside_the_one_that_runs(bundles, ready):
    with pytest.raises(BundleError, match="The bundle has no graph in FP32, only in INT8"):
        put(bundles / "1.0", ready, precision="fp32")
    again = put(bundles / "1.0", ready, workspace_mib=64)
    assert again.version == f"{again.before}.2"


def test_old_versions_are_removed_but_for_the_last_good_one(template, ready, tmp_path):
    for number in (2, 3):
        put(write_bundle(template, tmp_path / str(number), release=f"{number}.0"), ready, keep=2)
    assert [each.require_record().release for each in Store.at(ready, "cells").versions()] == ["2.0", "3.0"]


def test_the_log_holds_each_step_and_what_the_programs_said(installed_once):
    text = (installed_once / "cells" / "log" / "install.log").read_text()
    assert all(f" INFO {step}: " in text for step in ("copy", "environment", "engine", "switch", "service"))
    assert "-m venv" in text and "-m pip install" in text and "--require-hashes" in text


def test_a_mask_of_the_user_does_not_hide_the_version_from_the_service(bundles, root):
    before = os.umask(0o077)
    try:
        put(bundles / "1.0", root)
    finally:
        assert os.umask(before) == 0o077
    version = Store.at(root, "cells").current()
    assert version is not None
    assert all(path.stat().st_mode & 0o004 for path in (version.engine, version.bundle / SUMS, version.python))
    folders = [parent for parent in version.engine.parents if parent.is_relative_to(root)]
    assert len(folders) > 4 and all(folder.stat().st_mode & 0o001 for folder in folders)


@pytest.mark.slow
def test_a_rollback_starts_no_service_where_none_was_ever_asked_for(bundles, root):
    """Without a source nothing runs the engine, and nobody chose that."""
    for release in ("1.0", "1.10"):
        put(bundles / release, root, service="auto")
    done = rollback(None, RollbackOptions(root=root, healthy_within=5))
    assert (done.service, release_of(root)) == ("no service is kept", "1.0")
    assert not (root / "cells" / "state" / "service.pid").exists()


# Whole or damaged


def test_an_installed_version_is_verified_and_damage_is_found(bundles, ready):
    store = Store.at(ready, "cells")
    verified = verify_installed(store)
    assert verified.bundle_files >= 8 and verified.environment_files > 50 and verified.signed_by is None
    record = verified.version.engine.with_name(verified.version.engine.name + ".json")
    text = record.read_text()
    record.unlink()
    record.write_text(text.replace('"tf_efficientdet_lite0"', '"tf_efficientdet_lite1"'))
    with pytest.raises(EngineError, match="is not what was built and checked here"):
        verify_installed(store)
    # Installed again, it is made anew beside the damaged one, which runs until then and is not returned to.
    again = put(bundles / "1.0", ready)
    assert again.version == f"{again.before}.2" == current(ready)
    verify_installed(store)
    assert store.last_good() is None


def test_a_damaged_version_is_passed_over_by_a_rollback(template, ready, tmp_path):
    first = current(ready)
    damaged = put(write_bundle(template, tmp_path / "2", release="2.0"), ready).engine
    put(write_bundle(template, tmp_path / "3", release="3.0"), ready)
    assert damaged is not None
    damaged.write_bytes(b"damaged")
    assert rollback(None, RollbackOptions(root=ready)).version == first


# What is refused, with one sentence


def refused(caught: pytest.ExceptionInfo[Exception]) -> str:
    told = str(caught.value)
    assert told.count("\n") == 0 and told.endswith(".")
    return told


def test_half_a_bundle_is_refused(bundles, root, tmp_path):
    for name in ("bundle.json", SUMS, "requirements.txt", "graphs/cells.int8.onnx"):
        folder = shutil.copytree(bundles / "1.0", tmp_path / name.replace("/", "-"))
        (folder / name).unlink()
        with pytest.raises(BundleError) as caught:
            put(folder, root)
        refused(caught)
    assert not root.exists()


def test_another_projects_folder_is_refused_and_left_alone(bundles, root):
    (root / "cells").mkdir(parents=True)
    (root / "cells" / "theirs.txt").write_text("theirs")
    with pytest.raises(BundleError) as caught:
        put(bundles / "1.0", root)
    assert "belongs to something else" in refused(caught)
    with pytest.raises(BundleError):
        uninstall("cells", UninstallOptions(root=root, purge=True))
    assert all_files(root).keys() == {"cells", "cells/theirs.txt"}


def test_a_bundle_and_its_root_may_not_lie_in_each_other(bundles, tmp_path):
    folder = shutil.copytree(bundles / "1.0", tmp_path / "root" / "bundle")
    with pytest.raises(UsageError) as caught:
        put(folder, tmp_path / "root")
    assert "give another `root`" in refused(caught)
    with pytest.raises(UsageError, match="would be written into"):
        put(folder, folder / "installed")
    assert all_files(folder) == all_files(bundles / "1.0")


def test_a_root_that_is_a_file_is_refused(bundles, tmp_path):
    (tmp_path / "root").write_text("a file")
    with pytest.raises(InputError) as caught:
        put(bundles / "1.0", tmp_path / "root")
    assert "is a file and has to be a folder" in refused(caught)


def test_a_root_that_python_cannot_make_environments_in_is_refused(bundles, tmp_path):
    with pytest.raises(UsageError, match="with which Python makes no environments"):
        put(bundles / "1.0", tmp_path / "a:b")


def test_a_source_that_is_not_there_is_refused(root, tmp_path):
    with pytest.raises(InputError) as caught:
        put(tmp_path / "missing", root)
    assert refused(caught).startswith("There is no ")


def test_a_second_installation_at_once_is_refused(bundles, ready):
    with Store.at(ready, "cells").lock(), pytest.raises(InputError) as caught:
        put(bundles / "1.0", ready)
    assert f"(process {os.getpid()}) is at work" in refused(caught)


def test_a_downgrade_is_refused_unless_it_is_wanted(bundles, root):
    put(bundles / "1.10", root)
    with pytest.raises(BundleError) as caught:
        put(bundles / "1.0", root)
    assert "1.0 is an earlier release than 1.10" in refused(caught)
    put(bundles / "1.0", root, allow_downgrade=True)
    assert release_of(root) == "1.0"


def test_a_bundle_of_another_name_is_refused_as_an_update(bundles, root):
    with pytest.raises(BundleError, match="this installation is of cards"):
        install(bundles / "1.0", InstallOptions(root=root, service="none"), into="cards")
    assert not root.exists()


def test_an_engine_that_finds_other_objects_is_not_switched_to(ready, tmp_path):
    before = current(ready)
    (tmp_path / "other").mkdir()
    write_template(tmp_path / "other", weak=True)
    with pytest.raises(AccuracyGateFailed) as caught:
        put(write_bundle(tmp_path / "other", tmp_path / "wrong", release="2.0"), ready)
    assert "finds other objects on this machine" in refused(caught)
    assert current(ready) == before


def test_an_installation_is_no_root(bundles, ready):
    """Another one would be made in it, which the first one's removal would take along."""
    for root in (ready / "cells", ready / "cells" / "versions"):
        with pytest.raises(UsageError) as caught:
            put(bundles / "1.0", root)
        assert f"give the folder above, {ready}" in refused(caught)
        with pytest.raises(UsageError, match="lies in the installation of cells"):
            rollback(None, RollbackOptions(root=root))
        with pytest.raises(UsageError, match="lies in the installation of cells"):
            uninstall(None, UninstallOptions(root=root))
    assert sorted(each.name for each in ready.iterdir()) == ["cells"]


def test_what_is_wrong_in_an_archive_is_told_by_its_name(bundles, root, tmp_path):
    """The folder that it was unpacked into is gone when somebody reads that."""
    folder = shutil.copytree(bundles / "1.0", tmp_path / "cells-1.0")
    (folder / "requirements.txt").write_text("changed")
    archive = write_archive(folder, "gz")
    for dry_run in (False, True):
        with pytest.raises(BundleError) as caught:
            put(archive, root, dry_run=dry_run)
        assert refused(caught).startswith(f"{archive}/cells-1.0/requirements.txt is not what it was")


def test_wheels_for_another_python_are_refused_before_the_copy(template, root, tmp_path):
    folder = write_bundle(template, tmp_path / "bundle")
    other = "cp39-cp39-manylinux2014_x86_64"
    (folder / "wheels" / PACKAGES).rename(folder / "wheels" / PACKAGES.replace("py3-none-any", other))
    bundle = write_bundle(folder, tmp_path / "again")
    for dry_run in (True, False):
        with pytest.raises(BundleError) as caught:
            put(bundle, root, dry_run=dry_run)
        assert f"the wheel of host-packages is host_packages-1.0-{other}.whl and has to be one for Python" in refused(
            caught
        )
    assert not root.exists()


def test_a_full_disk_does_not_matter_where_all_is_there(bundles, ready, monkeypatch):
    """A container that starts again, or a second run, makes nothing new."""
    monkeypatch.setitem(inspect.DISK_MIB, "onnxruntime", 1 << 40)
    assert put(bundles / "1.0", ready).done == ()
    with pytest.raises(BundleError, match="disk is at"):
        put(bundles / "1.10", ready)


def test_what_a_run_that_was_cut_off_made_is_counted(bundles, ready, monkeypatch):
    put(bundles / "1.10", ready)
    version = Store.at(ready, "cells").current()
    assert version is not None
    made = folder_mib(version.folder)
    free = shutil.disk_usage(ready).free >> 20
    rollback(None, RollbackOptions(root=ready))
    (version.folder / "complete.json").unlink()
    monkeypatch.setitem(inspect.DISK_MIB, "onnxruntime", free + max(1, made // 2))
    assert "complete" in put(bundles / "1.10", ready).done


# Signatures


def sign(folder: Path, key) -> Path:
    sign_file(folder / SUMS, key)
    return folder


def test_trust_begins_with_a_key_and_then_holds(template, root, tmp_path):
    key, other = make_keys(tmp_path / "key", None), make_keys(tmp_path / "other", None)
    unsigned = write_bundle(template, tmp_path / "unsigned", release="2.0")
    signed = sign(write_bundle(template, tmp_path / "signed", release="1.0"), key)
    with pytest.raises(BundleError) as caught:
        put(unsigned, root, require_signature=True)
    assert "`require_signature`" in refused(caught)
    with pytest.raises(BundleError):
        put(unsigned, root, public_key=key.public)
    assert not root.exists()
    done = put(signed, root, public_key=str(tmp_path / "key" / "minisign.pub"))
    store = Store.at(root, "cells")
    assert done.bundle.signed_by == verify_installed(store).signed_by == read_public_key(key.public).id
    assert [read_public_key(each).text for each in store.trusted_keys()] == [key.public]
    # From now on without asking.
    with pytest.raises(BundleError) as caught:
        put(unsigned, root)
    assert "is not signed" in refused(caught)
    with pytest.raises(BundleError, match="was made with the key"):
        put(sign(write_bundle(template, tmp_path / "foreign", release="2.0"), other), root)
    changed = shutil.copytree(signed, tmp_path / "changed")
    (changed / SUMS).write_text((changed / SUMS).read_text().replace("0", "1"))
    with pytest.raises(BundleError, match="does not belong to"):
        put(changed, root)
    assert current(root) == done.version


@pytest.mark.slow
def test_a_signed_bundle_replaces_the_keys(template, root, tmp_path):
    old, new = make_keys(tmp_path / "old", None), make_keys(tmp_path / "new", None)
    put(sign(write_bundle(template, tmp_path / "1", release="1.0"), old), root, public_key=old.public)
    put(sign(write_bundle(template, tmp_path / "2", release="2.0", trusted_keys=(new.public,)), old), root)
    store = Store.at(root, "cells")
    assert [read_public_key(each).text for each in store.trusted_keys()] == [new.public]
    # The version that brought the new key was signed with the old one, and is still what it was.
    assert verify_installed(store).signed_by == read_public_key(old.public).id
    with pytest.raises(BundleError):
        put(sign(write_bundle(template, tmp_path / "3", release="3.0"), old), root)
    put(sign(write_bundle(template, tmp_path / "4", release="4.0"), new), root)
    assert rollback(None, RollbackOptions(root=root)).version.startswith("2.0-")


def test_keys_of_an_unsigned_bundle_are_not_taken_over(template, root, tmp_path):
    key = make_keys(tmp_path / "key", None)
    put(write_bundle(template, tmp_path / "bundle", trusted_keys=(key.public,)), root)
    assert Store.at(root, "cells").trusted_keys() == []


def test_an_archive_with_a_wrong_signature_is_not_even_unpacked(template, root, tmp_path):
    key = make_keys(tmp_path / "key", None)
    folder = sign(write_bundle(template, tmp_path / "cells-1.0-x86-cpu"), key)
    archive = write_archive(folder, "gz")
    sign_file(archive, key)
    with archive.open("ab") as stream:
        stream.write(b"more")
    with pytest.raises(BundleError, match="does not belong to"):
        put(archive, root, public_key=key.public)
    assert not root.exists()
    sign_file(write_archive(folder, "gz"), key)
    put(archive, root, public_key=key.public)
    assert (Store.at(root, "cells").folder / "current" / "bundle" / SIGNATURE).is_file()


# The service


@pytest.fixture
def stopped(root):
    """Stops what a test started."""
    yield
    store = Store.at(root, "cells")
    manager = manager_of(store, "auto") if store.exists and store.service_kind() else None
    if manager is not None:
        manager.remove()


def test_a_service_that_does_not_become_healthy_takes_the_switch_back(
    template, bundles, ready, root, pictures, tmp_path, stopped
):
    first = put(bundles / "1.0", root, service="process", source=str(pictures))
    store = Store.at(root, "cells")
    manager = manager_of(store, "auto")
    assert manager is not None and manager.kind == "process" and manager.is_running()
    loop = "edge_effdet/device/service/loop.py"
    changes = {
        loop: (Path(__file__).parents[3] / loop).read_text() + "\nraise SystemExit('this release does not start')\n"
    }
    broken = write_bundle(template, tmp_path / "broken", changes, release="2.0")
    with pytest.raises(NotHealthy) as caught:
        put(broken, root, service="auto", healthy_within=3)
    assert f"{first.version} runs again" in refused(caught) and "install.log" in str(caught.value)
    assert current(root) == first.version and manager.is_running()
    bad = next(each for each in store.versions() if each.id.startswith("2.0"))
    assert bad.standing.bad is not None and store.last_good() is None
    # The next release finds the service that was there.
    third = put(write_bundle(template, tmp_path / "3", release="3.0"), root, service="auto")
    assert third.before == first.version and manager.is_running()
    assert rollback(None, RollbackOptions(root=root)).version == first.version


def test_settings_that_do_not_work_are_taken_back(bundles, ready, root, pictures, stopped):
    put(bundles / "1.0", root, service="process", source=str(pictures))
    config = Store.at(root, "cells").folder / "config.json"
    before = config.read_text()
    with pytest.raises(NotHealthy) as caught:
        put(bundles / "1.0", root, service="auto", source="/dev/video99", healthy_within=3)
    assert "the earlier settings are back" in refused(caught)
    assert config.read_text() == before
    assert put(bundles / "1.0", root, service="auto").done == ()


def test_a_first_version_that_is_not_healthy_is_stopped(bundles, root, stopped):
    with pytest.raises(NotHealthy) as caught:
        put(bundles / "1.0", root, service="process", source="/dev/video99", healthy_within=2)
    assert "there is no version before it" in refused(caught)
    manager = manager_of(Store.at(root, "cells"), "auto")
    assert manager is not None and not manager.is_running()


def test_an_interruption_while_it_is_waited_takes_the_switch_back(
    template, ready, pictures, tmp_path, monkeypatch, stopped
):
    first = current(ready)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(using, "restart_and_wait", interrupt)
    with pytest.raises(KeyboardInterrupt):
        put(write_bundle(template, tmp_path / "2", release="2.0"), ready, service="process", source=str(pictures))
    assert current(ready) == first
    store = Store.at(ready, "cells")
    assert [each.standing.bad for each in store.versions()] == [None, "interrupted before it was healthy"]
    assert json.loads((store.folder / "config.json").read_text())["source"] == ""


def test_a_service_without_anything_to_look_at_is_refused(bundles, root):
    with pytest.raises(UsageError, match="needs something to look at"):
        put(bundles / "1.0", root, service="process")


def test_a_service_that_is_no_longer_wanted_is_stopped(bundles, ready, root, pictures, stopped):
    put(bundles / "1.0", root, service="process", source=str(pictures))
    manager = manager_of(Store.at(root, "cells"), "auto")
    assert manager is not None and manager.is_running()
    assert put(bundles / "1.0", root, service="none").done == ("service",)
    assert not manager.is_running()


def test_what_is_removed_stops_first(bundles, ready, root, pictures):
    put(bundles / "1.0", root, service="process", source=str(pictures))
    manager = manager_of(Store.at(root, "cells"), "auto")
    assert manager is not None and manager.is_running()
    uninstall(None, UninstallOptions(root=root, purge=True))
    assert not manager.is_running() and not (root / "cells").exists()


# What was cut off, and what runs beside


def cut_off(bundle: Path, root: Path, monkeypatch, at: str, **options: object) -> None:
    """Install, and lose the power before a step."""
    run_step = steps.run_step

    def run(step: steps.Step) -> None:
        if step.name == at:
            raise SystemExit("the power fails")
        run_step(step)

    with monkeypatch.context() as patch:
        patch.setattr(steps, "run_step", run)
        with pytest.raises(SystemExit):
            put(bundle, root, **options)


def test_an_installation_that_was_cut_off_before_its_proof_is_told_by_what_comes_next(
    bundles, ready, pictures, monkeypatch, caplog, capsys
):
    store = Store.at(ready, "cells")
    assert store.cut_off() == ""
    cut_off(bundles / "1.10", ready, monkeypatch, "service")
    assert release_of(ready) == "1.10"
    said = store.cut_off()
    assert "1.10-" in said and "was cut off before that had proven itself" in said
    # While somebody is at work on it nothing was cut off.
    with store.lock():
        assert store.cut_off() == ""
    assert main(["--store", str(store.folder), "status", "--json"]) == 4
    assert json.loads(capsys.readouterr().out)["cut_off"] == said
    with pytest.raises(BundleError, match="is an earlier release"):
        put(bundles / "1.0", ready)
    caplog.clear()
    assert put(bundles / "1.10", ready).done == ("service",)
    assert "this goes on with that" in caplog.text
    assert store.cut_off() == ""


def test_a_service_that_starts_says_that_its_version_is_not_proven(bundles, ready, monkeypatch, capsys):
    cut_off(bundles / "1.10", ready, monkeypatch, "service")
    # Without a source it ends at once.
    assert main(["--store", str(ready / "cells"), "run"]) == 2
    assert "was cut off before that had proven itself" in capsys.readouterr().err


def test_a_rollback_that_was_cut_off_is_told(bundles, ready):
    put(bundles / "1.10", ready)
    store = Store.at(ready, "cells")
    first, second = store.versions()
    store.begin_rollback(second, first)
    assert store.cut_off() == f"the rollback to {first.id} was cut off; roll back again, which finishes it"
    rollback(None, RollbackOptions(root=ready))
    assert store.cut_off() == "" and release_of(ready) == "1.0"


@pytest.mark.slow
def test_settings_of_an_installation_that_was_cut_off_are_not_the_next_ones(
    template, bundles, ready, pictures, tmp_path, monkeypatch, caplog
):
    """Nothing has proven them, so an installation of another bundle begins with those from before."""
    config = ready / "cells" / "config.json"
    cut_off(bundles / "1.10", ready, monkeypatch, "service", source=str(pictures))
    assert json.loads(config.read_text())["source"] == str(pictures)
    put(write_bundle(template, tmp_path / "3", release="3.0"), ready)
    assert json.loads(config.read_text())["source"] == ""
    assert "the settings from before the installation of 1.10-" in caplog.text


def test_the_version_before_never_runs_with_the_settings_of_the_next(bundles, ready, pictures, monkeypatch):
    config = ready / "cells" / "config.json"
    cut_off(bundles / "1.10", ready, monkeypatch, "switch", source=str(pictures))
    assert (release_of(ready), json.loads(config.read_text())["source"]) == ("1.0", "")


def test_settings_stay_readable_for_the_service(bundles, ready, pictures, monkeypatch):
    """The unit's user reads them by its group, also after a power cut between their writing and the start of the service."""
    config = ready / "cells" / "config.json"
    rewrite(config, config.read_text())
    config.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(config, -1, 65534)
    cut_off(bundles / "1.0", ready, monkeypatch, "service", source=str(pictures))
    assert json.loads(config.read_text())["source"] == str(pictures)
    assert stat.S_IMODE(config.stat().st_mode) == 0o640
    assert config.stat().st_gid == (65534 if os.geteuid() == 0 else os.getegid())


@pytest.fixture
def by_hand(root, ready, pictures):
    """The first version, run in the foreground as somebody does in a terminal, until the test ends."""
    store = Store.at(ready, "cells")
    write_options(store.folder, ServiceOptions(source=str(pictures), at_end="repeat"))
    with subprocess.Popen([store.folder / "edge-effdet", "run"], stderr=subprocess.DEVNULL) as process:
        try:
            wait(lambda: (found := read_status(store.folder)) and found.alive)
            yield process
        finally:
            process.kill()


@pytest.mark.slow
def test_an_update_says_that_somebody_still_runs_the_version_before(bundles, root, by_hand, caplog):
    first = current(root)
    put(bundles / "1.10", root)
    assert f"process {by_hand.pid} still runs {first}" in caplog.text
    caplog.clear()
    rollback(None, RollbackOptions(root=root))
    assert "still runs" not in caplog.text


def test_nothing_is_removed_while_somebody_runs_it(root, by_hand):
    before = current(root)
    with pytest.raises(InputError) as caught:
        uninstall("cells", UninstallOptions(root=root))
    assert f"Process {by_hand.pid} still runs {before}" in refused(caught)
    assert current(root) == before and by_hand.poll() is None
    by_hand.kill()
    by_hand.wait()
    uninstall("cells", UninstallOptions(root=root))
    assert current(root) is None


# Settings that not all versions know

OPTIONS = "edge_effdet/device/service/options.py"


def with_setting(template: Path, folder: Path, release: str) -> Path:
    """A later release, whose service has one more setting."""
    text = (Path(__file__).parents[3] / OPTIONS).read_text()
    changed = text.replace(
        "    memory_share: float",
        '    siren: str = option("", help="wakes the neighbours")\n    memory_share: float',
        1,
    )
    assert changed != text
    return write_bundle(template, folder, {OPTIONS: changed}, release=release)


def run_installed(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([root / "cells" / "edge-effdet", *words], capture_output=True, text=True)


@pytest.mark.slow
def test_a_rollback_sets_aside_what_the_version_before_does_not_know(template, bundles, root, ready, tmp_path):
    store = Store.at(ready, "cells")
    later = with_setting(template, tmp_path / "later", "2.0")
    put(later, ready)
    config, aside = store.folder / "config.json", store.folder / ASIDE
    rewrite(config, json.dumps({"source": "", "score_threshold": 0.5, "siren": "loud"}))
    # By the code of the later release, which is the one that runs.
    done = run_installed(ready, "rollback")
    assert done.returncode == 0, done.stderr
    assert "settings that 1.0-" in done.stderr and "siren" in done.stderr
    assert release_of(ready) == "1.0"
    assert json.loads(config.read_text()) == {"source": "", "score_threshold": 0.5}
    assert json.loads(aside.read_text()) == {"siren": "loud"}
    # The version that knows it gets it back, installed by its own code.
    done = subprocess.run(
        [sys.executable, later / "edge-effdet", "install", "--root", ready, "--service", "none"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert release_of(ready) == "2.0" and not aside.exists()
    assert json.loads(config.read_text())["siren"] == "loud"


@pytest.mark.slow
def test_a_downgrade_sets_aside_what_it_does_not_know_and_tells_a_misspelled_setting(
    template, bundles, ready, tmp_path
):
    store = Store.at(ready, "cells")
    put(with_setting(template, tmp_path / "later", "2.0"), ready)
    config = store.folder / "config.json"
    rewrite(config, json.dumps({"source": "", "siren": "loud", "tresholds": 0.5}))
    with pytest.raises(InputError, match="tresholds is not a field"):
        put(bundles / "1.0", ready, allow_downgrade=True)
    rewrite(config, json.dumps({"source": "", "siren": "loud"}))
    put(bundles / "1.0", ready, allow_downgrade=True)
    assert "siren" not in json.loads(config.read_text())
    assert json.loads((store.folder / ASIDE).read_text()) == {"siren": "loud"}
    uninstall("cells", UninstallOptions(root=ready, purge=True))
    assert not store.folder.exists()


# What is not ours


@pytest.mark.slow
def test_hidden_files_of_others_stay(bundles, root):
    put(bundles / "1.0", root)
    store = root / "cells"
    (store / ".env").write_text("mine")
    (store / ".git").mkdir()
    for name in (".current.4711", ".gone-x"):
        (store / name).write_text("")
    put(bundles / "1.10", root)
    assert sorted(path.name for path in store.iterdir() if path.name.startswith(".")) == [".env", ".git"]


def test_a_folder_in_place_of_the_link_is_not_removed(bundles, root):
    put(bundles / "1.0", root)
    link = root / "cells" / "current"
    link.unlink()
    link.mkdir()
    (link / "mine").write_text("x")
    assert "current" in uninstall("cells", UninstallOptions(root=root))
    assert (link / "mine").read_text() == "x"


def test_an_empty_source_is_refused():
    with pytest.raises(UsageError, match="`source` is empty"):
        InstallOptions(source=" ")


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf")])
def test_a_time_that_never_ends_is_refused(seconds):
    for options in (InstallOptions, RollbackOptions):
        with pytest.raises(UsageError, match="`healthy_within`"):
            options(healthy_within=seconds)
