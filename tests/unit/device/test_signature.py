"""Signatures of minisign: what it signed is accepted by each way to check, and every change is refused by each."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_effdet.device import signature as module
from edge_effdet.device.manifest import SIGNATURE, SUMS
from edge_effdet.device.signature import check_signature, read_public_key, read_signature, require_trusted
from edge_effdet.errors import BackendUnavailable, BundleError

KEY = "RWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3"
KEY_ID = "E7620F1842B4E81F"
"""The key of minisign's author, and what he signed with it: "test", hashed and not, as minisign's documentation has them."""

LEGACY = (
    "untrusted comment: signature from minisign secret key\n"
    "RWQf6LRCGA9i59SLOFxz6NxvASXDJeRtuZykwQepbDEGt87ig1BNpWaVWuNrm73YiIiJbq71Wi+dP9eKL8OC351vwIasSSbXxwA=\n"
    "trusted comment: timestamp:1555779966\tfile:test\n"
    "QtKMXWyYcwdpZAlPF7tE2ENJkRd1ujvKjlj1m9RtHTBnZPa5WKU5uWRs5GoP5M/VqE81QFuMKI5k/SfNQUaOAA==\n"
)
HASHED = (
    "untrusted comment: signature from minisign secret key\n"
    "RUQf6LRCGA9i559r3g7V1qNyJDApGip8MfqcadIgT9CuhV3EMhHoN1mGTkUidF/z7SrlQgXdy8ofjb7bNJJylDOocrCo8KLzZwo=\n"
    "trusted comment: timestamp:1556193335\tfile:test\n"
    "y/rUw2y8/hOUYjZU71eHp/Wo1KZ40fGy2VJEDl34XMJM+TX48Ss/17u3IvIfbVR1FkZZSNCisQbuQY+bHwhEBg==\n"
)

WAYS = ("cryptography", "openssl", "minisign")


def missing(way: str) -> bool:
    if way == "cryptography":
        return module._by_cryptography(read_public_key(KEY).point, bytes(64), b"") is None
    return shutil.which(way) is None


@pytest.fixture(
    params=[pytest.param(way, marks=pytest.mark.skipif(missing(way), reason=f"no {way} here")) for way in WAYS]
)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """One way to check signatures; the others are not to be found."""
    if request.param != "cryptography":
        monkeypatch.setitem(sys.modules, "cryptography", None)
        monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    programs = tmp_path / "programs"
    programs.mkdir()
    if request.param != "cryptography":
        found = shutil.which(request.param)
        assert found
        (programs / request.param).symlink_to(found)
    monkeypatch.setenv("PATH", str(programs))
    return request.param


@pytest.fixture
def signed(tmp_path: Path) -> tuple[Path, Path]:
    """A file and its signature, in a folder whose name has spaces and letters beyond ASCII."""
    folder = tmp_path / "Bündel 1"
    folder.mkdir()
    path, signature = folder / "test", folder / "test.minisig"
    path.write_bytes(b"test")
    signature.write_text(HASHED)
    return path, signature


def test_the_public_key_of_minisigns_author():
    key = read_public_key(KEY)
    assert (key.id, key.text) == (KEY_ID, KEY)
    assert read_public_key(f"untrusted comment: minisign public key {KEY_ID}\n{KEY}\n") == key
    assert read_public_key(f"untrusted comment: minisign public key {KEY_ID}\r\n{KEY}\r\n") == key
    assert read_public_key(f"  {KEY}\n") == key


@pytest.mark.parametrize(
    "text",
    [
        "", "\n", "RWQ", KEY[:-1], KEY + "A", KEY + "\n" + KEY, KEY[:-4], "untrusted comment: a key", f"comment\n{KEY}", KEY.replace("RWQ", "RUQ"),
        KEY[:20] + " " + KEY[21:], KEY[:20] + "-" + KEY[21:], "\ud800", "ä" * 56, "-----BEGIN PUBLIC KEY-----", f"{KEY}\n\n{KEY}\n",
    ],
)  # fmt: skip
def test_what_is_no_public_key(text: str):
    with pytest.raises(BundleError, match="is not a public key of minisign") as caught:
        read_public_key(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", [HASHED, LEGACY], ids=["hashed", "legacy"])
def test_what_minisign_signed_is_accepted(way: str, signed: tuple[Path, Path], text: str):
    path, signature = signed
    signature.write_text(text)
    assert check_signature(path, signature, [KEY]) == KEY_ID


def test_a_changed_file_is_refused_by_each_way(way: str, signed: tuple[Path, Path]):
    path, signature = signed
    for content in (b"Test", b"test\n", b"", b"tes"):
        path.write_bytes(content)
        with pytest.raises(BundleError, match="does not belong to test as it is now"):
            check_signature(path, signature, [KEY])


def test_each_part_of_a_signature_is_checked_by_each_way(way: str, signed: tuple[Path, Path]):
    path, signature = signed
    lines = HASHED.splitlines()
    first, second = base64.b64decode(lines[1]), base64.b64decode(lines[3])

    def changed(content: bytes, place: int) -> str:
        return base64.b64encode(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]).decode()

    for line in (changed(first, 12), changed(first, 70)):
        signature.write_text("\n".join([lines[0], line, *lines[2:]]) + "\n")
        with pytest.raises(BundleError, match="does not belong"):
            check_signature(path, signature, [KEY])
    for line in (changed(second, 1), changed(second, 40)):
        signature.write_text("\n".join([*lines[:3], line]) + "\n")
        with pytest.raises(BundleError, match="does not belong"):
            check_signature(path, signature, [KEY])
    signature.write_text(HASHED.replace("file:test", "file:best"))
    with pytest.raises(BundleError, match="does not belong"):
        check_signature(path, signature, [KEY])
    # The legacy signature is right for the file and not for its hash, and the other way round.
    signature.write_text(HASHED.replace("RUQf", "RWQf"))
    with pytest.raises(BundleError, match="does not belong"):
        check_signature(path, signature, [KEY])


def test_another_key_of_the_same_id_is_refused_by_each_way(way: str, signed: tuple[Path, Path]):
    key = read_public_key(KEY)
    # Twice the base point of the curve (RFC 8032, 5.1).
    point = bytes.fromhex("c9a3f86aae465f0e56513864510f3997561fa2c9e85ea21dc2292309f3cd6022")
    other = module.PublicKey(key.number, point).text
    with pytest.raises(BundleError, match="does not belong"):
        check_signature(*signed, [other])
    # Where several keys have one id, each is tried.
    assert check_signature(*signed, [other, KEY]) == KEY_ID


@pytest.mark.parametrize(
    ("public", "message", "signature"),
    [
        (
            "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c",
            "72",
            "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00",
        ),
        (
            "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
            "af82",
            "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc027beceea1ec40a",
        ),
    ],
)
@pytest.mark.parametrize("name", ["cryptography", "openssl"])
def test_the_vectors_of_rfc_8032(name: str, public: str, message: str, signature: str):
    if missing(name):
        pytest.skip(f"no {name} here")
    check = getattr(module, f"_by_{name}")
    point, signed, text = bytes.fromhex(public), bytes.fromhex(signature), bytes.fromhex(message)
    assert check(point, signed, text) is True
    assert check(point, signed, text + b"x") is False
    for place in (0, 31, 32, 63):
        wrong = signed[:place] + bytes([signed[place] ^ 1]) + signed[place + 1 :]
        assert check(point, wrong, text) is False


def test_every_bit_of_a_signature_file(signed: tuple[Path, Path]):
    """Nothing in the file may be changed unnoticed, be it a comment, a line break, or the unused bits of Base64."""
    path, signature = signed
    assert check_signature(path, signature, [KEY])
    content = HASHED.encode()
    accepted = []
    draws = random.Random(0)
    for place in range(len(content)):
        signature.write_bytes(
            content[:place] + bytes([content[place] ^ (1 << draws.randrange(8))]) + content[place + 1 :]
        )
        try:
            check_signature(path, signature, [KEY])
        except BundleError:
            continue
        accepted.append(place)
    assert accepted == []


FORMS: dict[str, Callable[[str], str]] = {
    "empty": lambda text: "",
    "three lines": lambda text: "\n".join(text.splitlines()[:3]) + "\n",
    "five lines": lambda text: text + "more\n",
    "no last line break": lambda text: text[:-1],
    "CRLF": lambda text: text.replace("\n", "\r\n"),
    "another comment": lambda text: text.replace("minisign secret", "somebody's secret"),
    "no comment": lambda text: text.replace("untrusted comment: ", ""),
    "another algorithm": lambda text: text.replace("\nRUQ", "\nRVQ"),
    "unused bits of Base64": lambda text: text.replace("Zwo=\n", "Zwp=\n"),
    "a space in Base64": lambda text: text.replace("\nRUQ", "\n RUQ"),
    "a short signature": lambda text: text.replace("RUQf6LRC", "RUQf"),
    "no trusted comment": lambda text: text.replace("\ntrusted", "\ndistrusted"),
    "a short second signature": lambda text: text.replace("y/rUw2y8", "y/rU"),
    "no UTF-8": lambda text: text.replace("file:test", "file:t\udcffst"),
}


@pytest.mark.parametrize("form", FORMS)
def test_signature_files_in_another_form(signed: tuple[Path, Path], form: str):
    _, signature = signed
    signature.write_bytes(os.fsencode(FORMS[form](HASHED)))
    with pytest.raises(BundleError, match="is not a signature of minisign or was changed") as caught:
        read_signature(signature)
    assert "\n" not in str(caught.value)


def test_files_that_are_not_there(signed: tuple[Path, Path]):
    path, signature = signed
    with pytest.raises(BundleError, match="cannot be read"):
        check_signature(path.parent / "missing", signature, [KEY])
    with pytest.raises(BundleError, match="cannot be read"):
        check_signature(path, path.parent / "missing", [KEY])


def test_another_key_is_refused_by_its_id(signed: tuple[Path, Path]):
    key = read_public_key(KEY)
    other = module.PublicKey(bytes(8), key.point).text
    with pytest.raises(BundleError, match=f"made with the key {KEY_ID}, and the trusted ones are 0000000000000000"):
        check_signature(*signed, [other])
    with pytest.raises(BundleError, match="trusted ones are none"):
        check_signature(*signed, [])
    with pytest.raises(BundleError, match="is not a public key"):
        check_signature(*signed, ["nonsense"])


def test_where_nothing_can_check(signed: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    for name in ("cryptography", "cryptography.exceptions"):
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendUnavailable, match="install one of openssl") as caught:
        check_signature(*signed, [KEY])
    assert caught.value.exit_code == 3


def test_a_program_that_fails_is_no_answer(signed: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """An openssl that is too old says so and exits with 1, as for a wrong signature."""
    for name in ("cryptography", "cryptography.exceptions"):
        monkeypatch.setitem(sys.modules, name, None)
    programs = tmp_path / "old"
    programs.mkdir()
    (programs / "openssl").write_text("#!/bin/sh\necho 'pkeyutl: Unrecognized flag rawin' >&2\nexit 1\n")
    (programs / "openssl").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs))
    with pytest.raises(BackendUnavailable):
        check_signature(*signed, [KEY])


@pytest.fixture
def bundle(tmp_path: Path, signed: tuple[Path, Path]) -> Path:
    folder = tmp_path / "bundle"
    folder.mkdir()
    shutil.copy(signed[0], folder / SUMS)
    shutil.copy(signed[1], folder / SIGNATURE)
    return folder


def test_trust_in_a_signed_bundle(bundle: Path, caplog: pytest.LogCaptureFixture):
    assert require_trusted(bundle, [KEY], required=True) == KEY_ID
    assert require_trusted(bundle, [KEY], required=False) == KEY_ID
    assert caplog.text == ""
    assert require_trusted(bundle, [], required=False) is None
    assert "no key is trusted here to check that with" in caplog.text
    with pytest.raises(BundleError, match="no key is trusted here yet"):
        require_trusted(bundle, [], required=True)


def test_a_changed_bundle_is_refused_where_a_key_is(bundle: Path):
    (bundle / SUMS).write_bytes(b"Test")
    with pytest.raises(BundleError, match="does not belong"):
        require_trusted(bundle, [KEY], required=False)


def test_trust_in_an_unsigned_bundle(bundle: Path, caplog: pytest.LogCaptureFixture):
    (bundle / SIGNATURE).unlink()
    for required in (False, True):
        with pytest.raises(BundleError, match="is not signed"):
            require_trusted(bundle, [KEY], required)
    with pytest.raises(BundleError, match="`require_signature` is set"):
        require_trusted(bundle, [], required=True)
    assert caplog.text == ""
    assert require_trusted(bundle, [], required=False) is None
    assert "is not signed" in caplog.text


def test_the_form_of_a_signature_is_checked_without_a_key(bundle: Path):
    (bundle / SIGNATURE).write_text("signed, honestly\n")
    with pytest.raises(BundleError, match="is not a signature of minisign"):
        require_trusted(bundle, [], required=False)


def test_a_signature_needs_the_standard_library_alone(signed: tuple[Path, Path]):
    """As on a device before anything is installed, where a program checks."""
    if missing("openssl"):
        pytest.skip("no openssl here")
    code = (
        "import json, sys\n"
        "class Blocker:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] not in {'edge_effdet', *sys.stdlib_module_names}: raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Blocker())\n"
        "from pathlib import Path\n"
        "from edge_effdet.device.signature import check_signature\n"
        "path, signature, key = sys.argv[1:]\n"
        "print(json.dumps([check_signature(Path(path), Path(signature), [key]), 'numpy' in sys.modules]))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *map(str, signed), KEY], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [KEY_ID, False]


def test_large_files_are_hashed_in_parts(tmp_path: Path):
    path = tmp_path / "large"
    content = bytes(range(256)) * 10_000
    path.write_bytes(content)
    found = module.FileSignature(True, bytes(8), bytes(64), b"", bytes(64))
    assert module._message(path, found) == hashlib.blake2b(content, digest_size=64).digest()


def test_what_is_larger_than_any_signature_is_not_read_whole(signed: tuple[Path, Path]):
    with open(signed[1], "r+b") as stream:
        stream.truncate(64 << 20)
    with pytest.raises(BundleError, match="has more than 65,536 bytes"):
        read_signature(signed[1])


def test_a_large_file_that_was_signed_as_a_whole_is_not_read_whole(signed: tuple[Path, Path]):
    found = module.FileSignature(False, bytes(8), bytes(64), b"", bytes(64))
    assert module._message(signed[0], found) == b"test"
    with open(signed[0], "r+b") as stream:
        stream.truncate((1 << 30) + 1)
    tracemalloc.start()
    try:
        with pytest.raises(BundleError, match="was signed as a whole and not by its hash"):
            module._message(signed[0], found)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
