"""The entry of a bundle: one file that any Python starts, and that runs nothing but the wheel whose hash is known."""

from __future__ import annotations

import ast
import json
import os
import shutil
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import edge_effdet.deploying
from edge_effdet.artifacts import file_sha256
from edge_effdet.deploying.wheel import write_device_wheel
from tests.deploying import find_python

ENTRY = Path(edge_effdet.deploying.__file__).parent / "files" / "edge-effdet"
WHEEL = "wheels/edge_effdet-0.1.0-py3-none-any.whl"
MAIN = "import json, sys\ndef main(argv):\n    print(json.dumps([__file__, argv, sys.path]))\n    return 7\n"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle whose wheel tells how it was called."""
    folder = tmp_path / "Bündel 1" / "cells-1.2-x86-cpu"
    (folder / "wheels").mkdir(parents=True)
    shutil.copy(ENTRY, folder / "edge-effdet")
    with zipfile.ZipFile(folder / WHEEL, "w") as archive:
        for name, text in (("__init__.py", ""), ("device/__init__.py", ""), ("device/__main__.py", MAIN)):
            archive.writestr(f"edge_effdet/{name}", text)
    seal(folder)
    return folder


def seal(folder: Path) -> None:
    names = [
        path.relative_to(folder).as_posix()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "SHA256SUMS"
    ]
    (folder / "SHA256SUMS").write_text("".join(f"{file_sha256(folder / name)}  {name}\n" for name in names))


def start(bundle: Path, *arguments: str, python: Path | None = None, **options) -> subprocess.CompletedProcess[str]:
    command = [str(python)] if python else []
    return subprocess.run(
        [*command, str(bundle / "edge-effdet"), *arguments], capture_output=True, text=True, **options
    )


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def refused(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    return done.stderr


def test_it_is_a_program(bundle: Path):
    assert stat.S_IMODE(ENTRY.stat().st_mode) & 0o111 == 0o111
    assert ENTRY.read_text(encoding="ascii").startswith("#!/usr/bin/env -S python3 -I\n")


@pytest.mark.parametrize("version", ["this", "3.10", "3.11", "3.12", "3.13"])
def test_it_starts_the_code_in_the_wheel(bundle: Path, version: str):
    python = Path(sys.executable) if version == "this" else find_python(version)
    if python is None:
        pytest.skip(f"no Python {version} here")
    before = files(bundle)
    done = start(bundle, "install", "--name", "ä b", python=python)
    assert done.returncode == 7, done.stderr
    place, argv, path = json.loads(done.stdout)
    assert place == str(bundle / WHEEL / "edge_effdet" / "device" / "__main__.py")
    assert argv == ["--bundle", str(bundle), "install", "--name", "ä b"]
    assert path[0] == str(bundle / WHEEL) and str(bundle) not in path
    assert files(bundle) == before, "Python left files in the bundle"


def test_where_it_is_called_from_does_not_matter(bundle: Path, tmp_path: Path):
    link = tmp_path / "link"
    link.symlink_to(bundle / "edge-effdet")
    calls = [
        ([str(bundle / "edge-effdet")], tmp_path),
        (["./edge-effdet"], bundle),
        ([sys.executable, "edge-effdet"], bundle),
        ([str(link)], "/"),
        (["../edge-effdet"], bundle / "wheels"),
    ]
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "LC_ALL": "C"}
    for command, place in calls:
        done = subprocess.run(command, cwd=place, capture_output=True, env=environment)
        assert done.returncode == 7, done.stderr
        assert json.loads(done.stdout)[0].startswith(str(bundle / WHEEL))


@pytest.mark.parametrize("version", ["2.7", "3.6", "3.7", "3.8", "3.9"])
def test_an_older_python_is_told_so(bundle: Path, version: str):
    python = find_python(version)
    if python is None:
        pytest.skip(f"no Python {version} here")
    assert f"Python 3.10 or newer is needed, and this is {version};" in refused(start(bundle, "install", python=python))
    assert not [name for name in files(bundle) if name.endswith(".pyc")]


def test_older_pythons_can_parse_it():
    tree = ast.parse(ENTRY.read_text(encoding="ascii"), feature_version=(3, 4))
    kinds = {type(node) for node in ast.walk(tree)}
    # What Python 2.7 lacks.
    assert not kinds & {ast.JoinedStr, ast.NamedExpr, ast.AnnAssign, ast.AsyncFunctionDef, ast.Nonlocal}


def damage_wheel(folder: Path) -> None:
    content = bytearray((folder / WHEEL).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / WHEEL).write_bytes(content)


def exchange_wheel(folder: Path) -> None:
    with zipfile.ZipFile(folder / WHEEL, "w") as archive:
        archive.writestr("edge_effdet/__init__.py", "raise SystemExit('the wheel was run')")


def rewrite(folder: Path, old: str, new: str) -> None:
    text = (folder / "SHA256SUMS").read_text()
    assert old in text
    (folder / "SHA256SUMS").write_text(text.replace(old, new))


DAMAGES = {
    "a flipped bit": (damage_wheel, "is not what it was when the bundle was made"),
    "another wheel": (exchange_wheel, "is not what it was when the bundle was made"),
    "no wheel": (lambda folder: (folder / WHEEL).unlink(), "cannot be read"),
    "no sums": (lambda folder: (folder / "SHA256SUMS").unlink(), "SHA256SUMS beside this file cannot be read"),
    "empty sums": (lambda folder: (folder / "SHA256SUMS").write_text(""), "does not name one wheel"),
    "sums that are no text": (lambda folder: (folder / "SHA256SUMS").write_bytes(b"\xff\xfe"), "cannot be read"),
    "a wheel elsewhere": (lambda folder: rewrite(folder, "wheels/", "wheels/edge_effdet-/../"), "does not name one wheel"),
    "a folder for a wheel": (lambda folder: ((folder / WHEEL).unlink(), (folder / WHEEL).mkdir()), "cannot be read"),
    "two wheels": (
        lambda folder: (shutil.copy(folder / WHEEL, folder / "wheels/edge_effdet-9-py3-none-any.whl"), seal(folder)), "does not name one wheel"
    ),
    "an upper-case hash": (
        lambda folder: rewrite(folder, file_sha256(folder / WHEEL), file_sha256(folder / WHEEL).upper()), "is not what it was"
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGES)
def test_a_bundle_that_is_damaged(bundle: Path, what: str):
    damage, sentence = DAMAGES[what]
    damage(bundle)
    said = refused(start(bundle, "install"))
    assert sentence in said and "copy the bundle again" in said


def test_stray_files_are_not_run(bundle: Path):
    """Python looks for modules beside a script first, and where ``PYTHONPATH`` says so, in the working folder."""
    for name in ("hashlib", "io", "os", "json", "zipimport", "edge_effdet", "site", "sitecustomize"):
        (bundle / f"{name}.py").write_text("raise SystemExit('a stray file was run')\n")
    for environment in ({}, {"PYTHONPATH": "."}, {"PYTHONPATH": str(bundle)}):
        if environment:
            (bundle / "sitecustomize.py").unlink(missing_ok=True)
            (bundle / "site.py").unlink(missing_ok=True)
            # Python's own start comes before any line of the entry.
            for name in ("os", "io", "zipimport"):
                (bundle / f"{name}.py").unlink(missing_ok=True)
        done = start(bundle, "install", python=Path(sys.executable), cwd=bundle, env={**os.environ, **environment})
        assert done.returncode == 7, done.stderr + done.stdout


STRAY = "import os\nopen(os.environ['WITNESS'], 'a').write(__name__ + '\\n')\n"


@pytest.fixture
def surroundings(tmp_path: Path) -> dict[str, str]:
    """An environment in which each way that leads a Python to other modules leads to modules that leave a witness."""
    base = tmp_path / "user"
    site = base / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    path = tmp_path / "path"
    for folder, names in (
        (site, ("usercustomize", "edge_effdet")),
        (path, ("sitecustomize", "hashlib", "edge_effdet", "zipimport")),
    ):
        folder.mkdir(parents=True)
        for name in names:
            (folder / f"{name}.py").write_text(STRAY)
    programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {
        "PATH": programs, "HOME": str(base), "PYTHONUSERBASE": str(base), "PYTHONPATH": str(path), "WITNESS": str(tmp_path / "witness"),
    }  # fmt: skip


def test_nothing_of_the_callers_python_runs(bundle: Path, tmp_path: Path, surroundings: dict[str, str]):
    """Before the wheel's hash was looked at, nor after."""
    done = start(bundle, "install", env={**surroundings, "PYTHONHOME": "/nowhere"})
    assert done.returncode == 7, done.stderr
    path = json.loads(done.stdout)[2]
    assert not [each for each in path if str(tmp_path) in each and not each.startswith(str(bundle))]
    assert not (tmp_path / "witness").exists()


def test_started_by_a_python_it_is_started_again_without_the_callers_modules(
    bundle: Path, tmp_path: Path, surroundings: dict[str, str]
):
    done = start(bundle, "install", "--name", "ä b", python=Path(sys.executable), env=surroundings, cwd=bundle)
    assert done.returncode == 7, done.stderr
    _, argv, path = json.loads(done.stdout)
    assert argv == ["--bundle", str(bundle), "install", "--name", "ä b"]
    assert not [each for each in path if str(tmp_path) in each and not each.startswith(str(bundle))]
    # What Python imports by itself came before the first line of the entry, which no file can mend.
    witness = tmp_path / "witness"
    assert set(witness.read_text().split() if witness.exists() else ()) <= {
        "sitecustomize",
        "usercustomize",
        "zipimport",
    }


def test_the_real_wheel_runs_out_of_the_bundle(bundle: Path):
    (bundle / WHEEL).unlink()
    write_device_wheel(bundle / "wheels")
    seal(bundle)
    before = files(bundle)
    done = start(bundle, "--help", python=Path(sys.executable), env={"PATH": os.environ["PATH"]})
    assert done.returncode == 0, done.stderr
    for verb in ("install", "verify", "run", "rollback", "status", "uninstall"):
        assert verb in done.stdout
    assert files(bundle) == before
