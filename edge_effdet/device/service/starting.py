"""What starts the service, and starts it again: systemd, a background process of our own where there is no systemd, or nothing.

Everything here may be done again: to install what is installed, to start what runs and to stop what does not changes nothing.
"""

from __future__ import annotations

import abc
import contextlib
import grp
import logging
import os
import pwd
import re
import signal
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from edge_effdet.artifacts import printable, write_text
from edge_effdet.device.durable import remove_path
from edge_effdet.device.service.options import read_options
from edge_effdet.device.service.processes import process_identity
from edge_effdet.device.service.state_files import give_state
from edge_effdet.device.service.supervisor import PATIENCE, PID_FILE, Supervised, end_group, read_pid_file
from edge_effdet.device.service.unit import SERVICE_GROUPS, SERVICE_USER, UnitSettings, make_unit, unit_name
from edge_effdet.device.store import CONFIG, ENTRY, STATE, Store
from edge_effdet.device.targets import ON_CPU
from edge_effdet.errors import InputError, UsageError, first_line

logger = logging.getLogger("edge_effdet.device.service")

KINDS = ("auto", "systemd", "process", "none")

_SYSTEMD_RUNS = Path("/run/systemd/system")
"""A folder that is there where systemd started the machine (sd_booted(3))."""

_SYSTEM_UNITS = Path("/etc/systemd/system")

_CACHE = "cache"
"""In the state: what libraries compile and keep for the next start."""


class ServiceManager(abc.ABC):
    """Starts and stops the service of an installation.

    Attributes:
        kind: of ``KINDS``.
        name: of the installation.
        store_folder: its folder, ``ROOT/NAME``.
    """

    kind: str

    def __init__(self, name: str, store_folder: Path) -> None:
        self.name, self.store_folder = name, store_folder

    @property
    def command(self) -> list[str]:
        """What runs the service. The entry of the installation runs the version that is current when it starts."""
        return [str(self.store_folder / ENTRY), "run"]

    @abc.abstractmethod
    def install(self) -> None:
        """See that the service is started with the machine, as far as that can be, and as ``config.json`` and the current version say.

        Raises:
            UsageError: it cannot be; the sentence says why.
        """

    @abc.abstractmethod
    def start(self) -> None:
        """Start the service if it does not run. ``health.wait_until_healthy`` tells what became of it. Raises UsageError."""

    @abc.abstractmethod
    def restart(self) -> None:
        """Stop the service if it runs, and start it, so that the current version runs. Raises UsageError."""

    @abc.abstractmethod
    def stop(self) -> None:
        """Stop the service if it runs, and return when it has ended. Raises UsageError."""

    @abc.abstractmethod
    def remove(self) -> None:
        """Stop the service and undo ``install``. Raises UsageError."""

    @abc.abstractmethod
    def is_running(self) -> bool:
        """Whether the service runs, or is being started."""


def get_manager(kind: str, name: str, store_folder: Path) -> ServiceManager:
    """What starts the service of an installation.

    Args:
        kind: of ``KINDS`` but ``none``; ``auto`` for systemd where it started this machine, else a process.
        name: of the installation.
        store_folder: its folder, ``ROOT/NAME``.

    Raises:
        UsageError: there is no such kind.
    """
    if kind == "auto":
        kind = "systemd" if _SYSTEMD_RUNS.is_dir() else "process"
    kinds = {each.kind: each for each in (SystemdService, ProcessService)}
    if kind not in kinds:
        raise UsageError(f"No `service` {kind!r} starts anything; the kinds are {', '.join(KINDS)}.")
    return kinds[kind](name, store_folder)


class SystemdService(ServiceManager):
    """A unit of systemd: of the system for root, else of the user, whose units run while the user is logged in or lingers."""

    kind = "systemd"

    def __init__(self, name: str, store_folder: Path) -> None:
        super().__init__(name, store_folder)
        self.system = os.geteuid() == 0
        self.unit = unit_name(name)

    @property
    def unit_path(self) -> Path:
        """The unit's file."""
        if self.system:
            return _SYSTEM_UNITS / self.unit
        configuration = os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config"
        return Path(configuration) / "systemd/user" / self.unit

    def install(self) -> None:
        if self.system:
            _make_user()
            _require_open(self.store_folder)
            user = pwd.getpwnam(SERVICE_USER)
            give_state(self.store_folder / STATE, user.pw_uid, user.pw_gid)
            _hide(self.store_folder / CONFIG, user.pw_gid)
        text = make_unit(self._settings())
        if not self.unit_path.is_file() or self.unit_path.read_text(encoding="utf-8") != text:
            try:
                write_text(self.unit_path, text)
            except InputError as error:
                raise UsageError(
                    f"The unit {self.unit_path} cannot be written ({first_line(error.__cause__ or error)}); install with `service` process, or none."
                ) from error
            logger.info("wrote %s", self.unit_path)
        self._call("daemon-reload")
        self._call("enable", self.unit)
        if not self.system:
            self._tell_of_linger()

    def start(self) -> None:
        # Not to wait for the engine to be loaded: what waits is wait_until_healthy, which knows for how long.
        self._call("start", "--no-block", self.unit)

    def restart(self) -> None:
        self._call("restart", "--no-block", self.unit)

    def stop(self) -> None:
        if self.unit_path.is_file() or self.is_running():
            self._call("stop", self.unit)

    def remove(self) -> None:
        if not self.unit_path.is_file():
            return
        self._call("disable", "--now", self.unit)
        self.unit_path.unlink(missing_ok=True)
        self._call("daemon-reload")

    def is_running(self) -> bool:
        answer = self._ask("is-active", self.unit).stdout.strip()
        return answer in ("active", "activating", "reloading")

    def _settings(self) -> UnitSettings:
        options = read_options(self.store_folder)
        current = Store.at(self.store_folder.parent, self.store_folder.name).current()
        backend = None if current is None else current.require_record().backend
        return UnitSettings(
            name=self.name,
            store_folder=self.store_folder,
            source=options.source,
            on_gpu=backend not in ON_CPU,
            memory_share=options.memory_share,
            system=self.system,
            groups=[name for name in SERVICE_GROUPS if _has_group(name)],
            systemd=self._version(),
        )

    def _version(self) -> int:
        """The version of systemd. Raises UsageError where there is none."""
        found = re.match(r"systemd (\d+)", self._call("--version"))
        return int(found[1]) if found else 0

    def _call(self, *arguments: str) -> str:
        answer = self._ask(*arguments)
        if answer.returncode:
            said = first_line(Exception(answer.stderr or f"it ended with code {answer.returncode}")).rstrip(".")
            raise UsageError(
                f"systemctl {' '.join(arguments)} failed ({printable(said)}); see systemctl{'' if self.system else ' --user'} status {self.unit}, or "
                "install with `service` process."
            )
        return answer.stdout

    def _ask(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["systemctl", *([] if self.system else ["--user"]), *arguments]
        # Its messages are quoted, so they are asked for in one language.
        environment = {**os.environ, "LC_ALL": "C"}
        try:
            return subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                errors="surrogateescape",
                env=environment,
            )
        except OSError as error:
            raise UsageError(
                f"systemctl cannot be run ({error.strerror}), so systemd starts nothing here; install with `service` process, or none."
            ) from error

    def _tell_of_linger(self) -> None:
        user = pwd.getpwuid(os.geteuid()).pw_name
        if not Path("/var/lib/systemd/linger", user).exists():
            logger.warning(
                "the service runs only while %s is logged in; to start it with the machine, run loginctl enable-linger %s, or install as root",
                user, user,
            )  # fmt: skip


def _make_user() -> None:
    """Make the user that the service runs as, if there is none."""
    with contextlib.suppress(KeyError):
        pwd.getpwnam(SERVICE_USER)
        return
    command = ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", "/nonexistent"]
    command += ["--shell", "/usr/sbin/nologin", SERVICE_USER]
    try:
        answer = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
        problem = answer.stderr.strip() or f"it ended with code {answer.returncode}" if answer.returncode else ""
    except OSError as error:
        problem = error.strerror or str(error)
    if problem:
        raise UsageError(
            f"The user {SERVICE_USER}, as which the service runs, cannot be made by useradd ({first_line(Exception(problem))}); make it by hand, or install "
            "with `service` process."
        )
    logger.info("made the system user %s", SERVICE_USER)


def _require_open(store_folder: Path) -> None:
    """See that every user may enter the folder, as the one of the service is none of those who own it."""
    for each in (store_folder, *store_folder.parents):
        if not each.stat().st_mode & stat.S_IXOTH:
            raise UsageError(
                f"The user {SERVICE_USER}, as which the service runs, may not enter {each}; run chmod o+x on it, or give another `root`."
            )


def _take_state(state: Path) -> None:
    """Let root, who runs the service as a process, have the state that a unit's user had. What that user kept there to be run is not taken over."""
    if os.geteuid() == 0 and state.is_dir() and state.stat().st_uid != 0:
        os.chown(state, 0, 0)
        remove_path(state / _CACHE)
        give_state(state, 0, 0)


def _hide(config: Path, group: int = -1) -> None:
    """Let only the owner and the group of the service read the settings: the address of a camera may hold a password."""
    with contextlib.suppress(FileNotFoundError):
        os.chown(config, -1, group)
        config.chmod(0o640)


def _has_group(name: str) -> bool:
    try:
        grp.getgrnam(name)
    except KeyError:
        return False
    return True


class ProcessService(ServiceManager):
    """A process in the background that starts the service again where it ends with an error. Nothing starts it with the machine."""

    kind = "process"

    def install(self) -> None:
        _hide(self.store_folder / CONFIG)
        _take_state(self.store_folder / STATE)
        logger.warning(
            "the service runs as a process in the background, which nothing starts with the machine: run %s in what does, as in a container's command",
            " ".join(self.command),
        )

    def start(self) -> None:
        if self.is_running():
            return
        state = self.store_folder / STATE
        current = Store.at(self.store_folder.parent, self.store_folder.name).current()
        if current is None:
            raise UsageError(
                f"No version is installed in {self.store_folder}, so there is nothing to start; run ./edge-effdet install in a bundle."
            )
        cache = state / _CACHE
        environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "CUDA_CACHE_PATH": str(cache / "nv")}
        command = [str(current.python), "-I", "-m", "edge_effdet.device.service.supervisor", str(state), *self.command]
        try:
            subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                env=environment,
                check=True,
            )
        except (OSError, subprocess.CalledProcessError) as error:
            raise UsageError(
                f"The service cannot be started ({first_line(error)}); see what {' '.join(self.command)} says."
            ) from error

    def restart(self) -> None:
        self.stop()
        self.start()

    def stop(self) -> None:
        found = self._found()
        if found is None:
            return
        try:
            if process_identity(found.pid) == found.process:
                os.kill(found.pid, signal.SIGTERM)
                if not _within(PATIENCE + 5, lambda: process_identity(found.pid) != found.process):
                    os.kill(found.pid, signal.SIGKILL)
            # A supervisor that was killed left its service behind.
            last = self._found() or found
            end_group(last.service_pid, last.service_process)
        except ProcessLookupError:
            pass
        except PermissionError as error:
            raise UsageError(
                f"The service of {self.name} was started by another user, so this one cannot stop it; run this as that user, or with sudo."
            ) from error
        (self.store_folder / STATE / PID_FILE).unlink(missing_ok=True)

    def remove(self) -> None:
        self.stop()

    def is_running(self) -> bool:
        found = self._found()
        return found is not None and process_identity(found.pid) == found.process

    def _found(self) -> Supervised | None:
        return read_pid_file(self.store_folder / STATE)


def _within(seconds: float, is_so: Callable[[], bool]) -> bool:
    """Whether something becomes so within some seconds."""
    until = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() >= until:
            return False
        time.sleep(0.05)
    return True
