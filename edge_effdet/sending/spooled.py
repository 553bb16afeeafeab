"""A sink that puts each frame's detections into a spool, and a thread that delivers from there.

``SpooledSink.write`` waits for no receiver. The thread takes the oldest messages, lets a ``Carrier`` deliver them, removes what was delivered, and
tries the rest again after growing waits. So each message arrives at least once and in order; one that may have arrived before says so.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from edge_effdet.artifacts import ModelSpec, json_text
from edge_effdet.cli import count_of
from edge_effdet.errors import first_line
from edge_effdet.runtime.sinks import detections_to_json
from edge_effdet.sending.report import SendReport
from edge_effdet.sending.spool import Spool, SpooledMessage

if TYPE_CHECKING:
    from edge_effdet.runtime.pipeline import FrameResult

logger = logging.getLogger("edge_effdet.sending")

FIRST_WAIT, LONGEST_WAIT = 1.0, 60.0
"""Seconds before a receiver is tried again; the wait doubles each time."""

LAST = 2.0
"""Seconds that ``SpooledSink.close`` waits for what is left to be delivered."""

LETTING_GO = 1.0
"""Seconds after that in which the thread may end; longer only where the network does not answer."""

FLUSH_EVERY, LOOK_EVERY = 1.0, 1.0
"""Seconds between two times that the spool is brought to the disk, and between two looks at a connection that rests."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of messages that a carrier was given.

    Attributes:
        delivered: the numbers of those that arrived.
        refused: the numbers of those that the receiver will never take.
        refusal: why, a sentence without its end.
        problem: why the others did not arrive, a sentence without its end; empty where they may be tried at once.
        wait: seconds after which the receiver wants to be tried again; None where it did not say.
    """

    delivered: Sequence[int] = ()
    refused: Sequence[int] = ()
    refusal: str = ""
    problem: str = ""
    wait: float | None = None


class Carrier(Protocol):
    """Brings messages to one receiver. All calls come from one thread.

    Attributes:
        shown: the receiver for people, without a password.
        batch, batch_bytes: so many messages and bytes it takes at once.
    """

    shown: str
    batch: int
    batch_bytes: int

    def open(self) -> str:
        """See that the receiver can be reached, and connect where that is needed. Returns why it cannot; empty where it can."""
        ...

    def deliver(self, messages: Sequence[SpooledMessage]) -> Outcome:
        """Bring messages to the receiver, in their order, and wait until it confirms them."""
        ...

    def close(self) -> None:
        """Say good-bye."""
        ...


class SpooledSink:
    """Sends the detections of each frame to one receiver, by way of a spool."""

    def __init__(self, spool: Spool, carrier: Carrier, spec: ModelSpec, with_objects: bool = False) -> None:
        """Start to send, first what an earlier run left in the spool.

        Args:
            spool: is closed in the end.
            carrier: is closed in the end.
            spec: names the classes.
            with_objects: leave out frames in which nothing was found.
        """
        self._spool, self._carrier, self._spec, self._with_objects = spool, carrier, spec, with_objects
        self._sent = self._refused = 0
        self._problem = self._said_lost = ""
        self._closing, self._wake = threading.Event(), threading.Event()
        self._until = float("inf")
        if spool.waiting:
            logger.info("%s from an earlier run are sent to %s", count_of(spool.waiting, "message"), carrier.shown)
        self._thread = threading.Thread(target=self._run, name="edge-effdet-send", daemon=True)
        self._flusher = threading.Thread(target=self._flush, name="edge-effdet-flush", daemon=True)
        self._thread.start()
        self._flusher.start()

    def write(self, found: FrameResult) -> None:
        """Put a frame into the spool, and return."""
        if self._with_objects and not found.detections:
            return
        body = json_text(frame_to_json(found, self._spec)).encode()
        kept = self._spool.put(body)
        self._wake.set()
        problem = "" if kept else self._spool.problem or "it is closed"
        if problem and problem != self._said_lost:
            logger.warning(
                "detections for %s are lost, for the spool cannot be written: %s", self._carrier.shown, problem
            )
        self._said_lost = problem

    def report(self) -> SendReport:
        """How it goes."""
        spool = self._spool
        return SendReport(
            self._carrier.shown, self._sent, spool.waiting, spool.dropped, self._refused, spool.lost, self._problem
        )

    def close(self) -> None:
        """Wait a few seconds for what is left to be delivered. The rest stays in the spool for the next run."""
        self._until = time.monotonic() + LAST
        self._closing.set()
        self._wake.set()
        self._thread.join(LAST + LETTING_GO)
        self._flusher.join(LETTING_GO)
        self._spool.close()

    def _flush(self) -> None:
        # In a thread of its own, since a delivery may take as long as the network likes.
        while not self._closing.wait(FLUSH_EVERY):
            self._spool.flush()

    def _run(self) -> None:
        wait = FIRST_WAIT
        while not self._is_over():
            self._wake.clear()
            try:
                outcome = self._try()
            except (
                Exception
            ) as error:  # a mistake of ours or of a library, which must not end a service's sending for good
                problem = f"an unexpected error, {first_line(error)}"
                if problem != self._problem:
                    logger.exception("sending to %s failed", self._carrier.shown)
                outcome = Outcome(problem=problem)
                self._note(problem)
            if outcome is None:
                # A connection that is lost meanwhile is noticed soon.
                self._wake.wait(LOOK_EVERY)
                continue
            if outcome.delivered:
                wait = FIRST_WAIT
            if not outcome.problem:
                continue
            if self._closing.is_set():
                break
            # Not all at the same time, where one receiver went away from many senders.
            pause = wait * random.uniform(0.5, 1.0) if outcome.wait is None else max(FIRST_WAIT, outcome.wait)
            wait = min(LONGEST_WAIT, 2 * wait)
            self._closing.wait(pause)
        self._carrier.close()

    def _try(self) -> Outcome | None:
        """Deliver the oldest messages. None where nothing waits."""
        carrier = self._carrier
        problem = carrier.open()
        if problem:
            self._note(problem)
            return Outcome(problem=problem)
        messages = self._spool.take(carrier.batch, carrier.batch_bytes)
        if not messages:
            # While something waits, its arrival alone shows that the other side hears.
            if not self._spool.waiting:
                self._note("")
            return None
        outcome = carrier.deliver(messages)
        self._spool.remove([*outcome.delivered, *outcome.refused])
        self._sent += len(outcome.delivered)
        if outcome.refused:
            if not self._refused:
                logger.warning(
                    "%s refused a message, which is dropped, and later ones are only counted: %s",
                    carrier.shown,
                    outcome.refusal,
                )
            self._refused += len(outcome.refused)
        if outcome.problem or outcome.delivered:
            self._note(outcome.problem)
        return outcome

    def _is_over(self) -> bool:
        return self._closing.is_set() and (not self._spool.waiting or time.monotonic() >= self._until)

    def _note(self, problem: str) -> None:
        """Keep why nothing arrives, and log it when it comes or changes, and when it is over."""
        if problem == self._problem:
            return
        if problem:
            logger.warning("detections do not reach %s and wait in the spool: %s", self._carrier.shown, problem)
        else:
            logger.info("detections reach %s again", self._carrier.shown)
        self._problem = problem


def frame_to_json(found: FrameResult, spec: ModelSpec) -> dict[str, Any]:
    """A frame as an object for JSON: when it was looked at, and what was found, or why it could not be looked at.

    ``time`` is the wall clock in Unix seconds, ``boot_s`` are seconds since the machine was started, where the system tells.
    """
    row: dict[str, Any] = {"time": round(time.time(), 3)}
    if hasattr(time, "CLOCK_BOOTTIME"):
        row["boot_s"] = round(time.clock_gettime(time.CLOCK_BOOTTIME), 3)
    if found.detections is None:
        row |= {"image": found.frame.name, "problem": found.problem}
    else:
        row |= detections_to_json(found.frame.name, found.detections, spec)
    if found.frame.seconds is not None:
        row["seconds"] = round(found.frame.seconds, 3)
    return row


def payload_of(message: SpooledMessage) -> bytes:
    """A message as it is sent: a JSON object with ``id`` and ``duplicate``, then what the body, a JSON object too, holds."""
    head = f'{{"id": "{message.id}", "duplicate": {"true" if message.tried else "false"}, '
    return head.encode() + message.body[1:]
