"""The unit under a real systemd: a manager of the user, started for these tests where root may do so.

It runs in a control group and with mounts of its own, so that nothing of the machine's changes. Everything it starts is in that group.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from edge_effdet.device.service.health import wait_until_healthy
from edge_effdet.device.service.options import ServiceOptions, write_options
from edge_effdet.device.service.processes import process_identity
from edge_effdet.device.service.starting import SystemdService
from edge_effdet.device.service.status import read_status
from edge_effdet.device.service.unit import UnitSettings, make_unit
from tests.statuses import PATIENCE, wait

SYSTEMD = Path("/lib/systemd/systemd")

START = """
for group in {groups}; do echo $$ > "$group/cgroup.procs" || exit 9; done
# A manager of a user wants the sign of a machine that systemd has started.
mount -t tmpfs tmpfs /run/systemd && mkdir /run/systemd/system || exit 9
# What the system's manager makes, to lay it over what a service may not see.
mkdir -m 000 /run/systemd/inaccessible /run/systemd/inaccessible/dir && cd /run/systemd/inaccessible || exit 9
(umask 777 && : > reg && mkfifo fifo && mknod chr c 0 0 && mknod blk b 0 0) || exit 9
cd /
exec {systemd} --user --unit=basic.target
"""


def own_groups() -> list[Path]:
    """The control groups of this process that systemd needs: its own hierarchy, the unified one, or both."""
    found = []
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        tops = {"": ("", "unified"), "name=systemd": ("systemd",)}.get(controllers, ())
        for top in tops:
            folder = Path("/sys/fs/cgroup", top, path.lstrip("/"))
            if (folder / "cgroup.procs").exists():
                found.append(folder)
    return found


@pytest.fixture(scope="module")
def user_manager(tmp_path_factory):
    """The environment in which ``systemctl --user`` talks to a manager of this test."""
    if os.geteuid() or not SYSTEMD.exists() or not all(map(shutil.which, ("unshare", "nsenter", "systemctl"))):
        pytest.skip("this needs root and systemd")
    place = tmp_path_factory.mktemp("systemd")
    groups = [each / f"edge-effdet-tests-{os.getpid()}" for each in own_groups()]
    runtime, configuration = place / "run", place / "configuration"
    runtime.mkdir(mode=0o700)
    environment = {
        **os.environ,
        "XDG_RUNTIME_DIR": str(runtime),
        "XDG_CONFIG_HOME": str(configuration),
        "SYSTEMD_LOG_TARGET": "console",
    }
    for name in ("NOTIFY_SOCKET", "DBUS_SESSION_BUS_ADDRESS"):
        environment.pop(name, None)
    try:
        for each in groups:
            each.mkdir()
    except OSError as error:
        pytest.skip(f"no control group can be made here: {error}")
    script = START.format(groups=" ".join(f"'{each}'" for each in groups), systemd=SYSTEMD)
    with (place / "log").open("wb") as log:
        manager = subprocess.Popen(["unshare", "--mount", "sh", "-c", script], env=environment, stdout=log, stderr=log)
    program = place / "bin" / "systemctl"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec nsenter --mount --target {manager.pid} {shutil.which("systemctl")} "$@"\n')
    program.chmod(0o755)
    environment["PATH"] = f"{program.parent}:{os.environ['PATH']}"
    try:
        end = time.monotonic() + 20
        while not subprocess.run(
            ["systemctl", "--user", "is-system-running"], env=environment, capture_output=True, text=True
        ).stdout.startswith(("running", "degraded")):
            if manager.poll() is not None or time.monotonic() > end:
                pytest.skip(f"no manager starts here: {(place / 'log').read_text()[-300:]}")
            time.sleep(0.1)
        yield environment
    finally:
        manager.terminate()
        try:
            manager.wait(20)
        except subprocess.TimeoutExpired:
            manager.kill()
            manager.wait()
        for each in groups:
            for folder in [*sorted((sub for sub in each.rglob("*") if sub.is_dir()), reverse=True), each]:
                with contextlib.suppress(OSError):
                    folder.rmdir()


@pytest.fixture
def service(store, pictures, user_manager, monkeypatch):
    for name in ("XDG_RUNTIME_DIR", "XDG_CONFIG_HOME", "PATH"):
        monkeypatch.setenv(name, user_manager[name])
    write_options(store.folder, ServiceOptions(source=str(pictures), at_end="repeat"))
    service = SystemdService(store.name, store.folder)
    service.system = False
    yield service
    service.remove()
    assert not service.is_running()


def show(service: SystemdService, name: str) -> str:
    command = ["systemctl", "--user", "show", "--value", f"--property={name}", service.unit]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def healthy(store, service):
    health = wait_until_healthy(store.folder, "1.0-aaaa", PATIENCE)
    assert health.healthy, (
        health.reason,
        [show(service, name) for name in ("ActiveState", "Result", "ExecMainStatus")],
    )
    return read_status(store.folder)


def test_systemd_starts_watches_and_stops_the_service(store, service):
    service.install()
    assert not service.is_running()
    service.restart()
    assert service.is_running()
    status = healthy(store, service)
    # The shell of the entry has become the service, and has said by itself that it is ready.
    wait(lambda: show(service, "ActiveState") == "active")
    assert [show(service, name) for name in ("MainPID", "Type", "WatchdogUSec")] == [str(status.pid), "notify", "1min"]
    assert re.search(r"\d frames, ", wait(lambda: show(service, "StatusText")))
    service.start()
    assert healthy(store, service).pid == status.pid
    service.restart()
    wait(lambda: (again := read_status(store.folder)) and again.pid != status.pid)
    second = healthy(store, service)
    assert process_identity(status.pid) != status.process
    service.stop()
    assert not service.is_running()
    assert process_identity(second.pid) != second.process
    assert read_status(store.folder).state == "stopped"
    assert show(service, "Result") == "success"


def test_systemd_starts_a_killed_service_again(store, service):
    service.install()
    service.start()
    killed = healthy(store, service)
    os.kill(killed.pid, signal.SIGKILL)
    again = wait(lambda: (found := read_status(store.folder)) and found.pid != killed.pid and found)
    assert healthy(store, service).pid == again.pid
    assert show(service, "NRestarts") == "1"


def test_the_watchdog_ends_a_service_that_stops_answering(store, service):
    service.install()
    text = service.unit_path.read_text()
    # A minute is long for a test.
    service.unit_path.write_text(text.replace("WatchdogSec=60", "WatchdogSec=3"))
    service._call("daemon-reload")
    service.start()
    hanging = healthy(store, service)
    wait(lambda: show(service, "ActiveState") == "active")
    os.kill(hanging.pid, signal.SIGSTOP)
    wait(lambda: process_identity(hanging.pid) != hanging.process)
    again = wait(lambda: (found := read_status(store.folder)) and found.pid != hanging.pid and found.alive and found)
    assert again.process != hanging.process


def test_the_service_works_within_its_limits(store, service, pictures):
    """All limits of the unit of the system but three: its user may not read the environment of the tests, which may lie in a home folder, and
    the store of the tests is in /tmp. The manager of a user has no control over devices."""
    service.install()
    settings = UnitSettings(
        name=store.name,
        store_folder=store.folder,
        source=str(pictures),
        on_gpu=False,
        groups=[],
        systemd=service._version(),
    )
    lines = make_unit(settings).splitlines()
    changed = {
        "User=edge-effdet": "",
        "Group=edge-effdet": "",
        "ProtectHome=yes": "ProtectHome=read-only",
        "PrivateTmp=yes": "",
    }
    assert set(changed) <= set(lines)
    lines = [changed.get(line, line) for line in lines if "modprobe@" not in line]
    service.unit_path.write_text("\n".join(lines))
    service._call("daemon-reload")
    service.start()
    status = healthy(store, service)
    wait(lambda: show(service, "ActiveState") == "active")
    limits = Path(f"/proc/{status.pid}/status").read_text()
    fields = dict(line.split(":\t", 1) for line in limits.splitlines() if ":\t" in line)
    assert int(fields["CapBnd"], 16) == 0
    assert int(fields["CapEff"], 16) == 0
    assert (fields["NoNewPrivs"], fields["Seccomp"]) == ("1", "2")
    assert fields["Umask"] == "0027"
    # Results and status are written, and nothing else can be.
    mounts = Path(f"/proc/{status.pid}/mounts").read_text().splitlines()
    options = {line.split()[1]: line.split()[3].split(",") for line in mounts}
    assert "ro" in options["/"]
    assert "rw" in options[str(store.folder / "state").replace(" ", "\\040")]
    wait(lambda: list((store.folder / "state/results").glob("*.jsonl")))
    service.stop()
    assert read_status(store.folder).state == "stopped"
