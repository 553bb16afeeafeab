"""What ``deploy`` is told."""

from __future__ import annotations

from dataclasses import dataclass, fields
from datetime import datetime, timezone
from pathlib import Path

from edge_effdet.backends.base import BACKENDS
from edge_effdet.building.options import BuildConfig, LoweringOptions
from edge_effdet.device.manifest import parse_release, require_name
from edge_effdet.device.targets import TARGETS, get_target
from edge_effdet.errors import UsageError
from edge_effdet.options import check_choices, option

ARCHIVES = ("gz", "zst", "none")


@dataclass(frozen=True, kw_only=True)
class DeployConfig(LoweringOptions):
    """What a bundle is made of and for. Every field is a flag of ``python -m edge_effdet.deploy``.

    Raises:
        UsageError: a target, backend or Python that does not exist or that do not go together.
        BundleError: a name or a release that cannot be one.
    """

    target: str = option("", help="the machine that it is for", choices=tuple(TARGETS))
    output: Path | str = option(help="write the bundle, its archive, and the folder build into this folder")
    backend: str | None = option(
        None,
        help="what runs the engine there (default: what runs the given engine, else tensorrt for a GPU and onnxruntime for a CPU)",
        choices=tuple(BACKENDS),
    )
    release: str | None = option(
        None, help="numbers with dots, by which an update is told from a downgrade (default: the date and time)"
    )
    python: str | None = option(
        None, help="the device's Python, as in 3.10 (default: those of the target's systems, and this one's for a CPU)"
    )
    wheels: bool = option(
        False, help="put the wheels of all requirements into the bundle, so that the device needs no network"
    )
    video: bool = option(
        True,
        help="bring what reads videos, cameras and streams, follows objects, and sends by MQTT, 36 MB with --wheels; a device that looks at pictures alone needs "
        "none",
    )
    archive: str = option("gz", help="write an archive of the bundle too", choices=ARCHIVES)
    sign: Path | str | None = option(None, help="sign the bundle and its archive with this secret key of minisign")
    trust: Path | str | None = option(
        None,
        help="with --sign: a file of public keys that a device trusts from this bundle on, instead of those that it trusts now",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self)
        if not self.target:
            raise UsageError(f"It is not said for what machine; give one of {', '.join(TARGETS)} as `target`.")
        if self.name is not None:
            require_name(self.name)
        if self.release is not None:
            parse_release(self.release)
        if self.trust is not None and self.sign is None:
            raise UsageError("`trust` changes the keys of a device, which only a signed bundle may do; add `sign` F.")
        target = get_target(self.target)
        if self.backend is not None and self.backend not in target.backends:
            raise UsageError(
                f"{self.backend} does not run on {self.target}; give one of {', '.join(target.backends)} as `backend`, or another `target`."
            )

    @property
    def chosen_backend(self) -> str:
        """What runs the engine on the device."""
        return self.backend or get_target(self.target).backends[0]

    @property
    def chosen_release(self) -> str:
        """The release; the date and time where none was given, so that a later bundle is the newer one."""
        return self.release or datetime.now(timezone.utc).strftime("%Y.%m.%d.%H%M%S")

    def building(self, output: Path, precision: str, backend: str) -> BuildConfig:
        """How the host builds an engine of the graph that the bundle has, to measure it.

        Args:
            output: the folder of the build.
            precision: of the graph.
            backend: what runs it on the host. How INT8 is made is decided by what runs it on the device.
        """
        values = {item.name: getattr(self, item.name) for item in fields(LoweringOptions)}
        chosen = self.quantizing(self.chosen_backend)
        values |= {"high_precision": chosen.high_precision, "weight_codes": chosen.weight_codes}
        return BuildConfig(**{**values, "precision": precision, "output": output, "backend": backend})
