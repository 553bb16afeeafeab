"""The spool: what was accepted is there after a kill, bounded, one process at a time, and neither a full disk nor a damaged file ends anything."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edge_effdet.errors import InputError, UsageError
from edge_effdet.sending.spool import Spool

EVERYTHING = (1_000_000, 1 << 40)


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / "ort mit möbeln" / "a.spool"


def bodies(spool: Spool) -> list[bytes]:
    return [message.body for message in spool.take(*EVERYTHING)]


def test_messages_are_kept_in_order_until_they_are_removed(path):
    spool = Spool(path, 1)
    assert all(spool.put(b"{%d}" % number) for number in range(10))
    first = spool.take(3, 1 << 20)
    assert [message.body for message in first] == [b"{0}", b"{1}", b"{2}"]
    spool.remove([message.number for message in first])
    assert spool.waiting == 7
    spool.close()
    again = Spool(path, 1)
    assert again.waiting == 7
    again.put(b"{10}")
    assert bodies(again) == [b"{%d}" % number for number in range(3, 11)]
    again.close()


def test_a_take_is_bounded_by_bytes_and_has_one_message_in_any_case(path):
    spool = Spool(path, 1)
    for _ in range(5):
        spool.put(b"x" * 100)
    assert len(spool.take(10, 350)) == 3
    assert len(spool.take(10, 1)) == 1
    spool.close()


def test_what_was_tried_is_marked_also_after_a_restart(path):
    spool = Spool(path, 1)
    for _ in range(4):
        spool.put(b"{}")
    assert [message.tried for message in spool.take(2, 1 << 20)] == [False, False]
    assert [message.tried for message in spool.take(3, 1 << 20)] == [True, True, False]
    spool.close()
    again = Spool(path, 1)
    assert [message.tried for message in again.take(4, 1 << 20)] == [True, True, True, False]
    again.close()


def test_ids_are_unique_and_ordered_over_restarts(path):
    ids = []
    for _ in range(3):
        spool = Spool(path, 1)
        for _ in range(12):
            spool.put(b"{}")
        taken = spool.take(*EVERYTHING)
        ids += [message.id for message in taken]
        spool.remove([message.number for message in taken])
        spool.close()
    assert len(set(ids)) == 36
    assert ids == sorted(ids)
    assert len({each.split("-")[0] for each in ids}) == 1


def test_a_full_spool_drops_the_oldest_and_counts_them(path):
    spool = Spool(path, 1)
    body = b"%06d" + b"x" * 10_000
    for number in range(300):
        assert spool.put(body % number)
    kept = bodies(spool)
    assert spool.dropped == 300 - len(kept) > 100
    assert spool.waiting == len(kept)
    assert kept == [body % number for number in range(spool.dropped, 300)]
    assert sum(map(len, kept)) <= 1 << 20
    spool.close()
    assert path.stat().st_size < 1.5 * (1 << 20)
    again = Spool(path, 1)
    assert again.put(b"y" * 50_000)
    assert again.dropped == 5, "what lay there from before counts"
    again.close()


def test_a_message_that_had_to_give_way_while_it_was_sent_is_not_counted_as_dropped(path):
    spool = Spool(path, 1)
    spool.put(b"x" * 600_000)
    (sent,) = spool.take(1, 1)
    spool.put(b"y" * 600_000)
    assert (spool.waiting, spool.dropped) == (1, 1)
    spool.remove([sent.number])
    assert (spool.waiting, spool.dropped) == (1, 0)
    assert bodies(spool) == [b"y" * 600_000]
    spool.close()


def test_a_message_larger_than_all_that_may_wait_is_lost_alone(path):
    spool = Spool(path, 1)
    spool.put(b"{}")
    assert not spool.put(b"x" * (1 << 20))
    assert "larger" in spool.problem
    assert (spool.waiting, spool.dropped, spool.lost) == (1, 0, 1)
    spool.close()


def test_the_file_is_for_its_owner_alone(path):
    old = os.umask(0)
    try:
        spool = Spool(path, 1)
    finally:
        os.umask(old)
    spool.put(b"{}")
    names = {each.name for each in path.parent.iterdir()}
    assert {"a.spool", "a.spool-wal", "a.spool.lock"} <= names
    assert {stat.S_IMODE(each.stat().st_mode) for each in path.parent.iterdir()} == {0o600}
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    spool.close()


def test_one_process_at_a_time(path):
    spool = Spool(path, 1)
    code = (
        "import sys\nfrom pathlib import Path\nfrom edge_effdet.errors import UsageError\nfrom edge_effdet.sending.spool import Spool\n"
        "try: Spool(Path(sys.argv[1]), 1)\nexcept UsageError as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True).stdout
    assert "Another process" in said and "`spool`" in said
    with pytest.raises(UsageError, match="Another process"):
        Spool(path, 1)
    spool.close()
    Spool(path, 1).close()


WRITER = """
import os, sys
from pathlib import Path
from edge_effdet.sending.spool import Spool
spool = Spool(Path(sys.argv[1]), 4)
number = 0
while True:
    assert spool.put(b"%d" % number)
    os.write(1, b"%d\\n" % number)
    number += 1
    if number % 7 == 0:
        spool.remove([message.number for message in spool.take(2, 1 << 20)][:1])
    if number % 50 == 0:
        spool.flush()
"""


def test_a_kill_loses_nothing_that_was_accepted(path):
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    accepted = [writer.stdout.readline() for _ in range(500)]
    writer.send_signal(signal.SIGKILL)
    accepted += writer.stdout.read().splitlines()
    writer.wait()
    writer.stdout.close()
    spool = Spool(path, 4)
    left = [int(each) for each in bodies(spool)]
    spool.close()
    last = int(accepted[-1])
    assert left == list(range(left[0], left[-1] + 1))
    # One more may have been kept, of which nobody was told.
    assert left[-1] in (last, last + 1)
    assert last // 7 - 1 <= left[0] <= last // 7 + 1


def test_two_threads_may_use_it(path):
    spool = Spool(path, 8)
    taken = []

    def send() -> None:
        while len(taken) < 2000:
            messages = spool.take(20, 1 << 20)
            taken.extend(int(message.body) for message in messages)
            spool.remove([message.number for message in messages])
            spool.flush()

    sender = threading.Thread(target=send)
    sender.start()
    for number in range(2000):
        assert spool.put(b"%d" % number)
    sender.join()
    assert taken == list(range(2000))
    assert (spool.waiting, spool.dropped, spool.lost) == (0, 0, 0)
    spool.close()


def test_after_the_end_nothing_is_accepted(path):
    spool = Spool(path, 1)
    spool.put(b"{}")
    spool.close()
    spool.close()
    assert not spool.put(b"{}")
    assert spool.take(*EVERYTHING) == []
    spool.flush()


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    path.write_bytes(content)


def test_a_damaged_spool_is_put_aside_and_begun_anew(path, caplog):
    spool = Spool(path, 1)
    for _ in range(1000):
        spool.put(b"x" * 100)
    (old,) = spool.take(1, 1)
    spool.close()
    damage(path)
    broken = path.read_bytes()
    spool = Spool(path, 1)
    assert spool.waiting == 0
    assert spool.put(b"{}")
    assert spool.take(1, 1)[0].id != old.id
    spool.close()
    assert path.with_name("a.spool.damaged").read_bytes() == broken
    (said,) = [record.message for record in caplog.records]
    assert "is damaged" in said and "a.spool.damaged" in said


def test_damage_while_it_runs_costs_what_waited_and_nothing_after(path):
    spool = Spool(path, 1)
    for _ in range(2000):
        spool.put(b"x" * 100)
    (under_way,) = spool.take(1, 1)
    spool.close()
    spool = Spool(path, 1)
    damage(path)
    # Without what SQLite remembers of the file.
    assert spool._db is not None
    spool._db.execute("PRAGMA shrink_memory")
    spool._db.execute("PRAGMA cache_size = 0")
    for _ in range(20):
        spool.take(*EVERYTHING)
        spool.put(b"{}")
    assert set(bodies(spool)) == {b"{}"}
    assert spool.lost >= 2000
    before = spool.waiting
    spool.remove([under_way.number])
    assert spool.waiting == before, "a number of the old file means nothing in the new one"
    spool.close()


@pytest.mark.parametrize("kind", ["text", "other program", "later"])
def test_what_is_no_spool_is_left_as_it_is(path, kind):
    path.parent.mkdir()
    if kind == "text":
        path.write_text("my notes")
    else:
        with sqlite3.connect(path) as other:
            other.execute("CREATE TABLE notes (line TEXT)")
            other.execute("INSERT INTO notes VALUES ('mine')")
        other.close()
    if kind == "later":
        path.unlink()
        Spool(path, 1).close()
        with sqlite3.connect(path) as other:
            other.execute("PRAGMA user_version = 2")
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        other.close()
    before = path.read_bytes()
    with pytest.raises(UsageError, match="later version" if kind == "later" else "no spool of this program") as caught:
        Spool(path, 1)
    assert "`spool`" in str(caught.value)
    assert path.read_bytes() == before
    assert {each.name for each in path.parent.iterdir()} - {"a.spool-wal", "a.spool-shm"} == {"a.spool", "a.spool.lock"}


def test_an_empty_file_is_one_that_was_killed_at_its_begin(path):
    path.parent.mkdir()
    path.touch()
    spool = Spool(path, 1)
    assert spool.put(b"{}")
    spool.close()


def test_a_link_in_its_place_is_not_followed(path, tmp_path):
    path.parent.mkdir()
    (tmp_path / "other").touch()
    for name in ("a.spool", "a.spool-wal"):
        link = path.with_name(name)
        link.symlink_to(tmp_path / "other")
        with pytest.raises(InputError, match="cannot be written"):
            Spool(path, 1)
        link.unlink()
    assert (tmp_path / "other").read_bytes() == b""


def test_a_folder_that_cannot_be_made_is_told(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="`spool`"):
        Spool(tmp_path / "file" / "a.spool", 1)


FULL = """
import os, resource, signal, sys
from pathlib import Path
from edge_effdet.sending.spool import Spool
# Linux sends a signal where a limit on file sizes is reached; without it the write fails, as on a full disk.
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
spool = Spool(Path(sys.argv[1]), 64)
usual, most = resource.getrlimit(resource.RLIMIT_FSIZE)
kept = 0
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, most))
for number in range(1000):
    kept += spool.put(b"%04d" % number + b"x" * 1000)
assert 0 < kept < 1000, kept
assert (spool.waiting, spool.lost) == (kept, 1000 - kept), (spool.waiting, spool.lost, kept)
assert spool.problem, "no reason"
print(spool.problem, file=sys.stderr)
resource.setrlimit(resource.RLIMIT_FSIZE, (usual, most))
assert spool.put(b"after")
assert spool.problem == ""
taken = spool.take(10_000, 1 << 40)
assert len(taken) == kept + 1 and taken[-1].body == b"after"
spool.remove([message.number for message in taken])
assert spool.waiting == 0
spool.close()
"""


def test_a_full_disk_loses_messages_and_ends_nothing(path):
    done = subprocess.run([sys.executable, "-c", FULL, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    spool = Spool(path, 64)
    assert spool.waiting == 0
    spool.close()
