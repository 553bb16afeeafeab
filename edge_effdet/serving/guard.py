"""Who is let in: the name that a browser asked for, where its page came from, the token, the rate of a client."""

from __future__ import annotations

import hmac
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path

from starlette.requests import cookie_parser

from edge_effdet.errors import InputError
from edge_effdet.serving.options import ServeOptions

logger = logging.getLogger("edge_effdet.serve")

OPEN_PATHS = frozenset({"/", "/docs", "/openapi.json", "/session", "/v2/health/live", "/v2/health/ready"})
"""What is answered without a token: nothing that takes a picture or shows one."""

OPEN_FOLDER = "/page/"

SHORTEST_TOKEN = 16

_MOST_CLIENTS = 4096
"""Clients whose rate is remembered; the one that has been silent for longest is forgotten first."""


class Refusal(Exception):
    """A request that is not let in.

    Attributes:
        status: of the answer.
        reason: a word for the counter.
        headers: further headers of the answer.
    """

    def __init__(self, status: int, reason: str, text: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(text)
        self.status, self.reason, self.headers = status, reason, dict(headers or {})


class Guard:
    """Decides on each request by its head."""

    def __init__(self, options: ServeOptions, request_rate: float) -> None:
        """Read the token.

        Args:
            options: where the service listens and who may use it.
            request_rate: requests a second that one client may send; 0 for any number.

        Raises:
            InputError: the file of the token cannot be read, or its token is too short.
        """
        self.token = None if options.token_file is None else _read_token(options.token_file)
        host, port = options.address
        # Cookies do not tell ports apart.
        self.cookie = f"edge_effdet_token_{port}"
        names = {
            "localhost",
            "127.0.0.1",
            "::1",
            host.lower(),
            *(each.strip().lower() for each in options.host_names.split(",")),
        }
        # A page of another site can have its own name lead to this machine's loopback, and read what the service answers to that name. With a
        # token or a certificate it gets no answer in any case.
        self._names = names - {""} if self.token is None and options.client_authority is None else None
        self._rate = request_rate
        self._clients: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def check(self, method: str, path: str, headers: Mapping[bytes, bytes], client: str) -> None:
        """Let a request in.

        Args:
            method, path: of the request.
            headers: by names in lower case.
            client: the address that it came from.

        Raises:
            Refusal: it is not let in.
        """
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if self._names is not None and _without_port(host) not in self._names:
            raise Refusal(
                421,
                "host",
                f"This service does not go by the name {_without_port(host)[:80]!r}; call it by its address, or start it with --host-names.",
            )
        origin = headers.get(b"origin")
        # A picture on another site's page has no Origin, but tells by these headers of Fetch that it is asked for from there.
        foreign = headers.get(b"sec-fetch-site") == b"cross-site" and headers.get(b"sec-fetch-mode") != b"navigate"
        if foreign or (origin is not None and origin.decode("latin-1").lower().partition("://")[2] != host):
            raise Refusal(
                403, "origin", "The page that sends this comes from another site, which may not use this service."
            )
        if not (path in OPEN_PATHS or path.startswith(OPEN_FOLDER)):
            self._require_token(headers)
        if self._rate and method == "POST":
            self._count(client)

    def is_token(self, text: str) -> bool:
        """Whether this is the token; takes as long for any text."""
        return self.token is not None and hmac.compare_digest(text.encode("utf-8", "replace"), self.token.encode())

    def _require_token(self, headers: Mapping[bytes, bytes]) -> None:
        if self.token is None:
            return
        scheme, _, given = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        if scheme.lower() == "bearer" and self.is_token(given.strip()):
            return
        # Python's own class gives up the whole header where another program's cookie is not as the standard wants it.
        cookies = cookie_parser(headers.get(b"cookie", b"").decode("latin-1"))
        if self.is_token(cookies.get(self.cookie, "")):
            return
        raise Refusal(
            401,
            "token",
            "This service wants its token; send it as Authorization: Bearer, or enter it in the page.",
            {"WWW-Authenticate": 'Bearer realm="edge_effdet"'},
        )

    def _count(self, client: str) -> None:
        """A bucket of tokens for each client: it holds those of one second, at least one, and is filled again at the allowed rate."""
        now, most = time.monotonic(), max(1.0, self._rate)
        left, then = self._clients.pop(client, (most, now))
        left = min(most, left + (now - then) * self._rate)
        self._clients[client] = (left - 1 if left >= 1 else left, now)
        if len(self._clients) > _MOST_CLIENTS:
            self._clients.popitem(last=False)
        if left < 1:
            wait = max(1, math.ceil((1 - left) / self._rate))
            raise Refusal(
                429,
                "rate",
                f"You sent more than {self._rate:g} requests a second; try again in {wait} s.",
                {"Retry-After": str(wait)},
            )


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]


def _read_token(path: Path) -> str:
    try:
        token = path.read_text(encoding="utf-8").strip()
        open_to_all = bool(path.stat().st_mode & 0o004)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"The token in {path} cannot be read ({error}); give a file with one line.") from error
    if (
        len(token) < SHORTEST_TOKEN
        or not token.isascii()
        or not token.isprintable()
        or any(each in ' ";,\\' for each in token)
    ):
        raise InputError(
            f"The token in {path} is not one line of at least {SHORTEST_TOKEN} letters and digits; make one with: openssl rand -hex 24."
        )
    if open_to_all:
        logger.warning("every user of this machine can read the token in %s; chmod 600 keeps it private", path)
    return token
