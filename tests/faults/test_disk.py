"""A disk that is full or read-only: one sentence, nothing half made stays, and what ran goes on running."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edge_effdet.device import inspect, steps
from edge_effdet.device.install import install
from edge_effdet.device.integrity import verify_installed
from edge_effdet.device.options import InstallOptions, RollbackOptions
from edge_effdet.device.rollback import rollback
from edge_effdet.device.store import Store
from edge_effdet.errors import BundleError, InputError
from tests.bundles import all_files, write_bundle

MIB = 1 << 20


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 80 MiB in memory."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={80 * MIB}", "tmpfs", place], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here ({done.stderr.strip()})")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


@pytest.fixture
def bundles(template, tmp_path):
    for release in ("1.0", "2.0"):
        write_bundle(template, tmp_path / release, release=release)
    return tmp_path


def put(source: Path, root: Path, **options: object) -> None:
    install(source, InstallOptions(root=root, service="none", **options))  # type: ignore[arg-type]


def release(root: Path) -> str:
    return verify_installed(Store.at(root, "cells")).version.require_record().release


def fill(place: Path, left: int) -> Path:
    """Fill a file system but for some bytes."""
    path = place / "filling"
    with path.open("wb") as stream:
        os.posix_fallocate(stream.fileno(), 0, shutil.disk_usage(place).free - left)
    return path


def test_a_disk_that_is_too_small_is_told_before_anything_is_made(bundles, disk):
    with pytest.raises(BundleError, match="free; remove what is not needed, or install to another disk with `root`"):
        put(bundles / "1.0", disk / "root")
    assert list(disk.iterdir()) == []


@pytest.mark.parametrize(
    ("step", "left"),
    [
        ("environment", 0),
        ("engine", 0),
        ("switch", 0),
        *(
            pytest.param(*each, marks=pytest.mark.slow)
            for each in (("copy", 0), ("environment", 2 * MIB), ("complete", 0))
        ),
    ],
)
def test_a_disk_that_runs_full_at_a_step(bundles, disk, monkeypatch, step, left):
    monkeypatch.setitem(inspect.DISK_MIB, "onnxruntime", 1)
    root = disk / "root"
    put(bundles / "1.0", root)
    run_step: Callable[[steps.Step], None] = steps.run_step
    filling: list[Path] = []

    def run(each: steps.Step) -> None:
        if each.name == step:
            filling.append(fill(disk, left))
        run_step(each)

    monkeypatch.setattr(steps, "run_step", run)
    with pytest.raises(InputError) as caught:
        put(bundles / "2.0", root)
    told = str(caught.value)
    assert "the disk is full; make room and run this again" in told and "\n" not in told
    assert release(root) == "1.0"
    versions = [each.id.partition("-")[0] for each in Store.at(root, "cells").versions()]
    # What was made to the end stays; what was not gives its room back.
    assert versions == (["1.0", "2.0"] if step == "switch" else ["1.0"]) or sorted(versions) == ["1.0", "2.0"]
    monkeypatch.setattr(steps, "run_step", run_step)
    filling[0].unlink()
    put(bundles / "2.0", root)
    assert release(root) == "2.0"


def test_a_rollback_on_a_full_disk_is_told_or_done(bundles, disk, monkeypatch):
    monkeypatch.setitem(inspect.DISK_MIB, "onnxruntime", 1)
    root = disk / "root"
    for each in ("1.0", "2.0"):
        put(bundles / each, root)
    filling = fill(disk, 0)
    with pytest.raises(InputError, match="the disk is full"):
        rollback(None, RollbackOptions(root=root))
    assert release(root) == "2.0"
    filling.unlink()
    rollback(None, RollbackOptions(root=root))
    assert release(root) == "1.0"


def test_a_read_only_file_system_is_told_and_what_runs_goes_on(bundles, disk, monkeypatch):
    monkeypatch.setitem(inspect.DISK_MIB, "onnxruntime", 1)
    root = disk / "root"
    put(bundles / "1.0", root)
    before = all_files(root)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    try:
        for operation in (lambda: put(bundles / "2.0", root), lambda: rollback(None, RollbackOptions(root=root))):
            with pytest.raises(InputError, match="the file system is read-only; mount it for writing") as caught:
                operation()
            assert "\n" not in str(caught.value)
        assert release(root) == "1.0"
        put(bundles / "2.0", root, dry_run=True)
    finally:
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
    assert all_files(root) == before


def test_a_read_only_place_for_a_first_installation_is_told(bundles, disk, monkeypatch):
    monkeypatch.setitem(inspect.DISK_MIB, "onnxruntime", 1)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    with pytest.raises(InputError, match="read-only"):
        put(bundles / "1.0", disk / "root")
