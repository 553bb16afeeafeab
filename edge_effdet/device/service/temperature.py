"""The temperature of the machine, by the kernel's thermal zones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edge_effdet.device.kernel_files import read_number, read_text

_FIXED = ("PMIC-Die", "pmic-die")
"""Zones of older Jetsons that always show the same value."""

_LOWEST, _HIGHEST = -40.0, 150.0
"""Degrees Celsius outside of which a zone shows no temperature, as -256 for a part that is powered off."""


@dataclass(frozen=True, slots=True)
class Heat:
    """The hottest thermal zone.

    Attributes:
        celsius: its temperature; None where no zone shows one.
        where: the name of the zone, or why there is no temperature.
    """

    celsius: float | None
    where: str


def read_heat(folder: Path = Path("/sys/class/thermal")) -> Heat:
    """The hottest of all zones that answer. The zone of a part that is powered off answers with an error."""
    found: list[tuple[float, str]] = []
    for zone in folder.glob("thermal_zone*"):
        thousandths, name = read_number(zone / "temp"), read_text(zone / "type") or zone.name
        if thousandths is not None and _LOWEST < thousandths / 1000 < _HIGHEST and name not in _FIXED:
            found.append((thousandths / 1000, name))
    return Heat(*max(found)) if found else Heat(None, "the system shows no thermal zone with a temperature")
