"""What an inspection of a device found, and the sentence or table that tells it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from edge_effdet.cli import table
from edge_effdet.device.interpreter import DevicePython
from edge_effdet.device.targets import get_target
from edge_effdet.errors import BackendUnavailable, BundleError

Level = Literal["fine", "warning", "blocking"]

_INSTALLED = ("Python", "venv and pip", "TensorRT", "CUDA toolkit", "NVIDIA driver")
"""What can be installed on the device, without which there is no backend: exit code 3. Anything else means that the bundle does not fit: 2."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        what: its name.
        found: what it is here.
        wanted: what it has to be or should be; empty where anything will do.
        level: ``fine``; ``warning`` where the installation works without it; ``blocking`` where it does not.
        fix: what to do, without a full stop; for a fine one a hint, or empty.
    """

    what: str
    found: str
    wanted: str = ""
    level: Level = "fine"
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Inspection:
    """What was found on a device.

    Attributes:
        target: the name of the target that it was held against.
        findings: in the order in which they matter.
        workspace_mib: the limit for the scratch memory of TensorRT's builder that suits the device; 0 for none.
        python: the Python that makes the virtual environment; None where it cannot be run, and then a finding says so.
    """

    target: str
    findings: tuple[Finding, ...]
    workspace_mib: int = 0
    python: DevicePython | None = None

    @property
    def blocking(self) -> tuple[Finding, ...]:
        """What has to be mended before a bundle can be installed."""
        return tuple(each for each in self.findings if each.level == "blocking")

    @property
    def warnings(self) -> tuple[Finding, ...]:
        """What a person should know of."""
        return tuple(each for each in self.findings if each.level == "warning")

    def require(self) -> None:
        """See that nothing stands against the installation.

        Raises:
            BundleError: the device is another one than the bundle is for, or lacks room.
            BackendUnavailable: Python, its venv, TensorRT, CUDA or the driver is missing or too old.
        """
        for each in self.blocking:
            kind = BackendUnavailable if each.what in _INSTALLED else BundleError
            raise kind(
                f"A bundle for {get_target(self.target).title} does not fit this device: {each.what} is {each.found} and has to be "
                f"{each.wanted}; {each.fix}."
            )

    def text(self) -> str:
        """A table for people, and below it what to do."""
        rows = [("what", "found", "wanted", "")]
        rows += [
            (each.what, each.found, each.wanted, "" if each.level == "fine" else each.level) for each in self.findings
        ]
        advice = [f"{each.what}: {each.fix}." for each in self.findings if each.fix]
        return "\n".join([table(rows), *([""] if advice else []), *advice])
