"""A service in a process of its own, and clients that cost little: requests are written to sockets as they are."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.processes import ROOT
from edge_effdet.errors import EdgeEffDetError

_LISTENS = re.compile(r"listens on (http://\S+?):? ")


@dataclass(slots=True)
class ServerProcess:
    """A running service.

    Attributes:
        process: it.
        host, port: where it listens.
    """

    process: subprocess.Popen[str]
    host: str
    port: int

    def resident_mb(self) -> float:
        """Megabytes of memory that it holds now."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def cpu_seconds(self) -> float:
        """Seconds of processors that it has taken so far."""
        words = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
        return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def start_server(engine: Path, arguments: Sequence[str] = ()) -> Iterator[ServerProcess]:
    """Start ``python -m edge_effdet.serve`` on a free port, and end it by SIGTERM.

    Raises:
        EdgeEffDetError: it does not start, or does not end with 0.
    """
    words = [
        sys.executable,
        "-m",
        "edge_effdet.serve",
        "--engine",
        str(engine),
        "--listen",
        "127.0.0.1:0",
        "--log",
        "off",
        *arguments,
    ]
    process = subprocess.Popen(words, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    assert process.stderr is not None
    said = []
    for line in process.stderr:
        said.append(line)
        if found := _LISTENS.search(line):
            address = urlsplit(found[1])
            break
    else:
        raise EdgeEffDetError(f"the service did not start: {''.join(said)}")
    try:
        yield ServerProcess(process, address.hostname or "", address.port or 0)
    finally:
        process.send_signal(signal.SIGTERM)
        _, rest = process.communicate(timeout=60)
        if process.returncode:
            raise EdgeEffDetError(f"the service ended with {process.returncode}: {''.join(said)}{rest}")


@dataclass(slots=True)
class Answers:
    """What came back.

    Attributes:
        seconds: of each answer with status 200.
        statuses: how often each status came.
        broken: requests whose connection broke.
    """

    seconds: list[float] = field(default_factory=list)
    statuses: dict[int, int] = field(default_factory=dict)
    broken: int = 0

    def add(self, status: int, seconds: float) -> None:
        self.statuses[status] = self.statuses.get(status, 0) + 1
        if status == 200:
            self.seconds.append(seconds)


def request_bytes(path: str, body: bytes) -> bytes:
    """A POST as it goes over the wire."""
    return f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body


async def read_answer(reader: asyncio.StreamReader) -> tuple[int, bytes, bool]:
    """Status and body of an answer, and whether the connection stays open."""
    head = await reader.readuntil(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1])
    found = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
    body = await reader.readexactly(int(found[1])) if found else b""
    return status, body, b"connection: close" not in head.lower()


async def drive_closed(
    host: str, port: int, requests: Sequence[bytes], clients: int, seconds: float
) -> tuple[Answers, float]:
    """Clients each of which sends its next request when the last one is answered.

    Returns:
        The answers, and the seconds that it took.
    """
    answers, begun = Answers(), time.perf_counter()

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection(host, port)
        while time.perf_counter() - begun < seconds:
            sent = time.perf_counter()
            writer.write(requests[number % len(requests)])
            status, _, _ = await read_answer(reader)
            answers.add(status, time.perf_counter() - sent)
            number += clients
        writer.close()

    await asyncio.gather(*(client(number) for number in range(clients)))
    return answers, time.perf_counter() - begun


async def drive_open(
    host: str, port: int, requests: Sequence[bytes], rate: float, seconds: float, connections: int
) -> tuple[Answers, int]:
    """Requests at a rate that does not wait for answers, as far as there are connections that wait for none.

    Returns:
        The answers, and how many requests were sent.
    """
    answers, sent = Answers(), 0
    idle: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
    for _ in range(connections):
        idle.put_nowait(await asyncio.open_connection(host, port))
    under_way: set[asyncio.Task[None]] = set()

    async def one(number: int, pair: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
        reader, writer = pair
        begun = time.perf_counter()
        try:
            writer.write(requests[number % len(requests)])
            status, _, stays = await read_answer(reader)
            answers.add(status, time.perf_counter() - begun)
        except (ConnectionError, asyncio.IncompleteReadError):
            answers.broken += 1
            stays = False
        if not stays:
            writer.close()
            pair = await asyncio.open_connection(host, port)
        idle.put_nowait(pair)

    begun = time.perf_counter()
    while (now := time.perf_counter() - begun) < seconds:
        due = int(now * rate)
        while sent < due and not idle.empty():
            task = asyncio.create_task(one(sent, idle.get_nowait()))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
            sent += 1
        # What found no connection is not sent later: it would make up for a pause by a burst.
        sent_late = due - sent
        if sent_late > 0 and idle.empty():
            begun += sent_late / rate
        await asyncio.sleep(0.002)
    await asyncio.gather(*under_way)
    while not idle.empty():
        idle.get_nowait()[1].close()
    return answers, sent
