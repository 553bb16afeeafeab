"""Keys and signatures on the host: what is signed here is what minisign verifies, and the other way round."""

from __future__ import annotations

import base64
import io
import json
import shutil
import stat
import subprocess
import sys
import types
from pathlib import Path

import pytest

from edge_effdet.deploying import signing
from edge_effdet.deploying.signing import main, make_keys, read_public_keys, read_secret_key, sign_file
from edge_effdet.device.signature import check_signature, read_public_key, read_signature
from edge_effdet.errors import BundleError, InputError, MissingDependency, UsageError

# Keys that minisign wrote, with -W and with the password "testpass", as the tests of go-minisign have them.
OPEN_KEY = (
    "untrusted comment: minisign encrypted secret key\n"
    "RWQAAEIyAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAOItWpGuGQbG4C9WXaxEYLgZ2xxuqfbuZmDgAhQ8Unot8t7SyxZ0nVh0gESesJ6Ay57fGFJ9T"
    "1ajVmanT7MFMCCDbPZ8uqDcSAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n"
)
OPEN_PUBLIC = "RWQ4i1aka4ZBsR0gESesJ6Ay57fGFJ9T1ajVmanT7MFMCCDbPZ8uqDcS"
CLOSED_KEY = (
    "untrusted comment: minisign encrypted secret key\n"
    "RWRTY0IyxYlIT2FS5i8PqThE9swBemvY94JDIMqo75UBK3XO/aUAAAACAAAAAAAAAEAAAAAAUhlw8nsT1tuVUekS6Je3iUwoWFdb1xiLonO35G66RiVvM/QgrBtnDa0Dhbt7H3oYMh4aFLiN"
    "xMs24gzXqHVsvRVthMeF08fN8r6siRdBpiBZ36B7rox2lmYIYgg5T8qt7tOxo9doAxk=\n"
)
CLOSED_PUBLIC = "RWTB/yLPjeVJkXKtzk1nZI0TU+fZPqEaIzg1ABHwfnI8pZNWtifIpWBq"

needs_minisign = pytest.mark.skipif(shutil.which("minisign") is None, reason="no minisign here")


@pytest.fixture
def document(tmp_path: Path) -> Path:
    path = tmp_path / "Bündel 1" / "SHA256SUMS"
    path.parent.mkdir()
    path.write_bytes(b"some text\n" * 1000)
    return path


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A password that costs nothing, in place of 1 GiB and seconds."""
    monkeypatch.setattr(signing, "_OPSLIMIT", 1 << 15)
    monkeypatch.setattr(signing, "_MEMLIMIT", 1 << 24)


def test_a_new_key_signs_what_the_device_accepts(tmp_path: Path, document: Path):
    key = make_keys(tmp_path / "keys", None)
    secret, public = tmp_path / "keys" / "minisign.key", tmp_path / "keys" / "minisign.pub"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    assert (
        public.read_text() == f"untrusted comment: minisign public key {read_public_key(key.public).id}\n{key.public}\n"
    )
    assert read_public_keys(public) == (key.public,)
    read = read_secret_key(secret)
    assert read.public == key.public
    signature = sign_file(document, read)
    assert signature == document.with_name("SHA256SUMS.minisig")
    assert check_signature(document, signature, [key.public]) == read_public_key(key.public).id
    found = read_signature(signature)
    assert found.hashed and found.comment.endswith(b"\tfile:SHA256SUMS\thashed")
    document.write_bytes(b"other text\n" * 1000)
    with pytest.raises(BundleError, match="does not belong"):
        check_signature(document, signature, [key.public])


def test_no_two_keys_are_alike(tmp_path: Path):
    first, second = (make_keys(tmp_path / name, None) for name in ("a", "b"))
    assert first.public != second.public
    assert read_public_key(first.public).number != read_public_key(second.public).number
    assert "secret" not in repr(first)


def test_a_key_is_never_overwritten(tmp_path: Path):
    key = make_keys(tmp_path, None)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(UsageError, match="never overwritten"):
        make_keys(tmp_path, None)
    (tmp_path / "minisign.key").unlink()
    with pytest.raises(UsageError, match=r"minisign\.pub is there already"):
        make_keys(tmp_path, None)
    assert (tmp_path / "minisign.pub").read_bytes() == before["minisign.pub"]
    assert not (tmp_path / "minisign.key").exists()
    (tmp_path / "minisign.pub").unlink()
    (tmp_path / "minisign.pub").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UsageError, match="never overwritten"):
        make_keys(tmp_path, None)
    assert key.public


def test_a_folder_that_cannot_be_written_keeps_no_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError):
        make_keys(tmp_path / "file" / "keys", None)

    def full(path: Path) -> None:
        raise InputError(f"Writing {path} failed: no space left")

    monkeypatch.setattr(signing, "atomic_output", full)
    with pytest.raises(InputError, match="no space left"):
        make_keys(tmp_path / "keys", None)
    assert list((tmp_path / "keys").iterdir()) == []


def test_a_key_with_a_password(tmp_path: Path, document: Path, quick: None, monkeypatch: pytest.MonkeyPatch):
    key = make_keys(tmp_path, "Süßholz")
    secret = tmp_path / "minisign.key"
    monkeypatch.delenv(signing.PASSWORD, raising=False)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with pytest.raises(UsageError, match="EDGE_EFFDET_KEY_PASSWORD"):
        read_secret_key(secret)
    with pytest.raises(InputError, match="wrong password"):
        read_secret_key(secret, "Süssholz")
    assert read_secret_key(secret, "Süßholz").public == key.public
    monkeypatch.setenv(signing.PASSWORD, "Süßholz")
    signature = sign_file(document, read_secret_key(secret))
    assert check_signature(document, signature, [key.public])
    monkeypatch.setenv(signing.PASSWORD, "")
    with pytest.raises(InputError, match="wrong password"):
        read_secret_key(secret)


@pytest.mark.parametrize(
    ("content", "public", "password"), [(OPEN_KEY, OPEN_PUBLIC, None), (CLOSED_KEY, CLOSED_PUBLIC, "testpass")]
)
def test_keys_that_minisign_wrote(tmp_path: Path, document: Path, content: str, public: str, password: str | None):
    path = tmp_path / "minisign.key"
    path.write_text(content)
    key = read_secret_key(path, password)
    assert key.public == public
    assert check_signature(document, sign_file(document, key), [public])


@pytest.mark.parametrize("place", [70, 90, 100, 120])
def test_a_damaged_key_is_noticed(tmp_path: Path, place: int):
    """minisign writes no checksum into a key without a password."""
    comment, line = OPEN_KEY.splitlines()
    content = bytearray(base64.b64decode(line))
    content[place] ^= 1
    path = tmp_path / "minisign.key"
    path.write_text(f"{comment}\n{base64.b64encode(content).decode()}\n")
    with pytest.raises(InputError, match="is damaged"):
        read_secret_key(path)


@pytest.mark.parametrize(
    "content",
    ["", "nonsense", f"untrusted comment: x\n{OPEN_PUBLIC}\n", OPEN_KEY[:-10], "-----BEGIN OPENSSH PRIVATE KEY-----\n"],
)
def test_what_is_no_secret_key(tmp_path: Path, content: str):
    path = tmp_path / "key"
    path.write_text(content)
    with pytest.raises(InputError, match="cannot be read as a secret key of minisign") as caught:
        read_secret_key(path)
    assert "\n" not in str(caught.value)


def test_files_that_are_not_there(tmp_path: Path):
    with pytest.raises(InputError, match="cannot be read as a secret key"):
        read_secret_key(tmp_path / "missing")
    with pytest.raises(InputError, match="cannot be read as public keys"):
        read_public_keys(tmp_path / "missing")
    with pytest.raises(InputError, match="could not be signed"):
        sign_file(tmp_path / "missing", make_keys(tmp_path, None))
    assert not (tmp_path / "missing.minisig").exists()


def test_public_keys_from_a_file(tmp_path: Path):
    path = tmp_path / "keys.pub"
    path.write_text(
        f"untrusted comment: old\n{OPEN_PUBLIC}\n\nuntrusted comment: new\n{CLOSED_PUBLIC}\n{OPEN_PUBLIC}\n"
    )
    assert read_public_keys(path) == (OPEN_PUBLIC, CLOSED_PUBLIC)
    for content in ("", "untrusted comment: alone\n", "nonsense\n", f"{OPEN_PUBLIC}\nnonsense\n", OPEN_KEY):
        path.write_text(content)
        with pytest.raises(BundleError):
            read_public_keys(path)


@needs_minisign
def test_the_program_accepts_what_is_signed_here(tmp_path: Path, document: Path):
    key = make_keys(tmp_path / "keys", None)
    signature = sign_file(document, key)
    command = ["minisign", "-V", "-q", "-H", "-m", str(document), "-x", str(signature)]
    for public in (["-P", key.public], ["-p", str(tmp_path / "keys" / "minisign.pub")]):
        assert subprocess.run([*command, *public], capture_output=True).returncode == 0
    document.write_bytes(b"another")
    assert subprocess.run([*command, "-P", key.public], capture_output=True).returncode == 1


@needs_minisign
def test_the_program_signs_with_keys_that_were_made_here(tmp_path: Path, document: Path, quick: None):
    key = make_keys(tmp_path / "keys", "geheim")
    command = ["minisign", "-S", "-m", str(document), "-s", str(tmp_path / "keys" / "minisign.key")]
    done = subprocess.run(command, input="geheim\n", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert check_signature(document, document.with_name("SHA256SUMS.minisig"), [key.public])


@needs_minisign
@pytest.mark.parametrize("flags", [[], ["-W"]], ids=["password", "no password"])
def test_keys_and_signatures_of_the_program(tmp_path: Path, document: Path, flags: list[str]):
    public, secret = tmp_path / "its.pub", tmp_path / "its.key"
    made = subprocess.run(
        ["minisign", "-G", *flags, "-p", str(public), "-s", str(secret)],
        input="geheim\ngeheim\n",
        capture_output=True,
        text=True,
    )
    if flags and "invalid option" in made.stderr:
        pytest.skip("this minisign has no -W")
    assert made.returncode == 0, made.stderr
    done = subprocess.run(
        ["minisign", "-S", "-m", str(document), "-s", str(secret)], input="geheim\n", capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    signature = document.with_name("SHA256SUMS.minisig")
    (text,) = read_public_keys(public)
    assert check_signature(document, signature, [public.read_text()]) == read_public_key(text).id
    key = read_secret_key(secret, "geheim")
    assert key.public == text
    signature.unlink()
    assert check_signature(document, sign_file(document, key), [text])


def test_without_the_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # An older package of PyPI has a module of the same name.
    for stand_in in (None, types.ModuleType("minisign")):
        monkeypatch.setitem(sys.modules, "minisign", stand_in)
        with pytest.raises(MissingDependency, match=r"edge-effdet\[deploy\]"):
            make_keys(tmp_path / "keys", None)
        with pytest.raises(MissingDependency):
            read_secret_key(tmp_path / "minisign.key")
    assert not (tmp_path / "keys").exists()


def test_the_command(tmp_path: Path, quick: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.delenv(signing.PASSWORD, raising=False)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    folder = tmp_path / "Schlüssel 1"
    assert main(["--output", str(folder)]) == 2
    assert not folder.exists()
    assert main(["--output", str(folder), "--no-password", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert read_public_keys(folder / "minisign.pub") == (told["key"],)
    assert read_public_key(told["key"]).id == told["id"]
    assert main(["--output", str(folder), "--no-password"]) == 2
    assert "never overwritten; give another --output" in capsys.readouterr().err
    monkeypatch.setenv(signing.PASSWORD, "geheim")
    assert main(["--output", str(tmp_path / "closed")]) == 0
    assert "RW" in capsys.readouterr().out
    with pytest.raises(InputError, match="wrong password"):
        read_secret_key(tmp_path / "closed" / "minisign.key", "falsch")
    assert read_secret_key(tmp_path / "closed" / "minisign.key")
