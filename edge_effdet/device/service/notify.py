"""systemd's protocol by which a service tells how it is: datagrams to the socket that ``NOTIFY_SOCKET`` names (sd_notify(3))."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping

_PATIENCE = 1.0
"""Seconds after which a message is given up: a socket that nobody reads must not stop the service."""


class Notifier:
    """Sends messages to what started this process; sends nothing where that wants none.

    Args:
        environment: where ``NOTIFY_SOCKET`` is looked up.
    """

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        address = environment.get("NOTIFY_SOCKET", "")
        # An address that begins with @ is in the abstract namespace, whose names begin with a zero byte.
        self._address = f"\0{address[1:]}" if address.startswith("@") else address
        self.wanted = address.startswith(("/", "@"))

    def send(self, **variables: str | int) -> bool:
        """Send variables in one message, as in ``send(READY=1)``. A line break in a value becomes a space.

        Returns:
            Whether the message was taken.
        """
        if not self.wanted:
            return False
        message = "\n".join(f"{name}={' '.join(str(value).splitlines())}" for name, value in variables.items())
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as connection:
                connection.settimeout(_PATIENCE)
                connection.sendto(message.encode(), self._address)
        except OSError:
            return False
        return True
