"""The count of refused changes: what is counted is what was changed, and a bundle that accepts a change is found out."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

import edge_effdet.deploying
from benchmarks import deploy_flips as module
from benchmarks.deploy_flips import flip_bytes
from edge_effdet.deploying.signing import make_keys, sign_file
from edge_effdet.deploying.wheel import write_device_wheel
from edge_effdet.device.manifest import ENTRY, SIGNATURE, SUMS, files_of, write_manifest
from tests.bundles import make_manifest

CONTENTS = {
    "graphs/cells.fp32.onnx": bytes(range(256)) * 8,
    "layers/fp32.json": b"[]\n",
    "records/fp32.json": b"{}\n",
    "requirements.txt": b"",
}


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "bundle"
    for name, content in CONTENTS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    shutil.copy(Path(edge_effdet.deploying.__file__).parent / "files" / ENTRY, folder)
    wheel = write_device_wheel(folder / "wheels")
    manifest = make_manifest(precisions=("fp32",), release="1.2", wheel=wheel.relative_to(folder).as_posix())
    write_manifest(folder, manifest)
    return folder


def test_every_change_is_refused_and_the_bundle_is_as_before(bundle: Path, tmp_path: Path):
    key = make_keys(tmp_path / "keys", None)
    sign_file(bundle / SUMS, key)
    before = {name: (bundle / name).read_bytes() for name in files_of(bundle)}
    assert not module._entry_refuses(bundle, key.public)
    tallies = flip_bytes(bundle, key.public, 88, seed=1)
    assert set(tallies) == set(before)
    # An empty file has no byte to change.
    assert tallies.pop("requirements.txt").flips == 0
    assert {tally.flips for tally in tallies.values()} == {88 // len(tallies)}
    assert all(tally.with_key == tally.flips for tally in tallies.values())
    assert all(tally.by_entry for tally in tallies.values())
    # What only a key can tell is a signature that was changed in its form's bounds.
    assert all(tally.without_key == tally.flips for name, tally in tallies.items() if name != SIGNATURE)
    assert {name: (bundle / name).read_bytes() for name in files_of(bundle)} == before


def test_a_change_that_is_accepted_is_counted_as_such(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    key = make_keys(tmp_path / "keys", None)
    sign_file(bundle / SUMS, key)
    monkeypatch.setattr(module, "read_bundle", lambda *_: None)
    monkeypatch.setattr(module, "_entry_refuses", lambda *_: False)
    tallies = flip_bytes(bundle, key.public, 30, seed=1)
    accepted = {name for name, tally in tallies.items() if tally.with_key < tally.flips}
    assert "graphs/cells.fp32.onnx" in accepted and SUMS not in accepted


def test_a_byte_is_changed_and_set_back(tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    for seed in range(20):
        with module._one_byte_changed(path, random.Random(seed)):
            assert sum(a != b for a, b in zip(path.read_bytes(), b"0123456789", strict=True)) == 1
        assert path.read_bytes() == b"0123456789"
