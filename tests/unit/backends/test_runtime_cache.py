"""What a runtime compiled is kept where only this user can write, and is believed only there."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import openvino as ov
import pytest

from edge_effdet.artifacts import Engine, ModelSpec, file_sha256
from edge_effdet.backends import openvino, openvino_cache
from edge_effdet.backends.base import LoadOptions
from edge_effdet.backends.runtime_cache import (
    SUFFIX,
    is_private,
    read_private,
    runtime_cache_path,
    write_private,
)
from tests.hostile import make_model

SPEC = ModelSpec("tf_efficientdet_lite0", (64, 64), tuple("abcdef"), tuple(range(1, 7)))
IMAGES = np.zeros((1, 3, 64, 64), np.uint8)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "edge_effdet" / "compiled"


@pytest.fixture
def engine(tmp_path: Path) -> Engine:
    folder = tmp_path / "engines"
    folder.mkdir()
    path = folder / "a.onnx"
    path.write_bytes(make_model().SerializeToString())
    return engine_at(path)


def engine_at(path: Path) -> Engine:
    return Engine(path, SPEC, "openvino", "fp32", file_sha256(path))


def score(engine: Engine) -> tuple[float, bool]:
    """The best score that an engine gives, and whether an earlier start had compiled it."""
    with openvino.load(engine, LoadOptions(threads=1)) as runner:
        return float(runner.run({"images": IMAGES})["scores"].max()), runner.was_compiled


def test_it_is_kept_beside_the_engine_for_this_user_alone(engine: Engine):
    assert score(engine)[1] is False
    cache = engine.path.with_name("a.onnx" + SUFFIX)
    assert cache.stat().st_mode & 0o777 == 0o600
    assert score(engine)[1] is True


@pytest.mark.parametrize("mode", [0o1777, 0o777, 0o775, 0o757])
def test_beside_an_engine_in_a_folder_of_others_nothing_is_read_or_written(engine: Engine, home: Path, mode: int):
    """Also with the sticky bit: another user may have put the file there first."""
    score(engine)
    engine.path.parent.chmod(mode)
    assert score(engine)[1] is False, "the cache in a folder of others was believed"
    assert runtime_cache_path(engine) == home / f"{engine.sha256[:16]}-a.onnx{SUFFIX}"
    assert [each.stat().st_mode & 0o777 for each in (home, *home.iterdir())] == [0o700, 0o600]
    assert score(engine)[1] is True


def test_in_a_folder_of_another_owner_the_users_own_is_taken(
    engine: Engine, home: Path, monkeypatch: pytest.MonkeyPatch
):
    user = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: user + 1)
    path = runtime_cache_path(engine)
    assert path is not None and path.parent == home


def forged(engine: Engine, tmp_path: Path) -> bytes:
    """The cache of another engine, written so that it seems to be this one's: all that it takes is known to everybody."""
    other = tmp_path / "other.onnx"
    other.write_bytes(make_model(scores=np.array([[0.125, 0.0625]], np.float32)).SerializeToString())
    cache = tmp_path / "other.cache"
    core = ov.Core()
    belongs_to = openvino_cache.identity(core, "CPU", engine.sha256)
    openvino_cache.save_compiled(core.compile_model(str(other), "CPU"), "f32", cache, belongs_to)
    return cache.read_bytes()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
def test_a_cache_that_another_user_wrote_is_not_run(engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    content = forged(engine, tmp_path)
    cache = engine.path.with_name("a.onnx" + SUFFIX)
    cache.write_bytes(content)
    os.chown(cache, 65534, 65534)
    assert score(engine) == (pytest.approx(0.9), False)
    assert "another user may have written it" in caplog.text
    # Of its own accord the runtime would have run it.
    cache.write_bytes(content)
    os.chown(cache, 0, 0)
    cache.chmod(0o600)
    assert score(engine) == (pytest.approx(0.125), True)


@pytest.mark.parametrize("mode", [0o666, 0o660, 0o602])
def test_a_file_that_others_can_write_is_not_read(tmp_path: Path, mode: int, caplog: pytest.LogCaptureFixture):
    path = tmp_path / "folder" / "cache"
    write_private(path, b"kernels")
    assert (read_private(path), caplog.text) == (b"kernels", "")
    path.chmod(mode)
    assert read_private(path) is None
    assert "is not used" in caplog.text


def test_neither_a_link_nor_what_lies_in_a_folder_of_others_is_read(tmp_path: Path):
    path = tmp_path / "folder" / "cache"
    write_private(path, b"kernels")
    link = tmp_path / "folder" / "link"
    link.symlink_to(path)
    assert read_private(link) is None and not is_private(link)
    path.parent.chmod(0o1777)
    assert read_private(path) is None
    with pytest.raises(OSError, match="others can write into"):
        write_private(path, b"more")
    assert path.read_bytes() == b"kernels"
    assert read_private(tmp_path / "folder" / "absent") is None


def test_a_folder_that_is_reached_through_a_link_is_judged_itself(tmp_path: Path):
    write_private(tmp_path / "real" / "cache", b"kernels")
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    assert read_private(tmp_path / "linked" / "cache") == b"kernels"
    (tmp_path / "real").chmod(0o777)
    assert read_private(tmp_path / "linked" / "cache") is None


def test_two_who_write_at_once_leave_one_whole_file(tmp_path: Path):
    path = tmp_path / "folder" / "cache"
    contents = [bytes([number]) * 300_000 for number in range(4)]
    seen: set[bytes] = set()
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            content = read_private(path)
            if content is not None:
                seen.add(content)

    def write(content: bytes) -> None:
        for _ in range(20):
            write_private(path, content)

    reader = threading.Thread(target=look)
    writers = [threading.Thread(target=write, args=(content,)) for content in contents]
    reader.start()
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    over.set()
    reader.join()
    assert seen <= set(contents) and path.read_bytes() in contents
    assert [each.name for each in path.parent.iterdir()] == ["cache"]


LOADS = """
import sys
from pathlib import Path
from tests.unit.backends.test_runtime_cache import engine_at, score
print("ready", flush=True)
sys.stdin.readline()
print(*score(engine_at(Path(sys.argv[1]))))
"""


def test_two_first_loads_at_once_share_one_cache(engine: Engine):
    """Two processes that wait for each other, compile the same engine and write the same file."""
    command = [sys.executable, "-c", LOADS, str(engine.path)]
    root = Path(__file__).parents[3]
    both = [
        subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    for each in both:
        assert each.stdout is not None and each.stdout.readline() == "ready\n"
    said = []
    for each in both:
        assert each.stdin is not None
        each.stdin.write("\n")
        each.stdin.flush()
    for each in both:
        said.append(each.communicate(timeout=120)[0].split()[0])
        assert each.returncode == 0
    assert [round(float(each), 3) for each in said] == [0.9, 0.9]
    assert score(engine) == (pytest.approx(0.9), True)
    assert sorted(each.name for each in engine.path.parent.iterdir()) == ["a.onnx", "a.onnx" + SUFFIX]


def test_a_cache_is_of_one_engine_and_one_processor(engine: Engine):
    core = ov.Core()
    assert openvino_cache.identity(core, "CPU", engine.sha256) != openvino_cache.identity(core, "CPU", "cd" * 32)
