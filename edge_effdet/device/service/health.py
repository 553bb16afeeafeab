"""Whether the service of a version became healthy: what decides between an update and the way back."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from edge_effdet.device.service.status import ServiceStatus, judge, read_status

_PAUSE = 0.25
"""Seconds between two looks at the status."""


@dataclass(frozen=True, slots=True)
class Health:
    """The answer.

    Attributes:
        healthy: whether it is.
        reason: why not, a sentence without its end; empty where it is.
    """

    healthy: bool
    reason: str = ""


def wait_until_healthy(store_folder: Path, version: str, seconds: float) -> Health:
    """Wait until the service of a version does its work.

    That is so where a process that lives says so in a fresh status, for this version, and frames advance between two looks. A service whose
    pictures are all through is healthy without frames. Times are compared on the clock that goes on from the start of the machine.

    Args:
        store_folder: the folder of the installation, ``ROOT/NAME``.
        version: its id.
        seconds: how long to wait; the status is looked at once at least.
    """
    until = time.monotonic() + seconds
    before: ServiceStatus | None = None
    while True:
        status = read_status(store_folder)
        reason = judge(status)
        if status is not None and status.alive and status.version != version:
            reason = f"the version {status.version} still runs, and {version} does not"
        if not reason and status is not None:
            if status.state == "idle":
                return Health(True)
            if before is not None and before.process == status.process and status.frames > before.frames:
                return Health(True)
            before = before or status
            reason = "no frames came through while it was watched"
        else:
            before = None
        if time.monotonic() >= until:
            return Health(False, reason)
        time.sleep(min(_PAUSE, max(0.0, until - time.monotonic())))
