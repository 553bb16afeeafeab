"""Addresses of what detections are sent to, read once and checked, so that a wrong one is refused before any work.

No message repeats an address as it was given, for it may hold a password, and a webhook's query a token.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from urllib.parse import quote, unquote, urlsplit

from edge_effdet.errors import UsageError

MQTT_PORTS: Mapping[str, int] = {"mqtt": 1883, "mqtts": 8883}
HTTP_PORTS: Mapping[str, int] = {"http": 80, "https": 443}

STATUS_TOPIC = "status"
"""Below the topic of the detections: whether somebody sends."""

_LONGEST_TOPIC = 65_535 - len(STATUS_TOPIC) - 1
"""Bytes of a topic in MQTT, less what is added to it."""

_PATH = "/%:@!$&'()*+,;=~"
"""Letters that stay as they are in a path, beside letters, digits and ``_.-`` (RFC 3986, section 3.3)."""

_ROS_NAME = re.compile(r"~?/?[A-Za-z_][A-Za-z0-9_]*(/[A-Za-z_][A-Za-z0-9_]*)*")
"""A topic, as https://design.ros2.org/articles/topic_and_service_names.html allows it, without substitutions in braces."""


@dataclass(frozen=True, slots=True)
class WireAddress:
    """Where something is sent.

    Attributes:
        scheme: ``mqtt``, ``mqtts``, ``http`` or ``https``.
        host, port: of the other side.
        secure: whether TLS is spoken.
        target: the topic of MQTT, or path and query of a request.
        user, password: None where the address has none.
    """

    scheme: str
    host: str
    port: int
    secure: bool
    target: str
    user: str | None = None
    password: str | None = field(default=None, repr=False)

    @property
    def shown(self) -> str:
        """The address for people and logs, without user and password; of a webhook without its path too, which is the secret of some."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        topic = f"/{self.target}" if self.scheme.startswith("mqtt") else ""
        return f"{self.scheme}://{host}:{self.port}{topic}"


def mqtt_address(text: str) -> WireAddress:
    """Read ``mqtt://[user:password@]host[:port]/topic``, or ``mqtts://``.

    Raises:
        UsageError: it is no such address, or the topic cannot be published to.
    """
    form = "mqtt://[user:password@]host[:port]/topic"
    address, path, query = _read(text, "mqtt", MQTT_PORTS, form)
    topic = unquote(path.removeprefix("/"))
    # U+FFFD stands for bytes that are not UTF-8.
    if not topic or query or any(letter in topic for letter in "+#\0\ufffd"):
        raise UsageError(
            f"`mqtt` names no topic that can be published to, which has no letters +, # and ?; give {form}."
        )
    if len(topic.encode()) > _LONGEST_TOPIC:
        raise UsageError(f"The topic in `mqtt` is longer than {_LONGEST_TOPIC} bytes; give a shorter one.")
    return replace(address, target=topic)


def webhook_address(text: str) -> WireAddress:
    """Read ``http://[user:password@]host[:port]/path``, or ``https://``.

    Raises:
        UsageError: it is no such address.
    """
    address, path, query = _read(text, "webhook", HTTP_PORTS, "https://[user:password@]host[:port]/path")
    # What is escaped already stays so.
    target = quote(path or "/", safe=_PATH) + (f"?{quote(query, safe=_PATH + '?')}" if query else "")
    return replace(address, target=target)


def check_ros_topic(text: str) -> None:
    """Raises UsageError where a text is no topic of ROS 2."""
    if not _ROS_NAME.fullmatch(text) or "__" in text:
        raise UsageError(
            f"`ros` {text!r} is no topic of ROS 2, which is made of letters, digits and single _ between /; give one as /detections."
        )


def _read(text: str, option: str, ports: Mapping[str, int], form: str) -> tuple[WireAddress, str, str]:
    """What addresses of both kinds have in common, then path and query as they stand there."""
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(
            f"`{option}` is no address that can be read; give {form}, with special letters as in %40 for @."
        ) from error
    if parts.scheme not in ports or not host or "#" in text or any(letter.isspace() for letter in text):
        raise UsageError(f"`{option}` is no address of {' or '.join(ports)}; give {form}.")
    user, password = (unquote(each) if each else None for each in (parts.username, parts.password))
    secure = parts.scheme.endswith("s")
    address = WireAddress(parts.scheme, host, port or ports[parts.scheme], secure, "", user, password)
    return address, parts.path, parts.query
