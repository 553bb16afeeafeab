"""A webhook: messages are sent by POST as a JSON array, and have arrived when the answer is 2xx.

Each message has an ``id`` by which the receiver knows one that it had already. Redirects are not followed, and proxies of the environment are not
used: detections go where they were told to go.
"""

from __future__ import annotations

import base64
import contextlib
import email.utils
import http.client
import select
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from http import HTTPStatus

from edge_effdet.errors import first_line
from edge_effdet.sending.addresses import WireAddress
from edge_effdet.sending.spool import SpooledMessage
from edge_effdet.sending.spooled import Outcome, payload_of

SILENCE = 10.0
"""Seconds that the receiver may be silent: while it is connected to, and between two pieces of its answer."""

WHOLE = 60.0
"""Seconds of a request and its answer altogether."""

LONGEST_ASKED = 3600.0
"""Seconds of ``Retry-After`` that are respected."""

BATCH = 100

_ANSWER_BYTES = 1 << 16
"""Of the answer's content, which nobody reads; a longer one ends the connection."""


_ONE_OF_THEM = (HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNPROCESSABLE_ENTITY)
"""Answers that may be about one message of many, or about their number: then each is sent alone."""


class WebhookCarrier:
    """Sends messages to an address by POST."""

    batch, batch_bytes = BATCH, 1 << 18

    def __init__(self, address: WireAddress, tls: ssl.SSLContext | None) -> None:
        self.shown = address.shown
        self._address, self._tls = address, tls
        self._connection: http.client.HTTPConnection | None = None
        self._alone_until = -1
        self._headers = {"Content-Type": "application/json", "User-Agent": "edge-effdet", "Accept": "*/*"}
        if address.user is not None:
            pair = f"{address.user}:{address.password or ''}".encode()
            self._headers["Authorization"] = f"Basic {base64.b64encode(pair).decode()}"

    def open(self) -> str:
        """Nothing is opened before there is something to send."""
        return ""

    def deliver(self, messages: Sequence[SpooledMessage]) -> Outcome:
        """Send messages in one request, the first alone where it was refused in company."""
        if messages[0].number <= self._alone_until:
            messages = messages[:1]
        body = b"[" + b",\n".join(map(payload_of, messages)) + b"]"
        kept = self._connection is not None
        try:
            status, reason, headers = self._post(body)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            if kept:
                # The receiver may have closed it meanwhile, as it may at any time.
                return Outcome()
            return Outcome(problem=_reason(error))
        answer = f"it answers {status} {reason}".rstrip()
        numbers = [message.number for message in messages]
        if 200 <= status < 300:
            return Outcome(delivered=numbers)
        if status in _ONE_OF_THEM:
            if len(numbers) > 1:
                self._alone_until = numbers[-1]
                return Outcome()
            return Outcome(refused=numbers, refusal=answer)
        if 300 <= status < 400:
            # Not where to: the address may have a secret in it.
            answer += ", and redirects are not followed; give the other address"
        return Outcome(problem=answer, wait=_retry_after(headers))

    def close(self) -> None:
        """Close the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _post(self, body: bytes) -> tuple[int, str, http.client.HTTPMessage]:
        if self._connection is not None and _has_ended(self._connection.sock):
            self.close()
        if self._connection is None:
            self._connection = self._connect()
        connection = self._connection
        with _within(WHOLE, connection.sock):
            connection.request("POST", self._address.target, body, self._headers)
            with connection.getresponse() as response:
                content = response.read(_ANSWER_BYTES)
                status, reason, headers = response.status, response.reason, response.headers
                # What is left of the answer would be taken for the next one.
                if response.will_close or len(content) == _ANSWER_BYTES:
                    self.close()
        return status, reason, headers

    def _connect(self) -> http.client.HTTPConnection:
        address = self._address
        if self._tls is not None:
            connection = http.client.HTTPSConnection(address.host, address.port, timeout=SILENCE, context=self._tls)
        else:
            connection = http.client.HTTPConnection(address.host, address.port, timeout=SILENCE)
        connection.connect()
        return connection


@contextlib.contextmanager
def _within(seconds: float, stream: socket.socket) -> Iterator[None]:
    """Shut a socket down after some seconds: a receiver that sends a byte now and then keeps every time limit of the socket."""
    over = threading.Event()

    def shut_down() -> None:
        over.set()
        # Not the method of a socket of TLS, whose state belongs to the thread that reads.
        with contextlib.suppress(OSError):
            socket.socket.shutdown(stream, socket.SHUT_RDWR)

    timer = threading.Timer(seconds, shut_down)
    timer.daemon = True
    timer.start()
    try:
        yield
    # What is shut down ends in any of these, or as if the answer were whole.
    except (OSError, http.client.HTTPException, ValueError):
        if not over.is_set():
            raise
    finally:
        timer.cancel()
    if over.is_set():
        raise TimeoutError


def _has_ended(stream: socket.socket | None) -> bool:
    """Whether the other side has closed a connection that rests, or said something that nobody asked for."""
    if stream is None or stream.fileno() < 0:
        return True
    poll = select.poll()
    poll.register(stream, select.POLLIN)
    return bool(poll.poll(0))


def _retry_after(headers: http.client.HTTPMessage) -> float | None:
    """Seconds that the receiver wants to be left alone: RFC 9110, section 10.2.3. None where it does not say so, or not rightly."""
    text = (headers["Retry-After"] or "").strip()
    if text.isdecimal():
        return min(float(text), LONGEST_ASKED)
    asked = _seconds(text)
    if asked is None:
        return None
    # The receiver's clock, where it tells: that of a device may be wrong.
    now = _seconds(headers["Date"] or "")
    return min(max(0.0, asked - (time.time() if now is None else now)), LONGEST_ASKED)


def _seconds(date: str) -> float | None:
    try:
        return email.utils.parsedate_to_datetime(date).timestamp()
    except (ValueError, TypeError, OverflowError):
        return None


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "it does not answer in time"
    if isinstance(error, http.client.BadStatusLine):
        return "it ends the connection without an answer that is HTTP"
    return getattr(error, "strerror", None) or first_line(error)
