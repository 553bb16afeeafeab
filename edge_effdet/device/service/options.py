"""What the service is told: ``config.json`` in the folder of an installation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from edge_effdet.artifacts import json_text
from edge_effdet.artifacts.reading import from_json, to_json
from edge_effdet.device.durable import write_durably
from edge_effdet.device.store import CONFIG
from edge_effdet.errors import InputError, UsageError
from edge_effdet.options import check_choices, option
from edge_effdet.runtime.tracking import TrackOptions
from edge_effdet.sending.options import SendOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceOptions(SendOptions, TrackOptions):
    """What the service looks at, what it keeps and where it sends it.

    Raises:
        UsageError: a number or a choice makes no sense.
    """

    source: str = option(
        "",
        help="an image, a folder of images, a video, a camera (/dev/video0), a stream (rtsp://…), or a GStreamer pipeline",
    )
    score_threshold: float = option(0.3, help="lower scores are dropped")
    threads: int = option(
        0, help="threads of one run on a CPU; 0 for the cores that the service may use, shared by the runs"
    )
    batch_size: int | None = option(None, help="images a run, for an engine with a dynamic batch (default: 1)")
    at_end: str = option(
        "idle",
        help="what the service does when pictures or a video are through: idle goes on without work, stop ends it, repeat begins again",
        choices=("idle", "stop", "repeat"),
    )
    results_mib: int = option(16, help="a file of results is full at so many MiB")
    keep_results: int = option(8, help="so many files of results are kept, the newest; 0 writes none")
    memory_share: float = option(
        0.8, help="systemd: the share of the machine's memory beyond which the service is ended and started again"
    )

    def __post_init__(self) -> None:
        # By their names: a dataclass with slots is another class than the one that super() knows.
        SendOptions.__post_init__(self)
        TrackOptions.__post_init__(self)
        check_choices(self)
        if not 0 <= self.score_threshold <= 1:
            raise UsageError(f"`score_threshold` {self.score_threshold} is not between 0 and 1; 0.3 is usual.")
        if not 0 < self.memory_share <= 1:
            raise UsageError(f"`memory_share` {self.memory_share} is not above 0 and up to 1; 0.8 is usual.")
        if self.batch_size is not None and self.batch_size < 1:
            raise UsageError(f"`batch_size` {self.batch_size} makes no sense; give at least 1.")
        for name, least in (("threads", 0), ("results_mib", 1), ("keep_results", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"`{name}` {getattr(self, name)} makes no sense; give at least {least}.")


def read_options(store_folder: Path, passed: Sequence[str] = ()) -> ServiceOptions:
    """The options in ``CONFIG``, with the usual value of each that it does not name; all usual ones where there is no such file.

    Args:
        store_folder: the folder of the installation, ``ROOT/NAME``.
        passed: options that are passed over, since a later version knows them (``device.settings``).

    Raises:
        InputError: the file is damaged, or has an option that does not exist.
        UsageError: an option in it makes no sense.
    """
    path = store_folder / CONFIG
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(raw, dict):
            raise ValueError("it holds no object")
        told = {name: value for name, value in raw.items() if name not in passed}
        return from_json(ServiceOptions, {**to_json(ServiceOptions()), **told})
    except FileNotFoundError:
        return ServiceOptions()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); make it readable for this user.") from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path} cannot be used ({error}); correct it, or remove it and install with `source` again."
        ) from error


def write_options(store_folder: Path, options: ServiceOptions) -> None:
    """Write ``CONFIG``. A file or folder as the source becomes an absolute path, since the service runs in another folder."""
    source = options.source
    # Neither a pipeline with a "!" nor an address is a path, unless there is a file of that name.
    if source and Path(source).exists():
        source = str(Path(source).absolute())
    usual = to_json(ServiceOptions())
    values = to_json(replace(options, source=source)).items()
    # An earlier version refuses what it does not know, and may be returned to. So what came later stands there only where it is in use.
    told = {name: value for name, value in values if name in ServiceOptions.__annotations__ or value != usual[name]}
    text = json_text(told, indent=2)
    # The address of a camera may hold a password. What starts the service lets its user read the file.
    write_durably(store_folder / CONFIG, text + "\n", mode=0o600)
