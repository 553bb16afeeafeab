"""A bundle is used as it was made or not at all: every damage is found and named in one sentence."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edge_effdet.artifacts import file_sha256
from edge_effdet.artifacts.reading import to_json
from edge_effdet.device.manifest import (
    MANIFEST,
    SIGNATURE,
    SUMS,
    is_bundle,
    parse_release,
    read_bundle,
    read_manifest,
    read_sums,
    require_name,
    write_manifest,
)
from edge_effdet.errors import BundleError
from tests.bundles import make_manifest

CONTENTS = {
    "edge-effdet": b"#!/usr/bin/env python3\n",
    "graphs/cells.fp32.onnx": bytes(range(256)) * 20,
    "graphs/cells.int8.onnx": bytes(range(255, -1, -1)) * 20,
    "layers/fp32.json": b"[]\n",
    "layers/int8.json": b"[]\n",
    "records/fp32.json": b"{}\n",
    "records/int8.json": b"{}\n",
    "requirements.txt": b"numpy>=1.26\n",
    "wheels/edge_effdet-0.1.0-py3-none-any.whl": b"PK\x03\x04",
}
THE_MANIFEST = make_manifest(precisions=("fp32", "int8"), release="1.2.0", target="x86-cpu")


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    folder = tmp_path / "cells-1.2.0 für x86"
    for name, content in CONTENTS.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    write_manifest(folder, THE_MANIFEST)
    return folder


def seal(folder: Path, edit: Callable[[dict], object]) -> None:
    """Change the manifest together with its hash, as only the one who makes a bundle can."""
    raw = json.loads((folder / MANIFEST).read_bytes())
    edit(raw)
    before = file_sha256(folder / MANIFEST)
    (folder / MANIFEST).write_text(json.dumps(raw))
    sums = (folder / SUMS).read_text().replace(before, file_sha256(folder / MANIFEST))
    (folder / SUMS).write_text(sums)


def test_a_bundle_is_read_as_it_was_written(bundle: Path):
    found = read_bundle(bundle, signed_by="A1")
    assert found.manifest == THE_MANIFEST
    assert found.sha256 == hashlib.sha256((bundle / SUMS).read_bytes()).hexdigest()
    assert found.id == f"1.2.0-{found.sha256[:12]}"
    assert (found.signed_by, found.archive) == ("A1", None)
    assert is_bundle(bundle) and not is_bundle(bundle / "graphs")


@pytest.mark.parametrize("name", [SUMS, MANIFEST])
def test_what_nobody_has_checked_is_not_read_whole(bundle: Path, name: str):
    with open(bundle / name, "r+b") as stream:
        stream.truncate(64 << 20)
    tracemalloc.start()
    try:
        with pytest.raises(BundleError, match="has more than") as caught:
            (read_sums if name == SUMS else read_manifest)(bundle)
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()
    assert "\n" not in str(caught.value)


def test_a_copy_is_the_same_bundle_and_a_signature_is_no_part_of_it(bundle: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(bundle, copy)
    (copy / SIGNATURE).write_text("anything")
    assert read_bundle(copy).id == read_bundle(bundle).id


def test_programs_of_others_check_it_too(bundle: Path):
    command = ["sha256sum", "--strict", "-c", SUMS]
    assert subprocess.run(command, cwd=bundle, capture_output=True).returncode == 0
    (bundle / "requirements.txt").write_bytes(b"numpy>=1.27\n")
    assert subprocess.run(command, cwd=bundle, capture_output=True).returncode == 1


@pytest.mark.parametrize("name", [*CONTENTS, MANIFEST, SUMS])
def test_any_byte_of_any_file(bundle: Path, name: str):
    path = bundle / name
    content = path.read_bytes()
    for place in random.Random(name).sample(range(len(content)), min(len(content), 20)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(BundleError):
            read_bundle(bundle)
    path.write_bytes(content)
    read_bundle(bundle)


@pytest.mark.parametrize("name", [*CONTENTS, MANIFEST, SUMS])
@pytest.mark.parametrize("what", ["cut", "longer", "empty", "missing", "renamed", "link", "hard link to another"])
def test_files_that_are_not_as_they_were(bundle: Path, name: str, what: str):
    path = bundle / name
    content = path.read_bytes()
    if what == "cut":
        path.write_bytes(content[:-1])
    elif what == "longer":
        path.write_bytes(content + b"\n")
    elif what == "empty":
        path.write_bytes(b"")
    elif what == "missing":
        path.unlink()
    elif what == "renamed":
        path.rename(path.with_name(f"{path.name}.1"))
    elif what == "link":
        path.rename(bundle.parent / path.name)
        path.symlink_to(bundle.parent / path.name)
    else:
        path.unlink()
        os.link(bundle / ("layers/int8.json" if name == "edge-effdet" else "edge-effdet"), path)
    with pytest.raises(BundleError) as caught:
        read_bundle(bundle)
    assert str(bundle) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_does_not_belong_to_it(bundle: Path):
    for name in ("stray.txt", "graphs/.hidden", "__pycache__/x.pyc", "wheels/evil.whl", "SHA256SUMS.bak"):
        (bundle / name).parent.mkdir(exist_ok=True)
        (bundle / name).write_bytes(b"")
        with pytest.raises(BundleError, match="does not belong to the bundle"):
            read_bundle(bundle)
        (bundle / name).unlink()
    (bundle / "folder").symlink_to(bundle / "graphs", target_is_directory=True)
    with pytest.raises(BundleError, match="link"):
        read_bundle(bundle)
    (bundle / "folder").unlink()
    os.mkfifo(bundle / "pipe")
    with pytest.raises(BundleError, match="no plain file"):
        read_bundle(bundle)


def test_a_signature_that_is_a_link_is_refused(bundle: Path):
    (bundle / SIGNATURE).symlink_to(bundle / SUMS)
    with pytest.raises(BundleError, match="link"):
        read_bundle(bundle)


def test_folders_in_the_place_of_files(bundle: Path):
    (bundle / "requirements.txt").unlink()
    (bundle / "requirements.txt").mkdir()
    with pytest.raises(BundleError, match=r"requirements\.txt is missing"):
        read_bundle(bundle)


def test_a_name_that_is_no_text(bundle: Path):
    Path(os.fsdecode(os.fsencode(bundle) + b"/stray\xff")).write_bytes(b"")
    with pytest.raises(BundleError, match="does not belong") as caught:
        read_bundle(bundle)
    str(caught.value).encode()


SUMS_DAMAGES: dict[str, Callable[[str], str]] = {
    "upper-case hash": lambda text: text[:64].upper() + text[64:],
    "CRLF": lambda text: text.replace("\n", "\r\n"),
    "one CRLF": lambda text: text.replace("\n", "\r\n", 1),
    "a line twice": lambda text: text + text.splitlines(keepends=True)[0],
    "a name twice": lambda text: text + "0" * 64 + text.splitlines(keepends=True)[0][64:],
    "no last line break": lambda text: text[:-1],
    "a line missing": lambda text: "".join(text.splitlines(keepends=True)[1:]),
    "only a line break": lambda text: "\n",
    "an empty line": lambda text: "\n" + text,
    "an empty last line": lambda text: text + "\n",
    "one space": lambda text: text.replace("  ", " ", 1),
    "the star of sha256sum -b": lambda text: text.replace("  ", " *", 1),
    "the tag form of sha256sum": lambda text: f"SHA256 (edge-effdet) = {'0' * 64}\n" + text,
    "a byte order mark": lambda text: "\ufeff" + text,
    "a comment": lambda text: "# made by hand\n" + text,
    "out of the folder": lambda text: text + "0" * 64 + "  ../outside\n",
    "an absolute path": lambda text: text + "0" * 64 + "  /etc/passwd\n",
    "another way to a file": lambda text: text.replace("  graphs/", "  graphs/../graphs/", 1),
    "a dot": lambda text: text.replace("  graphs/", "  ./graphs/", 1),
    "two slashes": lambda text: text.replace("graphs/", "graphs//", 1),
    "itself": lambda text: text + "0" * 64 + f"  {SUMS}\n",
    "the signature": lambda text: text + "0" * 64 + f"  {SIGNATURE}\n",
    "a space in a name": lambda text: text + "0" * 64 + "  a b\n",
    "letters beyond ASCII": lambda text: text + "0" * 64 + "  ä\n",
    "a line feed of Unicode": lambda text: text.replace("\n", "\u2028", 1),
    "a form feed": lambda text: text.replace("\n", "\x0c\n", 1),
    "a file that is not there": lambda text: text + "0" * 64 + "  graphs/more.onnx\n",
}


@pytest.mark.parametrize("what", SUMS_DAMAGES)
def test_sums_in_another_form(bundle: Path, what: str):
    (bundle / SUMS).write_bytes(SUMS_DAMAGES[what]((bundle / SUMS).read_text()).encode())
    with pytest.raises(BundleError):
        read_bundle(bundle)


def test_a_folder_that_is_no_bundle(tmp_path: Path, bundle: Path):
    for folder in (tmp_path, tmp_path / "missing", bundle / "edge-effdet"):
        assert not is_bundle(folder)
        with pytest.raises(BundleError, match="is not a bundle"):
            read_bundle(folder)


MANIFEST_DAMAGES: dict[str, Callable[[dict], object]] = {
    "no field": lambda raw: raw.pop("release"),
    "a field too many": lambda raw: raw.update(more=1),
    "a newer format": lambda raw: raw.update(format=2),
    "a format that is no number": lambda raw: raw.update(format=True),
    "a release that is no number": lambda raw: raw.update(release="latest"),
    "a release of other digits": lambda raw: raw.update(release="\u0661.\u0662"),
    "a release that leads out": lambda raw: raw.update(release="1/../.."),
    "a name that leads out": lambda raw: raw.update(name="../cells"),
    "no name": lambda raw: raw.update(name=""),
    "a name with a line break": lambda raw: raw.update(name="cells\n"),
    "a precision without a graph": lambda raw: raw.update(precision="fp16"),
    "a graph that is not there": lambda raw: raw["graphs"]["int8"].update(graph="graphs/other.onnx"),
    "a graph out of the folder": lambda raw: raw["graphs"]["int8"].update(graph="../outside.onnx"),
    "a graph somewhere else": lambda raw: raw["graphs"]["int8"].update(graph="/etc/passwd"),
    "a wheel that is a folder": lambda raw: raw.update(wheel="wheels"),
    "keys that are no list": lambda raw: raw.update(trusted_keys="RWQ"),
    "complete as a word": lambda raw: raw.update(complete="yes"),
    "no graphs": lambda raw: raw.update(graphs={}),
}


@pytest.mark.parametrize("what", MANIFEST_DAMAGES)
def test_a_manifest_that_makes_no_sense(bundle: Path, what: str):
    (bundle.parent / "outside.onnx").write_bytes(b"")
    seal(bundle, MANIFEST_DAMAGES[what])
    with pytest.raises(BundleError) as caught:
        read_bundle(bundle)
    assert "\n" not in str(caught.value)


def test_another_format_is_told_apart_from_damage(bundle: Path):
    seal(bundle, lambda raw: raw.update(format=2))
    with pytest.raises(BundleError, match="of format 2, and this version of edge_effdet reads format 1"):
        read_bundle(bundle)


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{", '{"format": 1}', "[" * 100_000, '{"format": 1, "name": "\\ud800"}', "\x00"]
)
def test_a_manifest_that_is_no_object(bundle: Path, text: str):
    (bundle / MANIFEST).write_text(text)
    with pytest.raises(BundleError, match=r"bundle\.json"):
        read_manifest(bundle)


def test_the_manifest_is_ascii(bundle: Path):
    write_manifest(bundle, replace(THE_MANIFEST, made_by="0.1.0 für Zellen"))
    assert (bundle / MANIFEST).read_bytes().isascii()
    assert read_manifest(bundle).made_by == "0.1.0 für Zellen"
    assert to_json(read_manifest(bundle)) == json.loads((bundle / MANIFEST).read_bytes())


@pytest.mark.parametrize(
    ("older", "newer"),
    [("1.9", "1.10"), ("1", "1.0.1"), ("0.9.9", "1"), ("2026.1.2", "2026.11.28.203000"), ("1.2.3.4.5", "1.2.3.4.5.6")],
)
def test_releases_are_ordered_by_their_numbers(older: str, newer: str):
    assert parse_release(older) < parse_release(newer)


def test_zeros_at_the_end_of_a_release_say_nothing():
    assert parse_release("1.2.0") == parse_release("1.2") == (1, 2)
    assert parse_release("0.0") == (0,)


@pytest.mark.parametrize(
    "text", ["", "1.", ".1", "1..2", "v1", "1.0-rc1", "1.0 ", "1\n", "-1", "1" * 10, "1.2.3.4.5.6.7", "\u0661", "²"]
)
def test_what_is_no_release(text: str):
    with pytest.raises(BundleError, match="is no release"):
        parse_release(text)


@pytest.mark.parametrize("text", ["", ".", "..", "-x", "_x", "a/b", "a b", "ä", "a\n", "a" * 65, "a\x00"])
def test_what_is_no_name(text: str):
    with pytest.raises(BundleError, match="cannot be the name"):
        require_name(text)


def test_names():
    for text in ("a", "cells-2_x.y", "7", "a" * 64):
        assert require_name(text) == text
