"""What killed processes left is removed, and what living ones work with stays."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from edge_effdet.artifacts import atomic_output, require_writable, temporary, temporary_folder, write_text
from edge_effdet.artifacts.temporary import is_temporary, remove_leftovers, temporary_file
from tests.unit.artifacts.test_engine import names, run_kills

HERE = Path(__file__).parents[3]
WORKER = """
import os, sys
from pathlib import Path
from edge_effdet.artifacts import atomic_output, temporary_folder
output, end = Path(sys.argv[1]), sys.argv[2]
with temporary_folder() as scratch, temporary_folder(output) as aside, atomic_output(output / "file.txt") as temporary:
    for each in (scratch, aside):
        (each / "inside").mkdir()
        (each / "inside" / "part").write_text("half")
    temporary.write_text("whole")
    print("ready", flush=True)
    if end == "killed":
        os.kill(os.getpid(), 9)
    sys.stdin.read()
"""


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """The folder of the outputs, and the system's folder for temporary files."""
    output, scratch = tmp_path / "output", tmp_path / "scratch"
    output.mkdir()
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setenv("TMPDIR", str(scratch))
    return output, scratch


def start(output: Path, end: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", WORKER, output, end], cwd=HERE, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def run_in(output: Path) -> None:
    """What a later run does first."""
    require_writable(output)
    with temporary_folder():
        pass


def test_the_next_run_removes_what_a_killed_one_left_and_nothing_of_one_that_is_at_work(places: tuple[Path, Path]):
    output, scratch = places
    with start(output, "killed") as process:
        process.communicate()
    assert process.returncode == -9
    assert [len(names(each)) for each in places] == [2, 1]
    with start(output, "waits") as process:
        # It removed what the killed one had left, and made its own.
        own = [names(each) for each in places]
        assert [len(each) for each in own] == [2, 1]
        run_in(output)
        assert [names(each) for each in places] == own
        process.communicate("")
    assert process.returncode == 0
    assert (output / "file.txt").read_text() == "whole"
    assert (names(output), names(scratch)) == (["file.txt"], [])


def test_a_kill_before_any_change_leaves_nothing_for_long(places: tuple[Path, Path]):
    output, scratch = places
    for root in run_kills("write_outputs", output):
        assert (root / "file.txt").read_text() in ("old", "new")
        assert not (root / "made").exists() or names(root / "made") == ["part"]
        run_in(root)
        left = names(root)
        assert left in (["file.txt"], ["file.txt", "made"])
    assert left == ["file.txt", "made"]
    assert names(scratch) == []


def test_ctrl_c_while_it_is_removed_leaves_nothing(places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch):
    output, _ = places
    remove = shutil.rmtree

    def interrupted(path: Path, **settings: bool) -> None:
        monkeypatch.setattr(shutil, "rmtree", remove)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), temporary_folder(output) as folder:
        (folder / "part").write_text("half")
        monkeypatch.setattr(shutil, "rmtree", interrupted)
    assert names(output) == []


def test_what_a_thread_works_with_goes_when_the_process_ends(places: tuple[Path, Path]):
    output, _ = places
    code = (
        "import sys, threading\nfrom pathlib import Path\nfrom edge_effdet.artifacts import temporary_folder\n"
        "ready = threading.Event()\n"
        "def work():\n    with temporary_folder(Path(sys.argv[1])) as folder:\n        (folder / 'part').touch()\n        ready.set()\n"
        "        threading.Event().wait()\n"
        "threading.Thread(target=work, daemon=True).start()\nready.wait()\nprint(len(list(Path(sys.argv[1]).iterdir())))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, output], cwd=HERE, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr, names(output)) == ("1\n", "", [])


def test_a_forked_process_that_ends_leaves_what_its_parent_works_with(places: tuple[Path, Path]):
    output, _ = places
    with temporary_folder(output) as folder:
        child = os.fork()
        if child == 0:
            temporary._discard_all()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert folder.is_dir()


def test_a_process_at_its_limit_of_open_files_removes_its_folder(places: tuple[Path, Path]):
    output, _ = places
    before, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with temporary_folder(output) as folder:
        (folder / "a" / "b" / "c" / "d").mkdir(parents=True)
        (folder / "a" / "b" / "part").touch()
        (folder / "a" / "link").symlink_to(output)
        free = os.open(output, os.O_RDONLY)
        os.close(free)
        resource.setrlimit(resource.RLIMIT_NOFILE, (free + 2, most))
    resource.setrlimit(resource.RLIMIT_NOFILE, (before, most))
    assert names(output) == []


def leave(folder: Path, name: str = "", is_folder: bool = True) -> Path:
    """What a killed process of this machine leaves in a folder."""
    path = folder / (name or f".edge-effdet-temporary-{temporary._machine_start()}-00000001")
    assert is_temporary(path.name) or name
    if is_folder:
        (path / "inside").mkdir(parents=True)
        (path / "inside" / "part").write_text("half")
    else:
        path.write_text("half")
    return path


@pytest.mark.parametrize(
    "name",
    [
        # The project, a date and a commit.
        *("edge-effdet-20261129-afd0115a", ".edge-effdet-20261129-afd0115a"),
        *(".edge-effdet-temporary-x1y2z3w4-00000001", ".edge-effdet-temporary-00000000-00000001.onnx", "edge-effdet"),
        *("edge-effdet-temporary-00000000-00000001", ".edge-effdet-temporary", ".x.onnx.0a1b2c3d", ".writable"),
    ],
)
@pytest.mark.parametrize("is_folder", [True, False])
def test_what_has_another_name_is_somebody_elses(tmp_path: Path, name: str, is_folder: bool):
    leave(tmp_path, name, is_folder)
    run_in(tmp_path)
    assert names(tmp_path) == [name]


def test_what_belongs_to_another_user_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    left = leave(tmp_path)
    monkeypatch.setattr(temporary.os, "geteuid", lambda: left.stat().st_uid + 1)
    require_writable(tmp_path)
    assert left.exists()


def test_a_link_of_such_a_name_is_not_followed(tmp_path: Path):
    mine = leave(tmp_path, "mine")
    link = tmp_path / f".edge-effdet-temporary-{temporary._machine_start()}-00000002"
    link.symlink_to(mine)
    require_writable(tmp_path)
    assert link.is_symlink() and (mine / "inside" / "part").exists()


@pytest.mark.parametrize(("driver", "stays"), [(0, True), (254, False)])
def test_what_another_start_made_goes_from_a_disk_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, driver: int, stays: bool
):
    """On a file system of the network it may be of another machine, which still works with it."""
    left = leave(tmp_path, ".edge-effdet-temporary-0badcafe-00000001")
    monkeypatch.setattr(temporary.os, "major", lambda _: driver)
    require_writable(tmp_path)
    assert left.exists() == stays


def test_without_locks_nothing_is_removed_and_all_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    left = leave(tmp_path)

    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    write_text(tmp_path / "file.txt", "text")
    with temporary_folder(tmp_path) as folder:
        (folder / "part").write_text("x")
    assert names(tmp_path) == [left.name, "file.txt"]


def test_what_is_removed_before_it_is_locked_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """By another process, which takes it for a leftover in the moment before."""
    taken: list[str] = []
    flock = fcntl.flock

    def flock_late(handle: int, how: int) -> None:
        found = Path(f"/proc/self/fd/{handle}").readlink()
        if len(taken) < 2:
            taken.append(found.name)
            temporary.shutil.rmtree(found) if found.is_dir() else found.unlink()
        flock(handle, how)

    for make in (lambda: temporary_folder(tmp_path), lambda: temporary_file(tmp_path)):
        taken.clear()
        monkeypatch.setattr(fcntl, "flock", flock_late)
        with make() as path:
            assert path.exists() and len(taken) == 2 and path.name not in taken
        monkeypatch.undo()
    assert names(tmp_path) == []


def test_what_this_process_itself_works_with_stays(tmp_path: Path):
    with temporary_folder(tmp_path) as folder, temporary_file(tmp_path) as file:
        remove_leftovers(tmp_path)
        assert folder.exists() and file.exists()


def test_a_folder_is_looked_into_once(tmp_path: Path):
    require_writable(tmp_path)
    left = leave(tmp_path)
    write_text(tmp_path / "file.txt", "text")
    assert left.exists()


def test_the_names_are_short_whatever_the_output_is_called(tmp_path: Path):
    path = tmp_path / ("x" * 255)
    with atomic_output(path) as temporary_path:
        assert temporary_path.parent == tmp_path
        temporary_path.write_text("text")
    assert path.read_text() == "text"


def test_a_machine_that_does_not_tell_its_start_has_zeros(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for content in (None, "", "no number"):
        if content is not None:
            (tmp_path / "boot_id").write_text(content)
        monkeypatch.setattr(temporary, "_BOOT_ID", tmp_path / "boot_id")
        assert temporary._machine_start.__wrapped__() == "00000000"
