"""What an installation, a rollback and the removal are told. The flags of ``./edge-effdet`` are made from these."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from edge_effdet.artifacts import PRECISIONS
from edge_effdet.device.service.starting import KINDS
from edge_effdet.device.store import default_root
from edge_effdet.errors import UsageError
from edge_effdet.options import as_path, check_choices, option


@dataclass(frozen=True, kw_only=True)
class PlaceOptions:
    """Where bundles are installed."""

    root: Path | str | None = option(
        None,
        help="the folder of everything that is installed (default: /opt/edge-effdet for root, else ~/.local/share/edge-effdet)",
    )

    @property
    def place(self) -> Path:
        """The root, absolute and without links."""
        return Path(os.path.realpath((as_path(self.root) or default_root()).expanduser()))


@dataclass(frozen=True, kw_only=True)
class WatchOptions:
    """What runs the engine, and how long it may take to prove itself."""

    service: str = option(
        "auto",
        help="what runs the engine for ever; auto takes what was used before, else systemd, else a background process",
        choices=KINDS,
    )
    healthy_within: float = option(
        60.0, help="seconds in which the service has to become healthy, or the version before is switched back to"
    )


@dataclass(frozen=True, kw_only=True)
class TrustOptions:
    """What is trusted."""

    public_key: str | None = option(
        None, help="a public key of minisign that is trusted too, a file or its second line; it is kept on the device"
    )
    require_signature: bool = option(
        False, help="refuse a bundle that no trusted key signed, on a device without keys too"
    )
    allow_downgrade: bool = option(False, help="install an earlier release than the one that runs")


@dataclass(frozen=True, kw_only=True)
class VersionOptions:
    """How a version is made."""

    precision: str | None = option(None, help="the precision of the engine (default: the bundle's)", choices=PRECISIONS)
    workspace_mib: int | None = option(
        None, help="TensorRT: limit of the builder's scratch memory, 0 for none (default: by the device's memory)"
    )
    python: str | None = option(
        None, help="the Python that the environment is made with (default: the one that runs this)"
    )
    keep: int = option(3, help="how many versions stay; never fewer than the one that runs and the one before it")


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What the service looks at; what is left out stays as it was."""

    source: str | None = option(
        None,
        help="an image, a folder of images, a video, a camera (/dev/video0), a stream (rtsp://…), or a GStreamer pipeline",
    )
    score_threshold: float | None = option(None, help="lower scores are dropped")
    threads: int | None = option(None, help="threads of one run on a CPU; 0 for all cores")


@dataclass(frozen=True, kw_only=True)
class InstallOptions(PlaceOptions, RunSettings, WatchOptions, VersionOptions, TrustOptions):
    """Where and how a bundle is installed.

    Raises:
        UsageError: a choice that does not exist, or a number that makes no sense.
    """

    dry_run: bool = option(False, help="print what would be done, and change nothing")

    def __post_init__(self) -> None:
        check_choices(self)
        for name, least in (("keep", 1), ("workspace_mib", 0), ("threads", 0), ("healthy_within", 0)):
            value = getattr(self, name)
            # Written so that what is no number is refused too.
            if value is not None and not least <= value < float("inf"):
                raise UsageError(f"`{name}` {value} makes no sense; give at least {least}.")
        if self.source is not None and not self.source.strip():
            raise UsageError(
                "`source` is empty; leave it out to keep what the service looks at, or give `service` none to keep no service."
            )


@dataclass(frozen=True, kw_only=True)
class RollbackOptions(PlaceOptions, WatchOptions):
    """Where and how a rollback is done.

    Raises:
        UsageError: a choice that does not exist, or a time that makes no sense.
    """

    def __post_init__(self) -> None:
        check_choices(self)
        if not 0 <= self.healthy_within < float("inf"):
            raise UsageError(f"`healthy_within` {self.healthy_within} makes no sense; give seconds, 0 or more.")


@dataclass(frozen=True, kw_only=True)
class UninstallOptions(PlaceOptions):
    """What is removed."""

    purge: bool = option(
        False, help="remove the settings and the trusted keys too, which else stay for a later installation"
    )
