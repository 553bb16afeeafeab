"""Wheels are taken apart and put together again, and what is damaged or missing is named."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from benchmarks import gpu_check
from benchmarks import gpu_check_wheels as module
from benchmarks.gpu_check_wheels import SUMS, WheelsError, check_file, join_files, read_list, split_files
from tests.deploying import find_python

ROOT = Path(__file__).resolve().parents[3]
LISTED = json.loads(module.LIST.read_text())
PIECE = 1000


@pytest.fixture
def files(tmp_path):
    """Three files: one of two and a half pieces, two small ones, the last of which is no wheel."""
    random = np.random.default_rng(0)
    folder = tmp_path / "whole"
    folder.mkdir()
    found = []
    for name, size in (("small-1-py3-none-any.whl", 300), ("large-2-cp312.whl", 2500), ("other[1].onnx", 450)):
        (folder / name).write_bytes(random.integers(0, 256, size, np.uint8).tobytes())
        found.append((module.WHEELS if name.endswith(".whl") else module.WORK, folder / name))
    return found


def whole_files(folder: Path) -> dict[str, bytes]:
    """What was put together, by its place."""
    found = [path for each in (module.WHEELS, module.WORK) for path in (folder / each).iterdir()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


def given_files(files) -> dict[str, bytes]:
    return {f"{kind}/{path.name}": path.read_bytes() for kind, path in files}


def test_parts_are_no_larger_than_asked_and_make_the_files_again(files, tmp_path):
    parts = split_files(files, tmp_path / "parts", PIECE)
    sizes = [sum(path.stat().st_size for path in part.iterdir() if path.name != SUMS) for part in parts]
    assert [part.name for part in parts] == [f"part-{number:02d}" for number in range(1, len(parts) + 1)]
    assert max(sizes) <= PIECE and sum(sizes) == 3250 and len(parts) == 4
    assert join_files(tmp_path / "parts") == []
    assert whole_files(tmp_path / "parts") == given_files(files)


def test_parts_may_arrive_one_after_the_other(files, tmp_path):
    parts = split_files(files, tmp_path / "parts", PIECE)
    late = parts[-2].rename(tmp_path / "late")
    missing = join_files(tmp_path / "parts")
    assert missing and all(name.startswith("large-2-cp312.whl.") for name in missing)
    assert set(whole_files(tmp_path / "parts")) == {"wheels/small-1-py3-none-any.whl", "work/other[1].onnx"}
    late.rename(parts[-2])
    assert join_files(tmp_path / "parts") == []
    assert whole_files(tmp_path / "parts") == given_files(files)


def test_the_first_part_has_to_be_there(files, tmp_path):
    parts = split_files(files, tmp_path / "parts", PIECE)
    (parts[0] / SUMS).unlink()
    with pytest.raises(WheelsError, match="bring part-01 first"):
        join_files(tmp_path / "parts")


def test_a_damaged_piece_makes_no_file(files, tmp_path):
    parts = split_files(files, tmp_path / "parts", PIECE)
    (piece,) = parts[1].iterdir()
    content = bytearray(piece.read_bytes())
    content[7] ^= 1
    piece.write_bytes(content)
    with pytest.raises(WheelsError, match="are expected; bring it again"):
        join_files(tmp_path / "parts")
    assert set(whole_files(tmp_path / "parts")) == {"wheels/small-1-py3-none-any.whl"}


def test_parts_of_an_earlier_time_are_removed(files, tmp_path):
    split_files(files, tmp_path / "parts", PIECE)
    (part,) = split_files(files[:1], tmp_path / "parts", PIECE)
    assert list((tmp_path / "parts").iterdir()) == [part]


def test_a_file_is_held_against_the_list(files):
    _, path = files[0]
    row = {"bytes": 300, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    check_file(path, row)
    with pytest.raises(WheelsError, match="300 bytes"):
        check_file(path, row | {"sha256": "0" * 64})
    with pytest.raises(WheelsError, match="301"):
        check_file(path, row | {"bytes": 301})


@pytest.mark.parametrize("python", LISTED["machine"]["python"])
def test_the_list_has_each_package_once_for_each_python(python):
    rows = read_list(python)
    assert {row["name"] for row in rows} == {row["name"] for group in LISTED["groups"] for row in group["packages"]}
    assert len({row["name"] for row in rows}) == len(rows)
    tag = "cp" + python.replace(".", "")
    for row in rows:
        assert set(row) <= {"name", "version", "file", "bytes", "sha256", "python", "build", "group"}
        assert row["version"] in row["file"] and len(row["sha256"]) == 64
        if "python" in row:
            assert f"-{tag}-" in row["file"] or "-abi3-" in row["file"]
        else:
            assert "-py3-none-" in row["file"] or ("build" in row and row["file"].endswith(".tar.gz"))


def test_the_list_names_parts_that_there_are():
    assert {part for group in LISTED["groups"] for part in group["parts"]} | {"tensorrt"} == set(gpu_check.PARTS)
    assert {row["name"] for row in LISTED["not_here"]} == {"tensorrt"}


def test_another_python_and_an_unknown_group_are_refused():
    with pytest.raises(WheelsError, match=r"no wheel of onnxruntime_gpu for Python 3\.9; give 3\.11"):
        read_list("3.9", ["onnxruntime"])
    with pytest.raises(WheelsError, match="no group cuda; it has base, tensorrt-rtx"):
        read_list("3.12", ["cuda"])


def test_the_command_says_what_it_would_bring(capsys):
    assert module.main(["list", "--python", "3.12", "--groups", "tensorrt-rtx"]) == 0
    said = capsys.readouterr().out
    assert "tensorrt_rtx_cu13_libs-1.7.1.116-py3-none-manylinux_2_28_x86_64.whl" in said
    assert "parts of 24 MiB" in said
    assert module.main(["list", "--python", "3.9"]) == 2


def make_wheel(folder: Path) -> Path:
    """A wheel of one module that says where the network comes from."""
    path = folder / "carried_here-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("carried_here.py", "WORD = 'carried'\n")
        archive.writestr(
            "carried_here-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: carried-here\nVersion: 1.0\n"
        )
        archive.writestr(
            "carried_here-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("carried_here-1.0.dist-info/RECORD", "")
    return path


@pytest.mark.parametrize("version", ["3.10", "3.12", "3.13"])
def test_joining_needs_the_standard_library_alone(files, tmp_path, version):
    python = find_python(version)
    if python is None:
        pytest.skip(f"no Python {version} here")
    split_files(files, tmp_path / "parts", PIECE)
    words = [str(python), "-I", str(ROOT / "benchmarks" / "gpu_check_wheels.py"), "join", str(tmp_path / "parts")]
    subprocess.run(words, check=True, env={})
    assert whole_files(tmp_path / "parts") == given_files(files)


def test_the_wrapper_joins_installs_and_starts_the_check(tmp_path):
    split_files([(module.WHEELS, make_wheel(tmp_path))], tmp_path / "parts", 200)
    words = [
        "sh",
        str(ROOT / "benchmarks" / "gpu_check.sh"),
        "--wheels",
        str(tmp_path / "parts"),
        "--plan",
        "--parts",
        "cuda",
    ]
    for _ in range(2):
        done = subprocess.run(
            words, env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert "tests/gpu" in done.stdout
    code = "import carried_here; print(carried_here.WORD)"
    seen = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(tmp_path / "parts" / "site")},
        capture_output=True,
        text=True,
    )
    assert seen.stdout == "carried\n", seen.stderr
