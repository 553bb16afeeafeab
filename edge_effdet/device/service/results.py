"""What was found, a line of JSON a frame, in files of a bounded size of which the newest few are kept.

The files are numbered and not dated, since the clock of a device may be wrong. A disk that is full, or gone, loses lines and stops nothing.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import threading
from pathlib import Path
from typing import Any

from edge_effdet.artifacts import json_text
from edge_effdet.device.service.state_files import open_state_file, require_own_link

MOST_PENDING = 8 << 20
"""Bytes that wait to be written, beyond which lines are lost: so many come together only where the disk does not answer."""

_NAME = re.compile(r"results-(\d{8})\.jsonl")


class ResultsLog:
    """Lines of JSON in ``results-00000001.jsonl`` and so on.

    ``add`` may be called in any thread. All else is called in one thread, which alone touches the disk.

    Attributes:
        lost: lines that could not be written.
        problem: why the last ones were lost; empty where they were written.
    """

    def __init__(self, folder: Path, mib: int, keep: int) -> None:
        """Open nothing yet.

        Args:
            folder: of the files; it is made where it is missing.
            mib: a file is full at so many MiB. A single line may be longer.
            keep: so many files are kept, the newest, the one that is written among them; with 0 nothing is written.
        """
        self.lost = 0
        self.problem = ""
        self._folder, self._limit, self._keep = folder, mib << 20, keep
        self._lock = threading.Lock()
        self._pending: list[bytes] = []
        self._waiting = 0
        self._descriptor: int | None = None
        self._number = self._size = 0

    def add(self, row: dict[str, Any]) -> None:
        """Take a line, to be written by the next ``write``."""
        if not self._keep:
            return
        line = json_text(row).encode() + b"\n"
        with self._lock:
            if self._waiting + len(line) > MOST_PENDING:
                self.lost += 1
                return
            self._pending.append(line)
            self._waiting += len(line)

    def write(self) -> None:
        """Write what was added. What cannot be written is counted in ``lost``, and ``problem`` says why."""
        with self._lock:
            lines, self._pending, self._waiting = self._pending, [], 0
        written = 0
        try:
            while written < len(lines):
                self._make_room(len(lines[written]))
                count = self._fitting(lines[written:])
                self._append(b"".join(lines[written : written + count]))
                written += count
            self.problem = "" if lines else self.problem
        except OSError as error:
            self.problem = error.strerror or str(error)
            with self._lock:
                self.lost += len(lines) - written
            # The next time, what is on the disk then is looked at anew.
            self._shut()

    def close(self) -> None:
        """Write what is left and close the file."""
        self.write()
        self._shut()

    def _fitting(self, lines: list[bytes]) -> int:
        """How many of these lines go into the file that is open; at least one, for which there is room."""
        size, count = self._size, 0
        for line in lines:
            size += len(line)
            if count and size > self._limit:
                break
            count += 1
        return count

    def _append(self, content: bytes) -> None:
        assert self._descriptor is not None
        view = memoryview(content)
        try:
            while view:
                taken = os.write(self._descriptor, view)
                if not taken:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                view = view[taken:]
        except OSError:
            # No half line stays, and the whole lines before it count as lost with it.
            with contextlib.suppress(OSError):
                os.ftruncate(self._descriptor, self._size)
            raise
        self._size += len(content)

    def _make_room(self, length: int) -> None:
        """See that a file is open to which a line of this length may be added."""
        if self._descriptor is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            require_own_link(self._folder)
            last = (self._numbers() or [1])[-1]
            try:
                self._open(last)
            except OSError:
                # Another user wrote it, as root does who runs the service by hand, or it is a link.
                self._open(last + 1)
        if self._size and self._size + length > self._limit:
            self._shut()
            # Before the new one, so that a full disk has room for it.
            for number in self._numbers()[: -(self._keep - 1) or None]:
                with contextlib.suppress(OSError):
                    self._path(number).unlink()
            self._open(self._number + 1)

    def _open(self, number: int) -> None:
        # Not by its append mode, in which ftruncate and write could disagree; this process alone writes here.
        descriptor = open_state_file(self._path(number), os.O_RDWR | os.O_CREAT)
        try:
            self._size = _cut_half_line(descriptor)
            os.lseek(descriptor, self._size, os.SEEK_SET)
        except OSError:
            os.close(descriptor)
            raise
        self._descriptor, self._number = descriptor, number

    def _shut(self) -> None:
        if self._descriptor is not None:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = None

    def _numbers(self) -> list[int]:
        return sorted(int(found[1]) for each in self._folder.iterdir() if (found := _NAME.fullmatch(each.name)))

    def _path(self, number: int) -> Path:
        return self._folder / f"results-{number:08}.jsonl"


def _cut_half_line(descriptor: int, block: int = 1 << 16) -> int:
    """Cut off what a process that was killed left behind the last line break, and return the size of the file then."""
    end = os.fstat(descriptor).st_size
    while end:
        begin = max(0, end - block)
        found = os.pread(descriptor, end - begin, begin).rfind(b"\n")
        if found >= 0:
            end = begin + found + 1
            break
        end = begin
    if end != os.fstat(descriptor).st_size:
        os.ftruncate(descriptor, end)
    return end
