"""How sending goes, for the end of a run and for the status of a service."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from edge_effdet.cli import count_of


@dataclass(frozen=True, slots=True)
class SendReport:
    """How sending to one receiver goes, since the start.

    Attributes:
        to: the receiver, without a password.
        sent: messages that it has confirmed.
        waiting: messages in the spool.
        dropped: messages that gave way to newer ones because the spool was full.
        refused: messages that the receiver will never take.
        lost: messages that could not be written into the spool.
        problem: why nothing arrives at the moment; empty where it does.
    """

    to: str
    sent: int = 0
    waiting: int = 0
    dropped: int = 0
    refused: int = 0
    lost: int = 0
    problem: str = ""

    def text(self) -> str:
        """One line for people."""
        counts = (
            (self.waiting, "waiting in the spool"),
            (self.dropped, "dropped for newer ones"),
            (self.refused, "refused"),
            (self.lost, "lost"),
        )
        rest = [f"{count} {what}" for count, what in counts if count]
        return ", ".join([f"{self.to}: {count_of(self.sent, 'message')} sent", *rest])


def reports_of(sinks: Iterable[Any]) -> list[SendReport]:
    """How sending goes to each receiver; sinks that send nothing are left out."""
    return [sink.report() for sink in sinks if hasattr(sink, "report")]
