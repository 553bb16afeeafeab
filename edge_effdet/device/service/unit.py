"""The systemd unit of the service: how it is started, when it is started again, and what it may not do.

Directives that a systemd does not know would be left out with a warning at each start, so those that came later than systemd 249, which
JetPack 6 has (Ubuntu 22.04), are written only where they mean something. No unit of this module was ever started on a Jetson.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_effdet.device.store import ENTRY, STATE
from edge_effdet.errors import UsageError

STEPS_SINCE = 254
"""The first systemd with ``RestartSteps`` and ``RestartMaxDelaySec``, by its release notes."""

SERVICE_USER = "edge-effdet"
"""The system user that the service runs as. A dynamic user of systemd would change its number, and with it whose the state is."""

SERVICE_GROUPS = ("video", "render")
"""Groups whose members may use cameras and GPUs, on Debian, Ubuntu and Jetson Linux."""

HOMES = ("/home", "/root", "/run/user")
"""What ``ProtectHome`` hides."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitSettings:
    """What a unit depends on.

    Attributes:
        name: of the installation.
        store_folder: its folder, ``ROOT/NAME``.
        source: what the service looks at.
        on_gpu: whether a GPU runs the engine.
        memory_share: the share of the machine's memory that it may take.
        system: whether the system's manager starts it, and not that of a user, who can neither change the user nor hide parts of the system.
        groups: of ``SERVICE_GROUPS``, those that there are: with one that there is not, systemd does not start the service.
        systemd: the version of systemd.
    """

    name: str
    store_folder: Path
    source: str
    on_gpu: bool
    memory_share: float = 0.8
    system: bool = True
    groups: Sequence[str] = SERVICE_GROUPS
    systemd: int = 249


def unit_name(name: str) -> str:
    """The name of the unit of an installation."""
    return f"edge-effdet-{name}.service"


def make_unit(settings: UnitSettings) -> str:
    """The text of the unit.

    The service is ready when the engine is loaded, be the camera there or not. It answers the watchdog while frames come through, and while
    it waits for a source that is away or has no more pictures, which no restart would change.

    Raises:
        UsageError: the folder's path cannot be written into a unit.
    """
    state = settings.store_folder / STATE
    caches = (f"XDG_CACHE_HOME={state / 'cache'}", f"CUDA_CACHE_PATH={state / 'cache' / 'nv'}")
    lines = [
        "# Written by edge-effdet install, which replaces it. Own changes belong into a drop-in: systemctl edit UNIT.",
        "[Unit]",
        f"Description=edge-effdet: detection by {settings.name}",
        "After=network.target nvargus-daemon.service",
        "# It never gives up: a camera or a power supply may be mended after days.",
        "StartLimitIntervalSec=0",
    ]
    if settings.system and not _all_devices(settings):
        lines += [
            "# A device group that the kernel does not know at the start is not allowed later.",
            "Wants=modprobe@videodev.service",
            "After=modprobe@videodev.service",
        ]
    lines += [
        "",
        "[Service]",
        "Type=notify",
        "NotifyAccess=main",
        # With the colon, a dollar sign is one. systemd runs no program whose path has an apostrophe, and the shell does.
        f"ExecStart=:/bin/sh {quote(str(settings.store_folder / ENTRY))} run",
        f"Environment={' '.join(map(quote, caches))} PYTHONUNBUFFERED=1",
        "# A first start compares the engine with its golden pictures.",
        "TimeoutStartSec=600",
        "TimeoutStopSec=15",
        "KillMode=mixed",
        "WatchdogSec=60",
        "Restart=on-failure",
        "# It ends so where it is stopped before it serves.",
        "SuccessExitStatus=143",
        *_restart(settings.systemd),
        f"MemoryMax={settings.memory_share:.0%}",
        "UMask=0027",
        "NoNewPrivileges=yes",
    ]
    if settings.system:
        lines += _user(settings) + _hardening(settings, state)
    lines += ["", "[Install]", f"WantedBy={'multi-user.target' if settings.system else 'default.target'}", ""]
    return "\n".join(lines)


def _restart(version: int) -> list[str]:
    if version < STEPS_SINCE:
        return ["RestartSec=5"]
    return ["RestartSec=1", "RestartSteps=6", "RestartMaxDelaySec=60"]


def _user(settings: UnitSettings) -> list[str]:
    groups = [f"SupplementaryGroups={' '.join(settings.groups)}"] if settings.groups else []
    return [f"User={SERVICE_USER}", f"Group={SERVICE_USER}", *groups]


def _hardening(settings: UnitSettings, state: Path) -> list[str]:
    """What the service may not do. Each line that is missing or says no has a reason."""
    source = settings.source
    lines = [
        "CapabilityBoundingSet=",
        "AmbientCapabilities=",
        "PrivateMounts=yes",
        "ProtectSystem=strict",
        f"ReadWritePaths={quote(str(state))}",
        f"ProtectHome={'read-only' if sees_homes(settings.store_folder, source) else 'yes'}",
        "ProtectProc=invisible",
        "ProtectKernelTunables=yes",
        "ProtectKernelModules=yes",
        "ProtectKernelLogs=yes",
        "ProtectControlGroups=yes",
        "ProtectHostname=yes",
        "RestrictNamespaces=yes",
        "RestrictRealtime=yes",
        "RestrictSUIDSGID=yes",
        "LockPersonality=yes",
        "RemoveIPC=yes",
        "KeyringMode=private",
        "# Network cameras need INET; the resolver asks the kernel by NETLINK.",
        "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6 AF_NETLINK",
        "SystemCallArchitectures=native",
        "SystemCallFilter=@system-service",
        "SystemCallErrorNumber=EPERM",
        "# CUDA, TensorRT and oneDNN write machine code and run it.",
        "MemoryDenyWriteExecute=no",
    ]
    if "!" in source:
        lines.append("# The daemon of a Jetson's CSI cameras has its socket in /tmp.")
    lines.append(f"PrivateTmp={'no' if '!' in source else 'yes'}")
    if _all_devices(settings):
        lines += [
            "# The nodes of a GPU differ by board and release (nvhost*, nvmap, nvgpu, nvidia*, dri), and CUDA without one of them fails without saying which.",
            "# So their owners and groups decide alone. ProtectClock would switch on a list of devices, and is left out for that.",
            "DevicePolicy=auto",
        ]
    else:
        lines += ["ProtectClock=yes", "DevicePolicy=closed", "DeviceAllow=char-video4linux rw"]
    return lines


def _all_devices(settings: UnitSettings) -> bool:
    """Whether the service needs devices that cannot be listed: a GPU's, or those of the elements of a GStreamer pipeline."""
    return settings.on_gpu or "!" in settings.source


def sees_homes(store_folder: Path, source: str) -> bool:
    """Whether the service sees home folders, which a unit of the system hides unless what it needs lies there."""
    return any(_is_below(path, HOMES) for path in (str(store_folder), source))


def _is_below(path: str, folders: Sequence[str]) -> bool:
    return any(path == folder or path.startswith(f"{folder}/") for folder in folders)


def quote(text: str) -> str:
    """A text as one word of a unit (systemd.syntax(7)): in quotation marks, with percent signs doubled, which would begin a specifier.

    Raises:
        UsageError: it has a quotation mark, a backslash or a control character, of which directives take different views.
    """
    if any(letter in '"\\' or ord(letter) < 32 or ord(letter) == 127 for letter in text):
        raise UsageError(
            f"systemd takes no path with quotation marks, backslashes or control characters, as {text!r} has; give another `root`, or `service` process."
        )
    return f'"{text.replace("%", "%%")}"'
