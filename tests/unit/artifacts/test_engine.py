"""An engine and its record are replaced as one: whatever is killed, an engine can be used."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from edge_effdet.artifacts import (
    Engine,
    engine,
    engine_json_path,
    load_engine,
    replace_engine,
    waiting_record_path,
)
from edge_effdet.errors import EngineError, InputError, UsageError
from tests.kills import put_engine, write_engine
from tests.records import write_record

HERE = Path(__file__).parents[3]
OLD, NEW = b"an engine", b"another engine"


def run_kills(work: str, folder: Path) -> list[Path]:
    """The folders in which some work was killed one change later each time; in the last one it ended."""
    (folder / "old.onnx").write_bytes(OLD)
    (folder / "new.onnx").write_bytes(NEW)
    subprocess.run([sys.executable, "-m", "tests.kills", work, folder], cwd=HERE, check=True)
    roots = sorted((each for each in folder.iterdir() if each.name.isdecimal()), key=lambda each: int(each.name))
    assert len(roots) > 10, "nothing was killed"
    return roots


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def leave_waiting(folder: Path) -> Path:
    """The state in which a kill leaves an engine whose record waits for its name."""
    path = folder / "x.onnx"
    write_record(write_engine(path, OLD, "old"))
    record = engine_json_path(path)
    old = record.read_bytes()
    put_engine(path, NEW, "new")
    record.rename(waiting_record_path(path))
    record.write_bytes(old)
    return path


def test_a_kill_before_any_change_leaves_the_old_engine_or_the_new_one(tmp_path: Path):
    seen: list[tuple[str, bool]] = []
    for root in run_kills("replace_engines", tmp_path):
        path = root / "x.onnx"
        left = waiting_record_path(path).exists()
        found = load_engine(path)
        assert (path.read_bytes(), found.require_record().target) in ((OLD, "old"), (NEW, "new"))
        assert found.waiting is None and found.json_path == root / "x.onnx.json"
        seen.append((found.require_record().target, left))
        put_engine(path, b"the newest", "newest")
        assert load_engine(path).require_record().target == "newest"
        assert names(root) == ["x.onnx", "x.onnx.json"]
    order = list(dict.fromkeys(seen))
    assert order == [("old", False), ("old", True), ("new", True), ("new", False)]


def test_what_a_killed_build_left_is_finished_by_one_that_is_killed_too(tmp_path: Path):
    for root in run_kills("finish_engines", tmp_path):
        path = root / "x.onnx"
        found = load_engine(path)
        assert (path.read_bytes(), found.require_record().target) in ((NEW, "new"), (OLD, "newest"))
        put_engine(path, NEW, "last")
        assert names(root) == ["x.onnx", "x.onnx.json"]


def test_a_record_that_waits_gets_its_name_from_who_may_give_it(tmp_path: Path):
    path = leave_waiting(tmp_path)
    waiting = waiting_record_path(path)
    with waiting.open() as stream:
        # As in a folder that this user cannot write: the build is still at it.
        fcntl.flock(stream, fcntl.LOCK_EX)
        found = load_engine(path)
        assert found.waiting == found.json_path == waiting and found.require_record().target == "new"
        assert waiting.exists()
    found = load_engine(path)
    assert found.json_path == engine_json_path(path) and found.require_record().target == "new"
    assert names(tmp_path) == ["x.onnx", "x.onnx.json"]


def test_a_folder_that_cannot_be_written_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Root can write in all of them, so the system's refusal is simulated."""
    path = leave_waiting(tmp_path)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(engine.os, "replace", refuse)
    assert load_engine(path).json_path == waiting_record_path(path)
    with pytest.raises(InputError, match=r"Writing .*x\.onnx failed: Permission denied"):
        replace_engine(write_engine(tmp_path / "made.onnx", OLD, "old"), path)


@pytest.mark.parametrize("content", ["", '{"format": 3', "[]"])
def test_a_record_that_waits_and_is_not_the_engines_is_left_out_of_account(tmp_path: Path, content: str):
    path = tmp_path / "x.onnx"
    write_record(write_engine(path, OLD, "old"))
    waiting_record_path(path).write_text(content)
    assert load_engine(path).require_record().target == "old"
    engine_json_path(path).unlink()
    with pytest.raises(EngineError, match=r"has no x\.onnx\.json beside it"):
        load_engine(path)
    put_engine(path, NEW, "new")
    assert names(tmp_path) == ["x.onnx", "x.onnx.json"]


def test_a_build_that_fails_keeps_the_earlier_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "x.onnx"
    write_record(write_engine(path, OLD, "old"))
    made = write_engine(tmp_path / "made.onnx", NEW, "new")
    replace = os.replace
    for fails in ("x.onnx", "x.onnx.json"):

        def replace_or_fail(old: Path, new: Path, fails: str = fails) -> None:
            if new.name == fails:
                raise KeyboardInterrupt
            replace(old, new)

        monkeypatch.setattr(engine.os, "replace", replace_or_fail)
        with pytest.raises(KeyboardInterrupt):
            replace_engine(made, path)
        monkeypatch.undo()
        assert waiting_record_path(path).exists() == (fails == "x.onnx.json")
        assert load_engine(path).require_record().target == ("old" if fails == "x.onnx" else "new")


def test_each_change_is_on_the_disk_before_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "x.onnx"
    made = write_engine(tmp_path / "made.onnx", NEW, "new")
    order: list[str] = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(handle: int) -> None:
        order.append(Path(f"/proc/self/fd/{handle}").readlink().name)
        fsync(handle)

    def note_replace(old: Path, new: Path) -> None:
        order.append(f"{old.name} > {new.name}")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_replace)
    replace_engine(made, path)
    folder = tmp_path.name
    assert order == [
        *("made.onnx", "x.onnx.json.new", folder, "made.onnx > x.onnx"),
        *(folder, "x.onnx.json.new > x.onnx.json", folder),
    ]


@pytest.mark.parametrize("kind", ["a link that leads nowhere", "a link to a file", "a pipe", "a folder"])
def test_what_is_no_file_where_the_record_waits_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str):
    path = tmp_path / "x.onnx"
    write_record(write_engine(path, OLD, "old"))
    waiting = waiting_record_path(path)
    if kind == "a pipe":
        os.mkfifo(waiting)
    elif kind == "a folder":
        waiting.mkdir()
    else:
        waiting.symlink_to(tmp_path / ("x.onnx.json" if kind == "a link to a file" else "nowhere"))
    before, opened, tries = waiting.lstat(), os.open, iter(range(50))

    def open_a_few_times(*given: Any, **named: Any) -> int:
        assert next(tries, None) is not None, "it never ends"
        return opened(*given, **named)

    monkeypatch.setattr(os, "open", open_a_few_times)
    with pytest.raises(InputError, match=r"x\.onnx\.json\.new is a link, a pipe or a folder, .*; move it away"):
        put_engine(path, NEW, "new")
    assert os.path.samestat(waiting.lstat(), before)
    assert load_engine(path).require_record().target == "old"


def test_a_pipe_at_the_place_of_an_engine_is_not_replaced(tmp_path: Path):
    os.mkfifo(tmp_path / "x.onnx")
    with pytest.raises(UsageError, match="is a device or a pipe"):
        put_engine(tmp_path / "x.onnx", NEW, "new")
    assert names(tmp_path) == ["x.onnx"]


def test_ctrl_c_right_after_the_record_was_made_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "x.onnx"
    made = write_engine(tmp_path / "made.onnx", NEW, "new")
    real = os.open

    def interrupted(name: Any, *more: int) -> int:
        os.close(real(name, *more))
        monkeypatch.setattr(os, "open", real)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "open", interrupted)
    with pytest.raises(KeyboardInterrupt):
        replace_engine(made, path)
    assert names(tmp_path) == ["made.onnx"]


def test_a_build_that_waits_for_another_one_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    path = leave_waiting(tmp_path)
    waiting = waiting_record_path(path)
    monkeypatch.setattr(engine, "_PATIENCE", 0.01)
    with waiting.open("r+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        second = threading.Thread(target=put_engine, args=(path, b"a third", "third"))
        second.start()
        for _ in range(500):
            if caplog.text:
                break
            second.join(0.01)
    second.join()
    assert f"waiting for another build, which replaces the same engine and has locked {waiting}" in caplog.text
    assert load_engine(path).require_record().target == "third"


def refuse_folders(handle: int) -> None:
    """In place of ``os.fsync``."""
    if Path(f"/proc/self/fd/{handle}").is_dir():
        raise OSError(errno.EIO, "Input/output error")


def test_a_record_that_got_its_name_is_found_there_though_the_disk_fails_afterwards(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = leave_waiting(tmp_path)
    monkeypatch.setattr(os, "fsync", refuse_folders)
    found = load_engine(path)
    assert found.json_path == engine_json_path(path) and found.require_record().target == "new"


def test_two_builds_on_nfs_are_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Simulated: it gives an exclusive lock only on a file that is open for writing."""
    path = leave_waiting(tmp_path)
    flock = fcntl.flock

    def flock_on_nfs(handle: int, how: int) -> None:
        if how & fcntl.LOCK_EX and fcntl.fcntl(handle, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            raise OSError(errno.EBADF, "Bad file descriptor")
        flock(handle, how)

    monkeypatch.setattr(fcntl, "flock", flock_on_nfs)
    with waiting_record_path(path).open("r+") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        second = threading.Thread(target=put_engine, args=(path, b"a third", "third"))
        second.start()
        second.join(0.1)
        assert second.is_alive() and path.read_bytes() == NEW
    second.join()
    assert load_engine(path).require_record().target == "third"
    # And a reader gives a name to what a kill left.
    engine_json_path(path).rename(waiting_record_path(path))
    assert load_engine(path).waiting is None


def test_the_record_of_another_format_is_kept_for_the_version_that_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = leave_waiting(tmp_path)
    waiting, made = waiting_record_path(path), write_engine(tmp_path / "made.onnx", OLD, "newest")
    newer = {**json.loads(waiting.read_text()), "format": 4}
    waiting.write_text(json.dumps(newer))
    replace = os.replace

    def replace_or_fail(old: Path, new: Path) -> None:
        if new == path:
            raise KeyboardInterrupt
        replace(old, new)

    monkeypatch.setattr(os, "replace", replace_or_fail)
    with pytest.raises(KeyboardInterrupt):
        replace_engine(made, path)
    assert path.read_bytes() == NEW and json.loads(engine_json_path(path).read_text()) == newer
    with pytest.raises(EngineError, match="is of format 4"):
        load_engine(path)


def test_a_record_is_not_removed_where_the_engine_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Nobody can tell then whether it is its own."""
    path = leave_waiting(tmp_path)
    made = write_engine(tmp_path / "made.onnx", OLD, "newest")

    def refuse(_: Path) -> str:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(engine, "file_sha256", refuse)
    with pytest.raises(InputError, match=r"Writing .*x\.onnx failed: Input/output error"):
        replace_engine(made, path)
    monkeypatch.undo()
    assert load_engine(path).require_record().target == "new"


def test_a_record_that_gets_its_name_while_it_is_looked_for_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = leave_waiting(tmp_path)
    engine_json_path(path).unlink()
    is_file = Path.is_file

    def is_file_and_then_renamed(looked_for: Path) -> bool:
        found = is_file(looked_for)
        if is_file(waiting_record_path(path)):
            waiting_record_path(path).rename(engine_json_path(path))
        return found

    monkeypatch.setattr(Path, "is_file", is_file_and_then_renamed)
    assert engine._read_engine(path).require_record().target == "new"


def test_an_engine_that_is_replaced_while_it_is_read_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "x.onnx"
    write_record(write_engine(path, OLD, "old"))
    real = engine.file_sha256

    def hash_and_replace(looked_at: Path) -> str:
        monkeypatch.setattr(engine, "file_sha256", real)
        digest = real(looked_at)
        put_engine(path, NEW, "new")
        return digest

    monkeypatch.setattr(engine, "file_sha256", hash_and_replace)
    assert load_engine(path).require_record().target == "new"


def test_engines_are_put_there_and_read_at_the_same_time(tmp_path: Path):
    path = tmp_path / "x.onnx"
    put_engine(path, OLD, OLD.decode())
    problems: list[BaseException] = []
    at_work = threading.Semaphore(3)

    def build(content: bytes) -> None:
        try:
            with at_work:
                for _ in range(10):
                    put_engine(path, content, content.decode())
        except BaseException as error:
            problems.append(error)

    builders = [threading.Thread(target=build, args=(content,)) for content in (OLD, NEW, b"a third")]
    for each in builders:
        each.start()
    reads = 0
    while any(each.is_alive() for each in builders):
        found: Engine | None = None
        # With builds within milliseconds of each other a reader may meet two of them.
        for _ in range(5):
            try:
                found = load_engine(path)
                break
            except EngineError:
                continue
        assert found is not None and len(found.require_record().target) in map(len, (OLD, NEW, b"a third"))
        reads += 1
    assert not problems and reads > 3
    assert load_engine(path).require_record().target == path.read_bytes().decode()
    assert names(tmp_path) == ["x.onnx", "x.onnx.json"]
