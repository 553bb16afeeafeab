"""What ``serve`` is told."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from edge_effdet.errors import UsageError
from edge_effdet.options import check_choices, option

LOGS = ("text", "json", "off")


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """Where the service listens and who may use it.

    Raises:
        UsageError: an address is none, files of TLS are incomplete, or everybody in a network would be let in.
    """

    listen: str = option("127.0.0.1:8080", help="address and port to listen on; port 0 takes a free one")
    name: str | None = option(
        None, help="the model's name in the protocol (default: the engine's name without suffixes)"
    )
    token_file: Path | None = option(
        None,
        help="a file with the token that a client has to send as Authorization: Bearer; needed beyond this machine",
    )
    certificate: Path | None = option(None, help="the certificate of the service, PEM, to serve by HTTPS")
    private_key: Path | None = option(None, help="the private key of the certificate, PEM")
    client_authority: Path | None = option(
        None, help="the authority, PEM, whose certificates clients have to show; needs --certificate"
    )
    host_names: str = option(
        "", help="further names, with commas between them, under which clients may call a service that wants no token"
    )
    log: str = option("text", help="a line for each request on stderr", choices=LOGS)

    def __post_init__(self) -> None:
        check_choices(self)
        host, _ = self.address
        if (self.certificate is None) != (self.private_key is None):
            raise UsageError("HTTPS needs `certificate` and `private_key`; give both.")
        if self.client_authority is not None and self.certificate is None:
            raise UsageError(
                "Certificates of clients are asked for by HTTPS alone; give `certificate` and `private_key` too."
            )
        if not is_loopback(host) and self.token_file is None and self.client_authority is None:
            raise UsageError(
                f"On {host} everybody in the network could use the engine and look through the camera; give `token_file`, or `client_authority`, or "
                "`listen` on 127.0.0.1."
            )

    @property
    def address(self) -> tuple[str, int]:
        """Host and port. Raises UsageError."""
        host, colon, port = self.listen.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        if not colon or not host or not port.isdecimal() or int(port) > 65535:
            raise UsageError(
                f"`listen` {self.listen!r} is not an address and a port; write 127.0.0.1:8080, or [::1]:8080."
            )
        return host, int(port)


@dataclass(frozen=True, slots=True)
class LimitOptions:
    """How much the service takes on.

    Raises:
        UsageError: a number makes no sense.
    """

    queue: int = option(
        16, help="pictures that may wait beside those that are worked on; a further one is answered with 503"
    )
    batch_wait_ms: float = option(2.0, help="how long a picture waits for others of its batch")
    request_rate: float = option(0.0, help="requests a second that one client may send, else 429; 0 for any number")
    max_body_mib: float = option(32.0, help="a larger body is answered with 413")
    max_megapixels: float = option(50.0, help="a picture with more million pixels is refused")
    body_seconds: float = option(20.0, help="a body that has not arrived after so many seconds is answered with 408")
    run_seconds: float = option(
        30.0, help="an engine that computes for longer has hung, and the service ends; 0 for no limit"
    )
    drain_seconds: float = option(20.0, help="what was accepted gets so many seconds to be finished after SIGTERM")

    def __post_init__(self) -> None:
        for name in ("queue", "batch_wait_ms", "request_rate", "run_seconds", "drain_seconds"):
            if not getattr(self, name) >= 0:
                raise UsageError(f"`{name}` {getattr(self, name)} makes no sense; give 0 or more.")
        for name in ("max_body_mib", "max_megapixels", "body_seconds"):
            if not getattr(self, name) > 0:
                raise UsageError(f"`{name}` {getattr(self, name)} makes no sense; give more than 0.")


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How the engine runs.

    Raises:
        UsageError: a number makes no sense.
    """

    runs: int = option(0, help="runs of the engine at once; 0 for what suits the machine")
    threads: int = option(
        0, help="threads of one run on a CPU; 0 for the cores that this process may use, shared by the runs"
    )
    batch_size: int | None = option(None, help="most pictures a run, for an engine with a dynamic batch (default: 1)")
    self_check: bool = option(
        True, help="on a machine of another kind than the engine was proven on, see first that it finds the same there"
    )

    def __post_init__(self) -> None:
        for name in ("runs", "threads"):
            if getattr(self, name) < 0:
                raise UsageError(f"`{name}` {getattr(self, name)} makes no sense; give 0, for what suits, or more.")


def is_loopback(host: str) -> bool:
    """Whether an address reaches this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
