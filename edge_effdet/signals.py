"""Ctrl-C and SIGTERM in a command: an end at once while modules are imported, and during the work an exception after which it cleans up.

By itself Python answers Ctrl-C with a traceback, and SIGTERM ends it without cleaning up.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

INTERRUPTED = 130
"""The exit code after Ctrl-C: 128 and the number of SIGINT, as shells have it."""

TERMINATED = 143
"""The exit code after SIGTERM, alike."""

SAID = "interrupted: nothing half-written was left behind"

SAID_AT_ONCE = (
    "interrupted at once: what was half-written has a temporary name, and the next run that writes there removes it"
)

_ONE_REQUEST = 1.0
"""Seconds within which two signals are one request: a terminal and a program that started this one may both send it."""


class Terminated(KeyboardInterrupt):
    """SIGTERM. What handles Ctrl-C handles it alike."""


class _Request:
    """Whether the work was asked to end.

    Attributes:
        number: the signal; None where none came.
        at: when it came, in seconds of ``time.monotonic``.
        told: the descriptor that the number of each signal is written to when it comes; -1 for none.
    """

    number: int | None = None
    at: float = 0.0
    told: int = -1


_request = _Request()

_ending = threading.Lock()


def _started_as() -> str:
    """The module that ``python -m`` starts, or the name of the script. While a module's package is imported, ``sys.argv`` does not name it yet."""
    given = getattr(sys, "argv", None) or [""]
    # Of Python's own command line all that follows the module is in sys.argv too.
    return sys.orig_argv[-len(given)].removeprefix("-m") if given[0] == "-m" else os.path.basename(given[0])  # noqa: PTH119


IS_COMMAND = _started_as().partition(".")[0] in ("edge_effdet", "edge-effdet")
"""Whether this process is a command of ours, and no program that imports the package, whose signals are its own."""


def end_at_once(number: int, _: FrameType | None = None) -> None:
    """End the process with the exit code of a signal, without a traceback, before it has begun to write."""
    _end(number, SAID)


def _end(number: int, text: str) -> None:
    # Two threads may want to, and one says so.
    if _ending.acquire(blocking=False):
        with contextlib.suppress(OSError):
            os.write(2, f"{text}\n".encode())
        os._exit(128 + number)


def end_while_importing() -> None:
    """Let Ctrl-C and SIGTERM end a command at once, as long as it has not begun to work. In other programs do nothing."""
    if IS_COMMAND:
        _handle(end_at_once)


@contextlib.contextmanager
def raising() -> Iterator[None]:
    """Raise KeyboardInterrupt where Ctrl-C comes, and ``Terminated`` where SIGTERM does; the next one after that ends the process at once.

    The exception waits for a library that does not come back, as one that compiles an engine; the end does not, unless that library keeps
    all of Python waiting. Signals that are ignored, or that the program handles by itself, stay as they are. After the block they are as before. In another
    thread than the first nothing happens, for there Python allows no change.
    """
    _request.number = None
    with _watched():
        before = _handle(_raise)
        try:
            yield
        finally:
            for number, handler in before.items():
                # The work may have put another one there for good, as some libraries do.
                if signal.getsignal(number) == _raise:
                    signal.signal(number, handler)


@contextlib.contextmanager
def _watched() -> Iterator[None]:
    """Let a thread see signals too: the first one, which handles them, does so only when it is back from a library's code."""
    others = signal.set_wakeup_fd(-1) if threading.current_thread() is threading.main_thread() else None
    if others != -1:
        # Of an event loop, which would miss its own signals.
        if others is not None:
            signal.set_wakeup_fd(others)
        yield
        return
    told, _request.told = os.pipe()
    os.set_blocking(_request.told, False)
    signal.set_wakeup_fd(_request.told, warn_on_full_buffer=False)
    # A thread of ours whose name begins with the program's is one that a command waits for in the end.
    watching = threading.Thread(target=_watch, args=(told,), name="signals", daemon=True)
    watching.start()
    try:
        yield
    finally:
        _watch_no_more()
        os.write(_request.told, bytes(1))
        watching.join()
        for each in (told, _request.told):
            os.close(each)
        _request.told = -1


def _watch(told: int) -> None:
    """End the process at the second request that ``raising`` has to handle. Returns at a zero in place of a signal's number."""
    # It is for the first thread to be interrupted, and to say when it may be.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    first = None
    while number := os.read(told, 1)[0]:
        if number in (signal.SIGINT, signal.SIGTERM) and signal.getsignal(number) == _raise:
            now = time.monotonic()
            first = first or now
            if now - first > _ONE_REQUEST:
                _end(number, SAID_AT_ONCE)


def _watch_no_more() -> None:
    """Write signals to our descriptor no more; one of an event loop, which may be in its place, stays."""
    if _request.told != -1:
        others = signal.set_wakeup_fd(-1)
        if others not in (-1, _request.told):
            signal.set_wakeup_fd(others)


# What a forked process is sent is no request to this one, as when this one ends its workers.
os.register_at_fork(after_in_child=_watch_no_more)


def was_asked() -> int | None:
    """The signal that came during ``raising``; None for none. A library may have made another error of the exception."""
    return _request.number


@contextlib.contextmanager
def kept_from_children() -> Iterator[None]:
    """Start processes in this block to which Ctrl-C does nothing: a terminal sends it to them too, and it is for this process to end them.

    If it comes meanwhile, it is answered after the block.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _raise(number: int, _: FrameType | None) -> None:
    now = time.monotonic()
    if _request.number is not None:
        if now - _request.at > _ONE_REQUEST:
            _end(number, SAID_AT_ONCE)
        return
    _request.number, _request.at = number, now
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def _handle(handler: Any) -> dict[int, Any]:
    """Put a handler in the place of Python's own and of ours. Returns those that were there."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    usual = (signal.SIG_DFL, signal.default_int_handler, end_at_once, _raise)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    replaced: dict[int, Any] = {number: each for number, each in before.items() if each in usual}
    for number in replaced:
        signal.signal(number, handler)
    return replaced
