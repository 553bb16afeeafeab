"""An engine and its record are replaced as one: whatever is killed, an engine can be used."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from edge_effdet.artifacts import (
    Engine,
    engine,
    engine_json_path,
    load_engine,
    replace_engine,
    waiting_record_path,
    write_record,
)
from edge_effdet.errors import EngineError, InputError
from tests.kills import put_engine, write_engine

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
    json = engine_json_path(path)
    old = json.read_bytes()
    put_engine(path, NEW, "new")
    json.rename(waiting_record_path(path))
    json.write_bytes(old)
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
