"""Where detections are sent, and what sends them.

This module needs Python's standard library alone when it is imported: what installs a bundle reads the service's options with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from edge_effdet.errors import InputError, UsageError, first_line
from edge_effdet.options import check_choices, option
from edge_effdet.sending.addresses import WireAddress, check_ros_topic, mqtt_address, webhook_address

if TYPE_CHECKING:
    import ssl

    from edge_effdet.artifacts import ModelSpec
    from edge_effdet.runtime.sinks import Sink
    from edge_effdet.sending.spooled import Carrier

FRAMES = ("all", "with-objects")


@dataclass(frozen=True, kw_only=True)
class SendOptions:
    """Where detections are sent.

    Raises:
        UsageError: an address or a number makes no sense.
    """

    mqtt: str = option(
        "",
        help="send each frame's detections to a broker: mqtt://[user:password@]host[:port]/topic, or mqtts:// with TLS",
    )
    webhook: str = option(
        "", help="POST the detections to an address: https://[user:password@]host[:port]/path, or http://"
    )
    ros: str = option("", help="publish the detections to this topic of ROS 2, as vision_msgs/Detection2DArray")
    frames: str = option(
        "all", help="which frames are sent: all, or those in which an object was found", choices=FRAMES
    )
    ca_file: str = option(
        "", help="trust these certificates of authorities, PEM, for mqtts and https (default: those of the system)"
    )
    spool: str = option(
        "", help="a folder for what is not delivered yet (default: beside --output, else in the user's state folder)"
    )
    spool_mib: int = option(256, help="MiB that wait for each receiver at most; beyond it the oldest are dropped")

    def __post_init__(self) -> None:
        check_choices(self)
        if self.mqtt:
            mqtt_address(self.mqtt)
        if self.webhook:
            webhook_address(self.webhook)
        if self.ros:
            check_ros_topic(self.ros)
        if not 1 <= self.spool_mib <= 1 << 20:
            raise UsageError(f"`spool_mib` {self.spool_mib} makes no sense; give at least 1.")


def require_packages(options: SendOptions) -> None:
    """See before the work that what sends is installed, and that the certificates can be read.

    Raises:
        MissingDependency: the package for MQTT is not installed.
        BackendUnavailable: ROS 2 cannot be imported.
        InputError: the certificates cannot be read.
    """
    for make in _carriers(options).values():
        make()
    if options.ros:
        from edge_effdet.sending.ros import import_ros

        import_ros()


def make_senders(options: SendOptions, spec: ModelSpec, source: str, folder: Path | None = None) -> list[Sink]:
    """The sinks that send, each in a thread of its own. A receiver that is away is waited for.

    Args:
        options: where to.
        spec: names the classes.
        source: the name of what is looked at, without a password; in ROS it becomes the frame id.
        folder: for the spools, where the options name none; the user's state folder where None.

    Returns:
        The sinks; none where the options name no receiver.

    Raises:
        UsageError: another process uses a spool, or its file is something else.
        InputError: a spool cannot be written, or the certificates cannot be read.
        MissingDependency, BackendUnavailable: as ``require_packages``.
    """
    from edge_effdet.sending.spool import SUFFIX, Spool
    from edge_effdet.sending.spooled import SpooledSink

    with contextlib.ExitStack() as opening:
        sinks: list[Sink] = []
        for name, make in _carriers(options).items():
            carrier = make()
            spool = Spool(_spool_folder(options, folder) / f"{name}{SUFFIX}", options.spool_mib)
            sinks.append(SpooledSink(spool, carrier, spec, options.frames == "with-objects"))
            opening.callback(sinks[-1].close)
        if options.ros:
            from edge_effdet.sending.ros import RosDetections

            sinks.append(RosDetections(options.ros, spec, source, options.frames == "with-objects"))
        opening.pop_all()
    return sinks


def spool_beside(output: Path) -> Path:
    """The folder of the spools of a run that writes into the folder ``output``: ``found.spool`` beside ``found``."""
    place = Path(os.path.abspath(output))  # noqa: PTH100 - a name is needed, also of a folder that is given as "."
    return place.parent / f"{place.name}.spool"


def _spool_folder(options: SendOptions, folder: Path | None) -> Path:
    try:
        return Path(options.spool).expanduser() if options.spool else folder or state_folder()
    except RuntimeError as error:
        raise UsageError(
            "This user has no home folder, in which messages would wait until they are sent; give another folder as `spool`."
        ) from error


def state_folder() -> Path:
    """The folder of the spools of this user: ``$XDG_STATE_HOME/edge_effdet/spool``, usually in ``~/.local/state``."""
    home = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(home).expanduser() / "edge_effdet" / "spool"


def _carriers(options: SendOptions) -> Mapping[str, Callable[[], Carrier]]:
    """What carries the messages to each receiver, by the name of its spool.

    Each receiver has a spool of its own, so that what waits for one is never sent to another.
    """
    from edge_effdet.sending.mqtt import MqttCarrier
    from edge_effdet.sending.webhook import WebhookCarrier

    found: dict[str, Callable[[], Carrier]] = {}
    if options.mqtt:
        broker = mqtt_address(options.mqtt)
        found[_spool_name("mqtt", broker)] = lambda: MqttCarrier(broker, _tls(broker, options.ca_file))
    if options.webhook:
        receiver = webhook_address(options.webhook)
        found[_spool_name("webhook", receiver)] = lambda: WebhookCarrier(receiver, _tls(receiver, options.ca_file))
    return found


def _spool_name(kind: str, address: WireAddress) -> str:
    where = f"{address.scheme}://{address.host}:{address.port}/{address.target}"
    return f"{kind}-{hashlib.sha256(where.encode()).hexdigest()[:8]}"


def _tls(address: WireAddress, ca_file: str) -> ssl.SSLContext | None:
    """What TLS trusts; None where none is spoken."""
    if not address.secure:
        return None
    import ssl

    try:
        context = ssl.create_default_context(cafile=os.path.expanduser(ca_file) if ca_file else None)  # noqa: PTH111
    except OSError as error:
        raise InputError(
            f"The certificates in `ca_file` {ca_file} cannot be read ({error.strerror or first_line(error)}); give a PEM file."
        ) from error
    if ca_file:
        # From 3.13 on Python refuses an authority of one's own that openssl req -x509 made in a usual way, for want of extensions that say what
        # it may be used for. It is trusted since the user names it, with every Python; signatures, dates and names are checked as ever.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context
