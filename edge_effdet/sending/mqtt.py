"""MQTT: each message is published with QoS 1, and has arrived when the broker confirms it.

MQTT 5 is spoken, in which a broker says why it does not take a message, and 3.1.1 with a broker that knows no other. Each connection has a
client of its own: paho would send again by itself what was under way on an earlier one, as it was, and not marked as a duplicate.
"""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import socket
import ssl
import threading
from collections.abc import Collection, Sequence
from types import ModuleType
from typing import Any

from edge_effdet.errors import MissingDependency, first_line
from edge_effdet.sending.addresses import STATUS_TOPIC, WireAddress
from edge_effdet.sending.spool import SpooledMessage
from edge_effdet.sending.spooled import Outcome, payload_of

logger = logging.getLogger("edge_effdet.sending.mqtt")

KEEPALIVE = 30
"""Seconds after which a broker that sends nothing is asked whether it is there."""

ANSWER = 5.0
"""Seconds that a broker gets to accept a connection, and then to answer to it."""

CONFIRM = 10.0
"""Seconds that a broker gets to confirm messages."""

BATCH = 20
"""Messages that are under way at once. mosquitto takes no more by default."""

_OLD_BROKER = "Unsupported protocol version"
"""What paho calls the answer of a broker that does not know MQTT 5."""

_HEAD = 32
"""Bytes of a published message beside topic and content, at most."""


class MqttCarrier:
    """Publishes messages to a topic of a broker.

    The topic ``<topic>/status`` holds a retained ``{"online": true}`` while the connection stands; where it breaks, the broker itself replaces
    it by ``{"online": false}``.
    """

    batch_bytes = 1 << 20

    def __init__(self, address: WireAddress, tls: ssl.SSLContext | None) -> None:
        """Connect to nothing yet. Raises MissingDependency where paho-mqtt is not installed."""
        try:
            import paho.mqtt.client as paho
        except ModuleNotFoundError as error:
            raise MissingDependency("paho-mqtt", "mqtt", "to send to a broker") from error
        self.shown, self.batch = address.shown, BATCH
        self._paho: ModuleType = paho
        self._address, self._tls = address, tls
        self._version = paho.MQTTv5
        # One that is free belongs to nobody else: a broker throws out whoever comes with the name of another client.
        self._client_id = f"edge-effdet-{secrets.token_hex(6)}"
        self._connection: _Connection | None = None

    def open(self) -> str:
        """Connect, where there is no connection. Returns why there is none; empty where there is."""
        connection = self._connection
        if connection is not None and not connection.problem:
            return ""
        problem = self._drop()
        if problem:
            # It was lost since the last look, and is opened after a wait.
            return problem
        connection = _Connection(self._paho, self._client_id, self._version, self._address, self._tls)
        problem = connection.start()
        if problem:
            connection.end()
            if problem == _OLD_BROKER and self._version == self._paho.MQTTv5:
                self._version = self._paho.MQTTv311
                logger.info("%s does not know MQTT 5, and is spoken to in MQTT 3.1.1", self.shown)
            return problem
        self._connection, self.batch = connection, min(BATCH, connection.most_under_way)
        return ""

    def deliver(self, messages: Sequence[SpooledMessage]) -> Outcome:
        """Publish messages and wait until the broker confirms them."""
        connection = self._connection
        assert connection is not None
        topic, numbers, refused = self._address.target, {}, []
        for message in messages:
            payload = payload_of(message)
            if len(payload) + len(topic.encode()) + _HEAD > connection.largest:
                refused.append(message.number)
                continue
            handle = connection.client.publish(topic, payload, qos=1)
            if handle.rc != self._paho.MQTT_ERR_SUCCESS:
                connection.lose(self._paho.error_string(handle.rc))
                break
            numbers[handle.mid] = message.number
        delivered = [numbers[mid] for mid in connection.confirmed(numbers)]
        refusal = f"it takes {connection.largest} bytes at most" if refused else ""
        return Outcome(delivered, refused, refusal, connection.problem and self._drop())

    def close(self) -> None:
        """Say that nobody sends any more, and disconnect."""
        if self._connection is not None and not self._connection.problem:
            self._connection.say_good_bye()
        self._drop()

    def _drop(self) -> str:
        """End the connection. Returns what was wrong with it; empty where there was none."""
        if self._connection is None:
            return ""
        connection, self._connection = self._connection, None
        connection.end()
        return connection.problem


class _Connection:
    """One connection, from its begin to its end. The callbacks come from paho's thread, all else from the one that sends.

    Attributes:
        client: paho's.
        problem: why it cannot be used any more, a sentence without its end; empty while it can.
        most_under_way, largest: messages at once, and bytes of one, that the broker takes.
    """

    def __init__(
        self, paho: ModuleType, client_id: str, version: int, address: WireAddress, tls: ssl.SSLContext | None
    ) -> None:
        self.problem = ""
        self.most_under_way, self.largest = BATCH, 1 << 28
        self._paho, self._address = paho, address
        self._status = f"{address.target}/{STATUS_TOPIC}"
        self._changed = threading.Condition()
        self._answered = False
        self._confirmed: set[int] = set()
        client: Any = paho.Client(
            paho.CallbackAPIVersion.VERSION2,
            client_id=client_id,
            protocol=version,
            clean_session=True if version != paho.MQTTv5 else None,
            reconnect_on_failure=False,
        )
        client.connect_timeout = ANSWER
        if address.user is not None:
            client.username_pw_set(address.user, address.password)
        if tls is not None:
            client.tls_set_context(tls)
        client.will_set(self._status, json.dumps({"online": False}), qos=1, retain=True)
        client.on_connect, client.on_disconnect, client.on_publish = (
            self._on_connect,
            self._on_disconnect,
            self._on_publish,
        )
        self.client = client

    def start(self) -> str:
        """Connect. Returns why that did not work; empty where it did."""
        try:
            self.client.connect(self._address.host, self._address.port, keepalive=KEEPALIVE)
        except (OSError, ValueError) as error:
            # A failed check of a certificate is an OSError too.
            self.problem = getattr(error, "strerror", None) or first_line(error)
            return self.problem
        self.client.loop_start()
        with self._changed:
            self._changed.wait_for(lambda: self._answered or self.problem, ANSWER)
            if not self._answered and not self.problem:
                self.problem = "the broker does not answer"
        if not self.problem:
            self.client.publish(self._status, json.dumps({"online": True}), qos=1, retain=True)
        return self.problem

    def confirmed(self, mids: Collection[int]) -> list[int]:
        """Wait until all these messages are confirmed, or the connection is lost. Returns those that are, in their order."""
        with self._changed:
            everything = self._changed.wait_for(lambda: self.problem or self._confirmed.issuperset(mids), CONFIRM)
            if not everything:
                self.problem = f"the broker does not confirm messages within {CONFIRM:.0f} s"
            found = [mid for mid in mids if mid in self._confirmed]
            self._confirmed.clear()
        return found

    def lose(self, problem: str) -> None:
        """Note that the connection cannot be used any more; the first reason counts."""
        with self._changed:
            self.problem = self.problem or problem
            self._changed.notify_all()

    def say_good_bye(self) -> None:
        """Replace the retained status, which a broker does by itself only where a connection breaks."""
        with contextlib.suppress(RuntimeError, ValueError):
            self.client.publish(self._status, json.dumps({"online": False}), qos=1, retain=True).wait_for_publish(1.0)

    def end(self) -> None:
        """Disconnect and wait for paho's thread."""
        # A callback that comes now must change nothing.
        client = self.client
        client.on_connect = client.on_disconnect = client.on_publish = None
        stream = client.socket()
        if self.problem and stream is not None:
            # Else paho's thread would wait for a broker that is gone. It is the plain socket's: the other thread may be inside the one of TLS.
            with contextlib.suppress(OSError):
                socket.socket.shutdown(stream, socket.SHUT_RDWR)
        client.disconnect()
        client.loop_stop()

    def _on_connect(self, _client: Any, _data: Any, _flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            self.lose(str(reason))
            return
        with self._changed:
            self.most_under_way = getattr(properties, "ReceiveMaximum", self.most_under_way)
            self.largest = getattr(properties, "MaximumPacketSize", self.largest)
            self._answered = True
            self._changed.notify_all()

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self.lose(f"the connection is lost ({reason})")

    def _on_publish(self, _client: Any, _data: Any, mid: int, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self.lose(f"the broker does not take what is published to {self._address.target} ({reason})")
            return
        with self._changed:
            self._confirmed.add(mid)
            self._changed.notify_all()
