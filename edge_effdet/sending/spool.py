"""Messages that wait on the disk until they are delivered, in an SQLite file of a bounded size.

A message is in the file before ``Spool.put`` returns, so a process that is killed loses none. SQLite writes ahead (WAL) and the file is brought
to the disk about once a second by ``Spool.flush``, so a power cut loses the messages of the last second: to wait for the disk at each message
would hold up the frames and wear a memory card.

A message is numbered by how often the spool was opened and by its place since then. So no number is given twice, not even when a power cut
takes the last numbers back.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import secrets
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_effdet.errors import InputError, UsageError, first_line

logger = logging.getLogger("edge_effdet.sending.spool")

SUFFIX = ".spool"

APPLICATION_ID = 0x45454453
"""Marks an SQLite file as a spool: the letters EEDS (https://www.sqlite.org/pragma.html#pragma_application_id)."""

FORMAT = 1
"""The format of the file, in SQLite's ``user_version``."""

ROW_BYTES = 32
"""What SQLite keeps of a message beside its text, rounded up."""

_MAGIC = b"SQLite format 3\0"
_VERSION_AT, _ID_AT, _HEADER = 60, 68, 100
"""Where ``user_version`` and ``application_id`` stand in the header of an SQLite file (https://www.sqlite.org/fileformat.html)."""

_IN_AN_OPENING = 32
"""Bits of a number that count the messages since the spool was opened; those above count the openings."""

_SCHEMA = (
    "CREATE TABLE spool (name TEXT NOT NULL, openings INTEGER NOT NULL)",
    "CREATE TABLE messages (number INTEGER PRIMARY KEY, tried INTEGER NOT NULL, body BLOB NOT NULL)",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {FORMAT}",
)


@dataclass(frozen=True, slots=True)
class SpooledMessage:
    """A message that waits.

    Attributes:
        number: its place; a later message has a larger one.
        id: the same for people and other programs: the spool, how often it had been opened, and the message's place since then. Texts of
            one spool are ordered as the messages are.
        tried: whether it was sent before and may have been delivered.
        body: the message.
    """

    number: int
    id: str
    tried: bool
    body: bytes


class Spool:
    """A file of messages; the oldest are dropped where it is full. Any number of threads may use it, and one process at a time.

    Attributes:
        path: the file. SQLite keeps ``-wal`` and ``-shm`` beside it while it is open.
        waiting: messages in the file.
        dropped: messages that gave way to newer ones, since the spool was opened.
        lost: messages that could not be written, since the spool was opened.
        problem: why the last one could not be written; empty where it was.
    """

    def __init__(self, path: Path, mib: int) -> None:
        """Open the file, or make it, readable by its owner alone.

        A spool that is damaged is put aside under a name that ends in ``.damaged``, in place of an earlier one, and begun anew.

        Args:
            path: its folder is made where it is missing.
            mib: the messages take at most so many MiB. The file is somewhat larger and does not shrink.

        Raises:
            UsageError: another process has it open, or the file is something else than a spool.
            InputError: it cannot be written.
        """
        self.path, self._limit = path, mib << 20
        self.waiting = self.dropped = self.lost = 0
        self.problem = ""
        self._bytes = 0
        self._dirty = False
        self._delivered: set[int] = set()
        self._opening = 0
        self._lock, self._flushing = threading.Lock(), threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._flusher: sqlite3.Connection | None = None
        with self._told():
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock_file: int | None = _lock(path)
        try:
            with self._told():
                self._open_or_begin_anew()
        except BaseException:
            self.close()
            raise

    def put(self, body: bytes) -> bool:
        """Take a message. Returns whether it is in the file; where it is not, it is counted as lost and ``problem`` says why."""
        with self._lock:
            size = len(body) + ROW_BYTES
            if self._db is None or size > self._limit:
                self.problem = self.problem if self._db is None else "a message is larger than all that may wait"
                self.lost += 1
                return False
            try:
                with _transaction(self._db):
                    dropped, freed = self._make_room(size)
                    self._db.execute("INSERT INTO messages VALUES (?, 0, ?)", (self._next, body))
            except sqlite3.Error as error:
                self.lost += 1
                self._note(error)
                return False
            self._next += 1
            self._bytes += size - freed
            self.waiting += 1 - dropped
            self.dropped += dropped
            self.problem, self._dirty = "", True
            return True

    def take(self, count: int, size: int) -> list[SpooledMessage]:
        """The oldest messages, which stay in the file, and mark them there as tried.

        Args:
            count: so many at most.
            size: so many bytes at most, but one message in any case.

        Returns:
            In their order; none where nothing waits, or where the disk does not take the marks, without which a message that was delivered
            would look new after a kill.
        """
        with self._lock:
            if self._db is None or not self.waiting:
                return []
            try:
                self._remove_delivered()
                rows = self._db.execute(
                    "SELECT number, tried, body FROM messages ORDER BY number LIMIT ?", (count,)
                ).fetchall()
                total = 0
                for place, (_, _, body) in enumerate(rows):
                    total += len(body)
                    if place and total > size:
                        del rows[place:]
                        break
                if not all(tried for _, tried, _ in rows):
                    with _transaction(self._db):
                        self._db.execute(
                            "UPDATE messages SET tried = 1 WHERE number BETWEEN ? AND ?", (rows[0][0], rows[-1][0])
                        )
                    self._dirty = True
            except sqlite3.Error as error:
                self._note(error)
                return []
            return [SpooledMessage(number, self._id(number), bool(tried), body) for number, tried, body in rows]

    def remove(self, numbers: Sequence[int]) -> None:
        """Remove messages that were delivered. Where the disk does not take it, that is done later."""
        with self._lock:
            self._delivered.update(numbers)
            if self._db is None:
                return
            try:
                self._remove_delivered()
            except sqlite3.Error as error:
                self._note(error)

    def flush(self) -> None:
        """Bring what was written to the disk. It waits for the disk, and holds up no other thread meanwhile."""
        with self._lock:
            if self._db is None or not self._dirty:
                return
            self._dirty = False
            if self._flusher is None:
                self._flusher = self._connect()
            flusher = self._flusher
            # While the other lock is held, so that nobody closes the connection in between.
            self._flushing.acquire()
        try:
            # A checkpoint brings the log to the disk before it moves it into the file (https://www.sqlite.org/wal.html#performance_considerations).
            with contextlib.suppress(sqlite3.Error):
                flusher.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        finally:
            self._flushing.release()

    def close(self) -> None:
        """Close the file. What is left in it waits for the next run."""
        with self._lock:
            if self._db is not None:
                with contextlib.suppress(sqlite3.Error):
                    self._remove_delivered()
            self._shut()
            if self._lock_file is not None:
                os.close(self._lock_file)
                self._lock_file = None

    def _open_or_begin_anew(self) -> None:
        own = _is_marked(self.path)
        try:
            self._open()
        except sqlite3.DatabaseError as error:
            if not _is_damage(error):
                raise
            if not own:
                raise _foreign(self.path) from error
            self._begin_anew(error)

    def _begin_anew(self, error: sqlite3.Error) -> None:
        """Put the damaged file aside, with the log that belongs to it, and make a new one."""
        self._shut()
        self._delivered.clear()
        self.lost += self.waiting
        aside = self.path.with_name(self.path.name + ".damaged")
        for ending in ("", "-wal"):
            with contextlib.suppress(FileNotFoundError):
                os.replace(f"{self.path}{ending}", f"{aside}{ending}")
        Path(f"{self.path}-shm").unlink(missing_ok=True)
        logger.warning(
            "the spool %s is damaged (%s); it was put aside as %s, and a new one is begun",
            self.path, first_line(error), aside.name,
        )  # fmt: skip
        self._open()

    def _open(self) -> None:
        for ending in ("-wal", "-shm"):
            # SQLite would follow a link, as whoever may write into the folder could have put there.
            if Path(f"{self.path}{ending}").is_symlink():
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), f"{self.path}{ending}")
        # Made here, since SQLite would make it readable by all.
        os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
        db = self._db = self._connect()
        (mark,) = db.execute("PRAGMA application_id").fetchone()
        begun = bool(db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])
        if begun and mark != APPLICATION_ID:
            raise _foreign(self.path)
        if begun and (found := db.execute("PRAGMA quick_check(1)").fetchone()[0]) != "ok":
            raise sqlite3.DatabaseError(found.splitlines()[-1])
        db.execute("PRAGMA journal_mode = WAL").fetchall()
        # The count of the openings alone must not be taken back by a power cut.
        db.execute("PRAGMA synchronous = FULL")
        with _transaction(db):
            if not begun:
                for statement in _SCHEMA:
                    db.execute(statement)
                # Numbers go on from those of a file that was put aside, of which some may be under way.
                db.execute("INSERT INTO spool VALUES (?, ?)", (secrets.token_hex(4), self._opening))
            db.execute("UPDATE spool SET openings = openings + 1")
            self._name, self._opening = db.execute("SELECT name, openings FROM spool").fetchone()
        # The mark stands in the file itself from now on, and not in its log alone.
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        db.execute("PRAGMA synchronous = NORMAL")
        self._next = self._opening << _IN_AN_OPENING
        self.waiting, total = db.execute("SELECT count(*), coalesce(sum(length(body)), 0) FROM messages").fetchone()
        self._bytes = total + self.waiting * ROW_BYTES

    def _connect(self) -> sqlite3.Connection:
        # Any thread may use it, one at a time. Without an isolation level Python begins no transactions by itself.
        return sqlite3.connect(self.path, timeout=5, isolation_level=None, check_same_thread=False)

    def _make_room(self, size: int) -> tuple[int, int]:
        """Remove the oldest messages until one of this size fits. Returns how many went, and their bytes."""
        assert self._db is not None
        dropped = freed = 0
        last = None
        if self._bytes + size > self._limit:
            rows = self._db.execute("SELECT number, length(body) FROM messages ORDER BY number")
            for number, length in rows:
                last, dropped, freed = number, dropped + 1, freed + length + ROW_BYTES
                if self._bytes - freed + size <= self._limit:
                    break
            rows.close()
        if last is not None:
            self._db.execute("DELETE FROM messages WHERE number <= ?", (last,))
        return dropped, freed

    def _remove_delivered(self) -> None:
        if not self._delivered:
            return
        assert self._db is not None
        numbers = [(number,) for number in self._delivered]
        count = freed = 0
        with _transaction(self._db):
            for number in numbers:
                row = self._db.execute("SELECT length(body) FROM messages WHERE number = ?", number).fetchone()
                if row is not None:
                    self._db.execute("DELETE FROM messages WHERE number = ?", number)
                    count, freed = count + 1, freed + row[0] + ROW_BYTES
        self._delivered.clear()
        self.waiting -= count
        self._bytes -= freed
        # One that had to give way while it was on its way has arrived all the same.
        self.dropped -= len(numbers) - count
        self._dirty = True

    def _id(self, number: int) -> str:
        opening, place = number >> _IN_AN_OPENING, number & ((1 << _IN_AN_OPENING) - 1)
        return f"{self._name}-{opening:06}-{place:010}"

    def _note(self, error: sqlite3.Error) -> None:
        """Keep why the disk did not take something, and begin anew where the file is damaged."""
        self.problem = first_line(error)
        if _is_damage(error):
            try:
                self._begin_anew(error)
            except (sqlite3.Error, OSError) as failed:
                self.problem = first_line(failed)

    def _shut(self) -> None:
        with self._flushing:
            for connection in (self._flusher, self._db):
                if connection is not None:
                    with contextlib.suppress(sqlite3.Error):
                        connection.close()
            self._flusher = self._db = None

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """Say in a sentence why the file cannot be opened."""
        try:
            yield
        except (OSError, sqlite3.Error) as error:
            reason = getattr(error, "strerror", None) or first_line(error)
            raise InputError(f"The spool {self.path} cannot be written ({reason}); give another `spool`.") from error


def _lock(path: Path) -> int:
    """The descriptor of a file beside the spool that this process alone holds, until it ends or closes it."""
    descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise UsageError(
            f"Another process sends what is in the spool {path}; end it first, or give another `spool`."
        ) from error
    return descriptor


def _is_marked(path: Path) -> bool:
    """Whether there is a spool at the path, by the header of the file.

    False too where there is nothing, or an SQLite file without a mark: what a process leaves that was killed while it made a spool.

    Raises:
        UsageError: there is something else, or a spool of a later format.
    """
    try:
        with path.open("rb") as stream:
            header = stream.read(_HEADER)
    except FileNotFoundError:
        return False
    mark, version = (int.from_bytes(header[at : at + 4], "big") for at in (_ID_AT, _VERSION_AT))
    if header and (not header.startswith(_MAGIC) or mark not in (0, APPLICATION_ID)):
        raise _foreign(path)
    if mark == APPLICATION_ID and version > FORMAT:
        raise UsageError(
            f"{path} was written by a later version, in format {version}, and this one reads format {FORMAT}; install that version, or give "
            "another `spool`."
        )
    return mark == APPLICATION_ID


def _foreign(path: Path) -> UsageError:
    return UsageError(f"{path} is no spool of this program, and is left as it is; give another `spool`.")


def _is_damage(error: sqlite3.Error) -> bool:
    # SQLITE_CORRUPT and SQLITE_NOTADB are of no subclass; what the disk does not take is an OperationalError.
    return type(error) is sqlite3.DatabaseError


@contextlib.contextmanager
def _transaction(db: sqlite3.Connection) -> Iterator[None]:
    db.execute("BEGIN IMMEDIATE")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            if db.in_transaction:
                db.execute("ROLLBACK")
        raise
