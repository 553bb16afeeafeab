"""The state belongs to the user of the service, and root reads, writes and stops processes by it: what that user puts there leads root nowhere."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_effdet.device.restart import find_running
from edge_effdet.device.service import supervisor
from edge_effdet.device.service.processes import process_identity, process_owner
from edge_effdet.device.service.results import ResultsLog
from edge_effdet.device.service.starting import ProcessService
from edge_effdet.device.service.state_files import (
    give_state,
    open_state_file,
    read_state_file,
    require_own_link,
    take_state_file,
)
from edge_effdet.device.service.status import read_status, status_path, write_status
from edge_effdet.device.service.supervisor import PID_FILE, Supervised, read_pid_file
from edge_effdet.device.store import Store
from tests.statuses import make_status, wait

NOBODY = 65534
"""The user of the service in these tests."""

BECOME = (
    f"import os, sys; os.setgroups([]); os.setgid({NOBODY}); os.setuid({NOBODY}); os.execv(sys.argv[1], sys.argv[1:])"
)


@pytest.fixture
def service_state() -> Iterator[Path]:
    """The folder of the state of an installation, which the user of the service owns, in a place that all users may enter."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    with tempfile.TemporaryDirectory() as name:
        store = Path(name)
        store.chmod(0o755)
        (store / "secret").write_text("root's own")
        (store / "secret").chmod(0o600)
        state = store / "state"
        state.mkdir()
        os.chown(state, NOBODY, NOBODY)
        yield state


def as_service(*command: object) -> subprocess.CompletedProcess[bytes]:
    """Run a program as the user of the service."""
    return subprocess.run([sys.executable, "-c", BECOME, *map(str, command)], check=True)


def plant(state: Path, name: str, victim: Path | None = None) -> Path:
    """What a service that somebody broke into does: a link to a file of root's in the place of one that root will use."""
    as_service("/bin/ln", "-s", victim or state.parent / "secret", state / name)
    return state / name


@contextlib.contextmanager
def sleeping(user: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process of a user."""
    as_user = [sys.executable, "-c", BECOME] if user else []
    with subprocess.Popen([*as_user, "/bin/sleep", "1000"], start_new_session=True) as process:
        try:
            wait(lambda: b"sleep" in Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")[0])
            yield process
        finally:
            process.kill()


def write_pid_file(state: Path, process: subprocess.Popen[bytes], owner: int) -> None:
    """A file that names a process as the supervisor, and as the service, with what tells it from others, which anybody can read."""
    identity = process_identity(process.pid)
    raw = {"pid": process.pid, "process": identity, "service_pid": process.pid, "service_process": identity}
    (state / PID_FILE).unlink(missing_ok=True)
    (state / PID_FILE).write_text(json.dumps(raw))
    os.chown(state / PID_FILE, owner, owner)


def unharmed(state: Path) -> bool:
    secret = state.parent / "secret"
    return (secret.read_text(), secret.stat().st_uid, stat.S_IMODE(secret.stat().st_mode)) == ("root's own", 0, 0o600)


# Files


def test_no_status_is_written_through_a_link(service_state):
    for name in (".status.json.new", "status.json"):
        plant(service_state, name)
    write_status(status_path(service_state.parent), make_status())
    assert unharmed(service_state)
    assert read_status(service_state.parent) is not None
    # Where there is no room for a new file it is written over the old one, which may be a link.
    status_path(service_state.parent).unlink()
    plant(service_state, "status.json")
    (service_state / ".status.json.new").mkdir()
    with pytest.raises(OSError):
        write_status(status_path(service_state.parent), make_status())
    assert unharmed(service_state)


def test_nothing_is_read_through_a_link_nor_from_a_pipe(service_state):
    other = service_state.parent / "other.json"
    write_status(other, make_status())
    plant(service_state, "status.json", other)
    assert read_status(service_state.parent) is None
    (service_state / "status.json").unlink()
    as_service("/usr/bin/mkfifo", service_state / "status.json")
    # A pipe that nobody writes to would hold its reader for ever.
    assert read_status(service_state.parent) is None
    (service_state / "status.json").unlink()
    (service_state / "status.json").write_bytes(b" " * (2 << 20))
    assert read_status(service_state.parent) is None


def test_no_results_are_written_through_a_link(service_state):
    (service_state / "results").mkdir()
    os.chown(service_state / "results", NOBODY, NOBODY)
    plant(service_state, "results/results-00000001.jsonl")
    log = ResultsLog(service_state / "results", 1, 4)
    log.add({"a": 1})
    log.close()
    assert unharmed(service_state)
    assert (service_state / "results" / "results-00000002.jsonl").read_text() == '{"a": 1}\n'


def test_a_folder_of_results_may_be_a_link_of_roots_and_of_nobody_else(service_state):
    elsewhere = service_state.parent / "disk"
    elsewhere.mkdir()
    plant(service_state, "results", elsewhere)
    log = ResultsLog(service_state / "results", 1, 4)
    log.add({"a": 1})
    log.write()
    assert (log.lost, list(elsewhere.iterdir())) == (1, [])
    (service_state / "results").unlink()
    (service_state / "results").symlink_to(elsewhere)
    require_own_link(service_state / "results")
    log.add({"a": 1})
    log.close()
    assert len(list(elsewhere.iterdir())) == 1


def test_the_supervisor_writes_through_no_link(service_state):
    for name in (PID_FILE, "service.log"):
        plant(service_state, name)
    seen: list[tuple[int, bool]] = []

    def begun() -> None:
        status = (service_state / PID_FILE).lstat()
        seen.append((status.st_uid, stat.S_ISREG(status.st_mode)))

    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    before = list(supervisor.logger.handlers), supervisor.logger.propagate
    try:
        supervisor.supervise(service_state, ["/bin/echo", "from the service"], begun)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for each in set(supervisor.logger.handlers) - set(before[0]):
            supervisor.logger.removeHandler(each)
            each.close()
        supervisor.logger.propagate = before[1]
    assert seen == [(0, True)]
    assert unharmed(service_state)
    assert "from the service" in (service_state / "service.log").read_text()


def test_what_is_given_to_the_service_is_plain_and_has_one_name(service_state):
    plant(service_state, "link")
    (service_state / "results").mkdir()
    (service_state / "results" / "own").write_text("")
    os.link(service_state.parent / "secret", service_state / "hard")
    os.mkfifo(service_state / "pipe")
    give_state(service_state, NOBODY, NOBODY)
    assert unharmed(service_state)
    owners = {each.name: each.lstat().st_uid for each in service_state.rglob("*")}
    assert owners == {"link": NOBODY, "results": NOBODY, "own": NOBODY, "hard": 0, "pipe": 0}


def test_root_takes_the_state_over_without_what_could_be_run(service_state):
    """A unit of the system ran the service, and root now runs it as a process."""
    as_service("/bin/mkdir", "-p", service_state / "cache" / "nv", service_state / "results")
    as_service(
        "/bin/sh", "-c", f"echo code > '{service_state}/cache/nv/kernel'; echo row > '{service_state}/results/1'"
    )
    ProcessService("small", service_state.parent).install()
    assert not (service_state / "cache").exists()
    assert {each.stat().st_uid for each in (service_state, *service_state.rglob("*"))} == {0}
    assert (service_state / "results" / "1").read_text() == "row\n"


def test_a_file_of_another_user_is_replaced_where_it_has_to_be_ones_own(service_state):
    path = service_state / "file"
    as_service("/bin/sh", "-c", f"echo theirs > '{path}'")
    with os.fdopen(take_state_file(path, os.O_RDWR), "rb") as stream:
        assert stream.read() == b"theirs\n"
    with os.fdopen(take_state_file(path, os.O_RDWR, own=True), "rb") as stream:
        assert (stream.read(), os.fstat(stream.fileno()).st_uid) == (b"", 0)
    assert read_state_file(path) == (b"", 0)


def test_a_folder_in_the_place_of_a_file_stays(tmp_path):
    (tmp_path / "file").mkdir()
    for use in (open_state_file, take_state_file):
        with pytest.raises(OSError):
            use(tmp_path / "file", os.O_RDWR)
    assert (tmp_path / "file").is_dir()


# Processes


def test_root_ends_no_process_that_the_service_names_and_does_not_own(service_state):
    with sleeping(0) as victim:
        assert process_owner(victim.pid) == 0
        write_pid_file(service_state, victim, owner=NOBODY)
        manager = ProcessService("small", service_state.parent)
        assert read_pid_file(service_state) is None and not manager.is_running()
        manager.stop()
        time.sleep(0.2)
        assert victim.poll() is None
        # A file that root wrote is believed.
        write_pid_file(service_state, victim, owner=0)
        assert manager.is_running()


def test_root_ends_a_process_of_the_user_who_named_it(service_state):
    with sleeping(NOBODY) as process:
        assert process_owner(process.pid) == NOBODY
        write_pid_file(service_state, process, owner=NOBODY)
        found = read_pid_file(service_state)
        assert isinstance(found, Supervised) and found.pid == process.pid
        manager = ProcessService("small", service_state.parent)
        assert manager.is_running()
        manager.stop()
        assert process.wait(10) == -signal.SIGTERM


def test_no_process_is_said_to_run_it_that_the_service_names_and_does_not_own(service_state):
    """Nothing could be removed while it lives."""
    store = Store(service_state.parent, "small")
    path = status_path(store.folder)
    with sleeping(0) as victim, sleeping(NOBODY) as own:
        for process, found in ((victim, None), (own, own.pid)):
            write_status(path, make_status(pid=process.pid, process=process_identity(process.pid)))
            assert find_running(store) is not None, "root wrote it"
            os.chown(path, NOBODY, NOBODY)
            running = find_running(store)
            assert (running and running.pid) == found


def test_the_owner_of_a_process_that_has_ended_is_nobody():
    with subprocess.Popen(["/bin/true"]) as process:
        process.wait()
    assert process_owner(process.pid) is None
    assert process_owner(os.getpid()) == os.getuid()
