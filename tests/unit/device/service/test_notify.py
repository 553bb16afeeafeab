"""Messages for systemd, over real sockets."""

from __future__ import annotations

import socket
import uuid

import pytest

from edge_effdet.device.service.notify import Notifier


@pytest.mark.parametrize("abstract", [False, True])
def test_messages_arrive(tmp_path, abstract):
    name = f"edge-effdet-{uuid.uuid4()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        server.bind(f"\0{name}" if abstract else name)
        server.settimeout(5)
        notifier = Notifier({"NOTIFY_SOCKET": f"@{name}" if abstract else name})
        assert notifier.wanted
        assert notifier.send(READY=1, STATUS="the engine\nis loaded")
        # A second line would be a second variable.
        assert server.recv(1000) == b"READY=1\nSTATUS=the engine is loaded"
        assert notifier.send(STOPPING=1)
        assert server.recv(1000) == b"STOPPING=1"


def test_nobody_who_listens_stops_nothing(tmp_path):
    assert not Notifier({}).wanted
    assert not Notifier({}).send(READY=1)
    assert not Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).send(READY=1)
    # Of an address that is neither a path nor abstract (vsock) this protocol knows nothing.
    assert not Notifier({"NOTIFY_SOCKET": "vsock:2:1"}).wanted
