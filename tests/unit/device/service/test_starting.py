"""The ways to start the service: a background process for real, and systemd with its command simulated."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shlex
import signal
import sys
import time
from pathlib import Path

import pytest

from edge_effdet.device.service import starting as managers
from edge_effdet.device.service.health import wait_until_healthy
from edge_effdet.device.service.options import ServiceOptions, write_options
from edge_effdet.device.service.processes import process_identity
from edge_effdet.device.service.starting import ProcessService, SystemdService, get_manager
from edge_effdet.device.service.status import read_status
from edge_effdet.device.service.supervisor import read_pid_file
from edge_effdet.errors import UsageError
from tests.statuses import PATIENCE, wait


def write_entry(store, text):
    entry = store.folder / "edge-effdet"
    entry.write_text(f"#!/bin/sh\n{text}\n")
    entry.chmod(0o755)


@pytest.fixture
def service(store, pictures):
    """A background process, which is gone after the test whatever happens."""
    write_options(store.folder, ServiceOptions(source=str(pictures), at_end="repeat"))
    manager = get_manager("process", store.name, store.folder)
    yield manager
    found = read_pid_file(store.folder / "state")
    with contextlib.suppress(UsageError):
        manager.stop()
    for pid in (found.pid, found.service_pid) if found else ():
        assert process_identity(pid) in (None, process_identity(os.getpid()))


def test_a_background_process_runs_the_service_and_is_stopped(store, service):
    assert isinstance(service, ProcessService)
    assert not service.is_running()
    service.start()
    assert service.is_running()
    health = wait_until_healthy(store.folder, "1.0-aaaa", PATIENCE)
    assert health.healthy, health.reason
    first = read_pid_file(store.folder / "state")
    status = read_status(store.folder)
    assert (first.service_pid, first.service_process) == (status.pid, status.process)
    assert status.pid not in (os.getpid(), first.pid)
    # To start what runs changes nothing.
    service.start()
    assert read_pid_file(store.folder / "state") == first
    service.restart()
    health = wait_until_healthy(store.folder, "1.0-aaaa", PATIENCE)
    assert health.healthy, health.reason
    second = read_pid_file(store.folder / "state")
    assert process_identity(first.pid) is None
    assert process_identity(first.service_pid) is None
    assert second.pid != first.pid
    service.stop()
    assert not service.is_running()
    assert process_identity(second.pid) is None
    assert process_identity(second.service_pid) is None
    assert read_pid_file(store.folder / "state") is None
    assert read_status(store.folder).state == "stopped"
    service.stop()
    log = (store.folder / "state/service.log").read_text(encoding="utf-8")
    assert "Traceback" not in log


def test_a_service_that_was_killed_is_started_again(store, service):
    service.start()
    assert wait_until_healthy(store.folder, "1.0-aaaa", PATIENCE).healthy
    killed = read_status(store.folder)
    os.kill(killed.pid, signal.SIGKILL)
    again = wait(
        lambda: (found := read_status(store.folder)) and found.process != killed.process and found.healthy and found
    )
    assert again.alive
    assert service.is_running()
    assert "ended with code -9; it is started again in 1 s" in (store.folder / "state/service.log").read_text()


def test_what_a_killed_supervisor_left_is_ended(store, service):
    service.start()
    assert wait_until_healthy(store.folder, "1.0-aaaa", PATIENCE).healthy
    found = read_pid_file(store.folder / "state")
    os.kill(found.pid, signal.SIGKILL)
    wait(lambda: process_identity(found.pid) is None)
    assert not service.is_running()
    assert process_identity(found.service_pid) == found.service_process
    service.stop()
    assert process_identity(found.service_pid) is None
    service.start()
    assert wait_until_healthy(store.folder, "1.0-aaaa", PATIENCE).healthy


def test_a_number_that_belongs_to_another_process_now_is_left_alone(store, service):
    number = os.getpid()
    (store.folder / "state/service.pid").write_text(
        json.dumps({"pid": number, "process": "earlier:1", "service_pid": number, "service_process": "earlier:2"})
    )
    assert not service.is_running()
    # It would end this test.
    service.stop()
    assert not (store.folder / "state/service.pid").exists()


def test_a_service_that_ends_with_its_work_is_not_started_again(store, service):
    write_entry(store, f"echo once >> {shlex.quote(str(store.folder / 'runs'))}")
    service.start()
    wait(lambda: (store.folder / "runs").exists() and not service.is_running())
    time.sleep(1.5)
    assert (store.folder / "runs").read_text() == "once\n"


def test_a_service_that_fails_is_tried_again_with_growing_waits(store, service):
    write_entry(store, f"date +%s.%N >> {shlex.quote(str(store.folder / 'runs'))}; echo 'no camera'; exit 3")
    service.start()
    wait(lambda: (store.folder / "runs").exists() and len((store.folder / "runs").read_text().split()) >= 3)
    first, second, third = map(float, (store.folder / "runs").read_text().split()[:3])
    assert second - first >= 1
    assert third - second >= 2
    log = (store.folder / "state/service.log").read_text()
    assert "no camera" in log
    assert "ended with code 3" in log
    service.stop()
    count = len((store.folder / "runs").read_text().split())
    time.sleep(0.5)
    assert len((store.folder / "runs").read_text().split()) == count


def test_what_the_service_started_ends_with_it(store, service):
    pid = store.folder / "child"
    write_entry(store, f"sleep 1000 & echo $! > {shlex.quote(str(pid))}; exec sleep 1000")
    service.start()
    child = int(wait(lambda: pid.exists() and pid.read_text().strip()))
    assert process_identity(child) is not None
    service.stop()
    wait(lambda: process_identity(child) is None)


def test_without_a_version_nothing_is_started(store, service):
    (store.folder / "current").unlink()
    with pytest.raises(UsageError, match="No version is installed"):
        service.start()


def test_that_nothing_starts_it_with_the_machine_is_said(service, caplog):
    service.install()
    assert "nothing starts with the machine" in caplog.text


def test_the_kind_is_chosen_by_what_started_the_machine(store, tmp_path, monkeypatch):
    monkeypatch.setattr(managers, "_SYSTEMD_RUNS", tmp_path / "system")
    assert get_manager("auto", store.name, store.folder).kind == "process"
    (tmp_path / "system").mkdir()
    assert get_manager("auto", store.name, store.folder).kind == "systemd"
    for kind in ("cron", "none"):
        with pytest.raises(UsageError, match=f"`service` '{kind}' starts anything"):
            get_manager(kind, store.name, store.folder)


SIMULATED_SYSTEMCTL = """#!{python}
import json, os, sys
place = {place!r}
with open(os.path.join(place, "calls"), "a") as stream:
    stream.write(json.dumps(sys.argv[1:]) + "\\n")
if os.path.exists(os.path.join(place, "broken")):
    sys.stderr.write("Failed to connect to bus: No such file or directory\\n")
    sys.exit(1)
verb = next(each for each in sys.argv[1:] if each != "--user")
if verb == "--version":
    print("systemd 249 (249.11-0ubuntu3)")
elif verb == "is-active":
    active = os.path.exists(os.path.join(place, "active"))
    print("activating" if active else "inactive")
    sys.exit(3)
"""


@pytest.fixture
def systemctl(tmp_path, monkeypatch):
    """A folder in which a program in the place of systemctl notes its calls. A real systemd is in ``test_systemd.py``."""
    place = tmp_path / "systemctl"
    (place / "bin").mkdir(parents=True)
    program = place / "bin/systemctl"
    program.write_text(SIMULATED_SYSTEMCTL.format(python=sys.executable, place=str(place)))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{place / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "configuration"))
    return place


def calls_of(place: Path) -> list[str]:
    path = place / "calls"
    calls = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    path.unlink(missing_ok=True)
    return [" ".join(each) for each in calls]


def test_a_unit_of_the_user_is_installed_and_removed(store, systemctl, caplog):
    write_options(store.folder, ServiceOptions(source="/dev/video0"))
    manager = SystemdService(store.name, store.folder)
    manager.system = False
    manager.install()
    assert manager.unit_path.name == "edge-effdet-small.service"
    text = manager.unit_path.read_text(encoding="utf-8")
    assert str(store.folder / "edge-effdet") in text
    assert "User=" not in text
    assert "RestartSteps" not in text
    assert calls_of(systemctl) == [
        "--user --version",
        "--user daemon-reload",
        "--user enable edge-effdet-small.service",
    ]
    assert "enable-linger" in caplog.text
    written = manager.unit_path.stat().st_mtime_ns
    manager.install()
    assert manager.unit_path.stat().st_mtime_ns == written
    calls_of(systemctl)
    manager.restart()
    manager.start()
    assert calls_of(systemctl) == [
        f"--user {verb} --no-block edge-effdet-small.service" for verb in ("restart", "start")
    ]
    assert not manager.is_running()
    (systemctl / "active").touch()
    assert manager.is_running()
    calls_of(systemctl)
    manager.stop()
    manager.remove()
    assert not manager.unit_path.exists()
    assert calls_of(systemctl) == [
        "--user stop edge-effdet-small.service",
        "--user disable --now edge-effdet-small.service",
        "--user daemon-reload",
    ]
    manager.remove()
    assert calls_of(systemctl) == []


def test_a_unit_of_the_system_runs_as_its_own_user(store, systemctl, tmp_path, monkeypatch):
    me = pwd.getpwuid(os.geteuid()).pw_name
    monkeypatch.setattr(managers, "SERVICE_USER", me)
    monkeypatch.setattr(managers, "_SYSTEM_UNITS", tmp_path / "units")
    monkeypatch.setattr(managers, "_require_open", lambda _: None)
    write_options(store.folder, ServiceOptions(source="/dev/video0", memory_share=0.5))
    (store.folder / "state/results").mkdir()
    manager = SystemdService(store.name, store.folder)
    manager.system = True
    manager.install()
    text = (tmp_path / "units/edge-effdet-small.service").read_text(encoding="utf-8")
    assert "User=edge-effdet" in text
    assert "MemoryMax=50%" in text
    assert "DevicePolicy=closed" in text
    assert calls_of(systemctl) == ["--version", "daemon-reload", "enable edge-effdet-small.service"]


def test_the_user_that_cannot_be_made_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(managers, "SERVICE_USER", "edge-effdet-nobody-has-this-name")
    (tmp_path / "useradd").write_text("#!/bin/sh\necho 'useradd: cannot lock /etc/passwd' >&2\nexit 1\n")
    (tmp_path / "useradd").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="cannot lock /etc/passwd"):
        managers._make_user()
    (tmp_path / "useradd").unlink()
    with pytest.raises(UsageError, match="No such file"):
        managers._make_user()


def test_a_folder_that_the_user_of_the_service_may_not_enter_is_told(tmp_path):
    folder = tmp_path / "closed" / "bccd"
    folder.mkdir(parents=True)
    folder.parent.chmod(0o700)
    with pytest.raises(UsageError, match=f"may not enter {folder.parent}"):
        managers._require_open(folder)


def test_an_error_of_systemctl_is_one_sentence(store, systemctl):
    (systemctl / "broken").touch()
    manager = SystemdService(store.name, store.folder)
    with pytest.raises(UsageError) as caught:
        manager.restart()
    assert "Failed to connect to bus: No such file or directory" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "`service` process" in str(caught.value)


def test_without_systemctl_that_is_said(store, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UsageError, match="systemctl cannot be run"):
        SystemdService(store.name, store.folder).restart()
