"""What is installed: one version is current and whole at every moment, and others are kept out while one is at work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from edge_effdet.artifacts import temporary, temporary_folder
from edge_effdet.device.signature import PublicKey
from edge_effdet.device.store import CURRENT, MARKER, VERSIONS, Store, Version, VersionRecord, default_root
from edge_effdet.errors import BundleError, InputError

KEYS = tuple(PublicKey(bytes([number]) * 8, bytes([number]) * 32).text for number in (1, 2))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store.at(tmp_path / "root", "cells")
    store.create()
    return store


def make_version(store: Store, name: str) -> Version:
    """A version that is declared whole."""
    store.begin(store.version(name), {"bundle": name})
    record = VersionRecord(
        bundle=name, bundle_sha256="0" * 64, release="1.0", precision="int8", backend="onnxruntime", engine="engine/cells.onnx",
        engine_sha256="1" * 64, record_sha256="2" * 64, signed_by=None, keys=(),
    )  # fmt: skip
    return store.complete(store.version(name), record)


def run_version(store: Store, name: str) -> Version:
    """A version that was switched to and did well."""
    version = store.count_up(make_version(store, name))
    store.switch(version)
    return store.mark_good(version)


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def name_of(version: Version | None) -> str | None:
    return None if version is None else version.id


# Whose folder it is


def test_a_folder_is_made_once_and_found_again(store):
    before = names(store.folder)
    store.create()
    assert names(store.folder) == before
    assert Store.find(store.folder.parent, "cells") == Store.find(store.folder.parent, None) == store
    assert json.loads((store.folder / MARKER).read_text()) == {"format": 1, "name": "cells"}


def test_nothing_is_made_by_looking(tmp_path):
    assert not Store.at(tmp_path / "root", "cells").exists
    with pytest.raises(InputError, match="nothing is installed in"):
        Store.find(tmp_path / "root", None)
    with pytest.raises(InputError, match="Nothing is installed in"):
        Store.find(tmp_path / "root", "cells")
    assert list(tmp_path.iterdir()) == []


def test_one_of_several_has_to_be_named(store):
    Store.at(store.folder.parent, "cards").create()
    with pytest.raises(InputError, match=r"several are installed in .*cards, cells"):
        Store.find(store.folder.parent, None)


def test_the_folder_of_something_else_is_refused_and_left_alone(tmp_path):
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / "precious.txt").write_text("mine")
    with pytest.raises(BundleError, match="belongs to something else"):
        Store.at(tmp_path, "cells")
    assert (tmp_path / "cells" / "precious.txt").read_text() == "mine"


def test_an_empty_folder_is_taken(tmp_path):
    (tmp_path / "cells").mkdir()
    Store.at(tmp_path, "cells").create()
    assert Store.at(tmp_path, "cells").exists


@pytest.mark.parametrize("left", [f".{MARKER}.x1y2", ".edge-effdet-temporary-0a1b2c3d-4e5f6789"])
def test_a_kill_while_the_marker_was_written_does_no_harm(tmp_path, left):
    """The first is the name of versions before 0.2."""
    (tmp_path / "cells").mkdir()
    (tmp_path / "cells" / left).write_text("{")
    Store.at(tmp_path, "cells").create()
    assert Store.at(tmp_path, "cells").exists


@pytest.mark.parametrize(
    ("marker", "said"),
    [
        ('{"format": 1, "name": "cards"}', "is not the folder of cells"),
        ('{"format": 2, "name": "cells"}', "is of format 2"),
        ("[", "is not the folder of cells"),
    ],
)
def test_a_folder_of_another_name_or_format_is_refused(store, marker, said):
    (store.folder / MARKER).write_text(marker)
    with pytest.raises(BundleError, match=said):
        Store.at(store.folder.parent, "cells")


def test_a_file_in_the_place_of_the_root_is_refused(tmp_path):
    (tmp_path / "root").write_text("a file")
    for root in (tmp_path / "root", tmp_path / "root" / "below"):
        with pytest.raises(InputError, match=r"root is a file and has to be a folder"):
            Store.at(root, "cells")


def test_a_name_that_leads_elsewhere_is_refused(tmp_path):
    with pytest.raises(BundleError, match="cannot be the name"):
        Store.at(tmp_path, "../cells")


def test_root_installs_for_all_and_others_for_themselves(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert default_root() == Path("/opt/edge-effdet")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_root() == tmp_path / "edge-effdet"


def test_the_entry_says_when_nothing_is_installed(store):
    done = subprocess.run([store.folder / "edge-effdet", "status"], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == f"error: no version is installed in {store.folder}; run ./edge-effdet install in a bundle.\n"


# The lock


HOLD = """
import subprocess, sys
from pathlib import Path
from edge_effdet.device.signature import PublicKey
from edge_effdet.device.store import Store
with Store.at(Path(sys.argv[1]), "cells").lock() as lock:
    child = subprocess.Popen(["sleep", sys.argv[2]], pass_fds=(lock,)) if sys.argv[2] else None
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def hold(store):
    """Starts a process that holds the lock, and a program of its that does so for some seconds."""
    started: list[subprocess.Popen[str]] = []

    def start(seconds: str = "") -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLD, str(store.folder.parent), seconds]
        holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        started.append(holder)
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        return holder

    yield start
    for each in started:
        each.kill()
        each.communicate()


def test_a_second_one_is_refused_and_told_who_is_at_work(store, hold):
    holder = hold()
    with pytest.raises(InputError, match=rf"Another edge-effdet \(process {holder.pid}\) is at work on"), store.lock():
        pass
    holder.communicate("")
    with store.lock():
        pass


def test_a_kill_leaves_no_lock(store, hold):
    holder = hold()
    holder.kill()
    holder.communicate()
    with store.lock():
        pass


def test_what_a_killed_one_started_keeps_others_out_until_it_ends(store, hold):
    holder = hold("3")
    holder.kill()
    holder.wait()
    with (
        pytest.raises(InputError, match=r"A program that edge-effdet \(process \d+, which has ended\) started"),
        store.lock(),
    ):
        pass
    until = time.monotonic() + 30
    while not is_free(store) and time.monotonic() < until:
        time.sleep(0.1)
    assert is_free(store)


def is_free(store: Store) -> bool:
    try:
        with store.lock():
            return True
    except InputError:
        return False


# The switch


def test_a_version_that_is_not_whole_is_never_switched_to(store):
    run_version(store, "1.0-a")
    store.begin(store.version("2.0-b"), {})
    with pytest.raises(BundleError, match=r"2\.0-b is not whole"):
        store.switch(store.version("2.0-b"))
    assert name_of(store.current()) == "1.0-a"


def test_a_version_is_current_at_every_moment(store):
    first, second = run_version(store, "1.0-a"), run_version(store, "2.0-b")
    seen: set[str | None] = set()
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            seen.add(name_of(store.current()))

    reader = threading.Thread(target=look)
    reader.start()
    for _ in range(100):
        store.switch(first)
        store.switch(second)
    done.set()
    reader.join()
    assert seen == {"1.0-a", "2.0-b"}


def test_what_is_current_is_a_relative_link_so_that_the_root_can_be_mounted_elsewhere(store):
    run_version(store, "1.0-a")
    assert (store.folder / CURRENT).readlink() == Path(VERSIONS, "1.0-a")


def test_a_link_to_nothing_whole_is_no_current_version(store):
    assert store.current() is None
    version = run_version(store, "1.0-a")
    (version.folder / "complete.json").write_text("{")
    assert store.current() is None


@pytest.mark.parametrize("target", ["/etc", "versions/../../elsewhere", "cells"])
def test_a_link_that_leads_elsewhere_is_refused(store, target):
    (store.folder / CURRENT).symlink_to(target)
    with pytest.raises(InputError, match="which is no version"):
        store.current()


def test_something_else_in_the_place_of_the_link_is_refused(store):
    (store.folder / CURRENT).mkdir()
    with pytest.raises(InputError, match="has to be a link"):
        store.current()


# Which version came when


def test_the_clock_does_not_decide_which_version_came_last(store):
    for number, name in enumerate(("3.0-c", "1.0-a", "2.0-b")):
        version = run_version(store, name)
        # Each later version was made at an earlier time.
        for path in (version.folder, *version.folder.iterdir()):
            os.utime(path, (1000 - number, 1000 - number))
    assert [each.id for each in store.versions()] == ["3.0-c", "1.0-a", "2.0-b"]
    assert name_of(store.last_good()) == "1.0-a"


def test_rollbacks_go_further_back_each_time(store):
    for name in ("1.0-a", "2.0-b", "3.0-c"):
        run_version(store, name)
    for expected in ("2.0-b", "1.0-a", None):
        target = store.last_good()
        assert name_of(target) == expected
        if target is not None:
            current = store.current()
            assert current is not None
            store.mark_bad(current, "rolled back by hand")
            store.switch(target)


def test_after_a_rollback_the_next_version_returns_to_where_it_came_from(store):
    for name in ("1.0-a", "2.0-b"):
        run_version(store, name)
    store.mark_bad(store.version("2.0-b"), "rolled back by hand")
    store.switch(store.version("1.0-a"))
    run_version(store, "3.0-c")
    assert name_of(store.last_good()) == "1.0-a"


def test_a_version_that_is_installed_again_is_the_last_one(store):
    for name in ("1.0-a", "2.0-b"):
        run_version(store, name)
    store.mark_bad(store.version("1.0-a"), "not healthy")
    again = store.count_up(store.version("1.0-a"))
    assert again.standing.bad is None
    store.switch(store.mark_good(again))
    assert [each.id for each in store.versions()] == ["2.0-b", "1.0-a"]
    assert name_of(store.last_good()) == "2.0-b"


def test_a_version_that_a_kill_kept_from_being_reached_is_not_returned_to(store):
    run_version(store, "1.0-a")
    # The number is written before the switch.
    store.count_up(make_version(store, "2.0-b"))
    assert name_of(store.current()) == "1.0-a"
    assert store.last_good() is None
    run_version(store, "3.0-c")
    assert name_of(store.last_good()) == "1.0-a"


def test_a_rollback_that_was_cut_off_is_known_until_something_else_is_installed(store):
    for name in ("1.0-a", "2.0-b"):
        run_version(store, name)
    assert store.pending_rollback() is None
    store.begin_rollback(store.current(), store.version("1.0-a"))
    assert store.pending_rollback() == ("2.0-b", store.version("1.0-a"))
    store.switch(store.version("1.0-a"))
    assert store.pending_rollback() == ("2.0-b", store.version("1.0-a"))
    run_version(store, "3.0-c")
    assert store.pending_rollback() is None
    store.end_rollback()
    store.switch(store.version("1.0-a"))
    assert store.pending_rollback() is None


# Which folder a bundle gets


def test_a_version_that_is_whole_is_never_worked_on_again(store):
    request = {"precision": "int8"}
    store.begin(store.version("1.0-a"), request)
    assert store.choose_folder("1.0-a", request).id == "1.0-a"
    # Another request may take what was only begun.
    assert store.choose_folder("1.0-a", {"precision": "fp32"}).id == "1.0-a"
    store.complete(store.version("1.0-a"), make_version(store, "9.0-x").require_record())
    assert store.choose_folder("1.0-a", request).id == "1.0-a"
    assert store.choose_folder("1.0-a", {"precision": "fp32"}).id == "1.0-a.2"
    assert store.choose_folder("1.0-a", request, ["1.0-a"]).id == "1.0-a.2"


def test_what_was_begun_in_another_way_is_removed_first(store):
    version = store.version("1.0-a")
    store.begin(version, {"precision": "int8"})
    (version.folder / "engine").mkdir()
    store.begin(version, {"precision": "int8"})
    assert (version.folder / "engine").is_dir()
    store.begin(version, {"precision": "fp32"})
    assert not (version.folder / "engine").exists()


# Retention


def test_the_current_version_and_the_last_good_one_always_stay(store):
    for name in ("1.0-a", "2.0-b", "3.0-c", "4.0-d"):
        run_version(store, name)
    store.begin(store.version("5.0-e"), {})
    assert [each.id for each in store.superfluous(3)] == ["5.0-e", "1.0-a"]
    assert [each.id for each in store.superfluous(1)] == ["5.0-e", "1.0-a", "2.0-b"]
    store.mark_bad(store.version("3.0-c"), "not healthy")
    assert name_of(store.last_good()) == "2.0-b"
    # A bad one goes before a good one that is older.
    assert [each.id for each in store.superfluous(3)] == ["5.0-e", "3.0-c"]


def test_a_plan_counts_the_version_that_will_come(store):
    for name in ("1.0-a", "2.0-b"):
        run_version(store, name)
    assert store.superfluous(2) == []
    assert [each.id for each in store.superfluous(2, store.version("3.0-c"))] == ["1.0-a"]


def test_the_current_version_cannot_be_removed(store):
    version = run_version(store, "1.0-a")
    with pytest.raises(InputError, match=r"1\.0-a runs"):
        store.remove(version)
    assert store.current() == version


def test_a_removal_that_was_cut_off_leaves_no_version_and_is_finished_later(store, monkeypatch):
    run_version(store, "1.0-a")
    run_version(store, "2.0-b")

    def cut_off(path: Path) -> None:
        if path.exists():
            raise KeyboardInterrupt

    monkeypatch.setattr("edge_effdet.device.store.remove_path", cut_off)
    with pytest.raises(KeyboardInterrupt):
        store.remove(store.version("1.0-a"))
    monkeypatch.undo()
    assert [each.id for each in store.versions()] == ["2.0-b"]
    assert len(names(store.folder / VERSIONS)) == 2
    store.sweep()
    assert names(store.folder / VERSIONS) == ["2.0-b"]


def test_what_a_killed_run_left_is_removed_and_nothing_else(store):
    mine = {".config.json.original", ".edge-effdet-20261129-afd0115a", ".env.template", ".git"}
    left = f".edge-effdet-temporary-{temporary._machine_start()}-00000001"
    before = set(names(store.folder))
    for name in (*mine, ".current.4711", ".gone-1.0-a", left):
        (store.folder / name).mkdir()
        (store.folder / name / "part").touch()
    # Somebody works with the one, and nobody knows whose the link is.
    with temporary_folder(store.folder) as held:
        link = store.folder / f"{left[:-1]}2"
        link.symlink_to(store.folder)
        store.sweep()
        assert set(names(store.folder)) == {*before, *mine, held.name, link.name}


# Keys and the service


def test_keys_are_replaced_and_at_no_moment_none_is_there(store):
    assert store.trusted_keys() == []
    store.replace_keys(KEYS[:1])
    fewest = [9]
    done = threading.Event()

    def look() -> None:
        while not done.is_set():
            fewest[0] = min(fewest[0], len(list((store.folder / "keys").glob("*.pub"))))

    reader = threading.Thread(target=look)
    reader.start()
    for number in range(60):
        store.replace_keys([KEYS[number % 2]])
    done.set()
    reader.join()
    assert store.trusted_keys() == [KEYS[1]]
    assert fewest[0] >= 1


def test_a_text_that_is_no_key_changes_nothing(store):
    store.replace_keys(KEYS)
    for keys in ([], [KEYS[0], "RWnonsense"]):
        with pytest.raises(BundleError):
            store.replace_keys(keys)
    assert sorted(store.trusted_keys()) == sorted(KEYS)


def test_what_runs_the_engine_is_remembered(store):
    assert store.service_kind() is None
    store.keep_service_kind("process")
    assert store.service_kind() == "process"
