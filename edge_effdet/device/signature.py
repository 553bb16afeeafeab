"""Signatures in the format of minisign, checked on the device.

A signature file has four lines: a comment that nothing covers, the signature, the *trusted comment*, and a second signature over the first
one and the trusted comment. Both are Ed25519 signatures (RFC 8032). Algorithm "ED" signs the BLAKE2b-512 hash of the file, the older "Ed"
the file itself. A public key file has a comment and one line of Base64. The format is described in minisign's manual, under "Signature format".

Two things are stricter here than in minisign, so that no byte of a signature file can be changed without being noticed: the comment that nothing
covers has to be one that minisign or edge_effdet writes, and a text in Base64 has to be the one that its bytes are encoded to.

Python's standard library has no Ed25519, so the package ``cryptography``, the program ``openssl`` or the program ``minisign`` does the arithmetic,
whichever is there first. The keys that are trusted come from the device or from its user, never from the bundle that is checked.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import logging
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from edge_effdet.artifacts import printable, temporary_folder
from edge_effdet.device.manifest import SIGNATURE, SUMS, read_bounded
from edge_effdet.errors import BackendUnavailable, BundleError

logger = logging.getLogger("edge_effdet.device.signature")

UNTRUSTED = "untrusted comment: "
TRUSTED = "trusted comment: "
COMMENTS = ("signature from minisign secret key", "signature from edge_effdet secret key")
"""What may stand in the first line of a signature file, which no signature covers: what minisign and ``signing.sign_file`` write."""

_KEY_BYTES = 2 + 8 + 32
_SIGNATURE_BYTES = 2 + 8 + 64
_SPKI = bytes.fromhex("302a300506032b6570032100")
"""What stands before the 32 bytes of an Ed25519 key in the DER form that ``openssl`` reads (RFC 8410, section 4)."""

_MOST_SIGNATURE, _MOST_UNHASHED = 1 << 16, 1 << 30
"""Bytes of a signature file, and of a file that was signed without its hash, for which it has to be in memory as a whole."""

_SECONDS = 60


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A public key of minisign.

    Attributes:
        number: the 8 bytes by which a signature names its key.
        point: the 32 bytes of the Ed25519 key.
    """

    number: bytes
    point: bytes

    @property
    def id(self) -> str:
        """The id as minisign prints it: 16 hexadecimal digits."""
        return key_id(self.number)

    @property
    def text(self) -> str:
        """The line of Base64 that ``minisign -P`` takes."""
        return base64.b64encode(b"Ed" + self.number + self.point).decode()


@dataclass(frozen=True, slots=True)
class FileSignature:
    """A signature file, read.

    Attributes:
        hashed: whether the hash of the file was signed ("ED"), and not the file itself ("Ed").
        number: the 8 bytes that name the key.
        signature: 64 bytes, over the file or its hash.
        comment: the trusted comment.
        comment_signature: 64 bytes, over ``signature`` and ``comment``.
    """

    hashed: bool
    number: bytes
    signature: bytes
    comment: bytes
    comment_signature: bytes


def key_id(number: bytes) -> str:
    """The id of a key as minisign prints it, from its 8 bytes."""
    return f"{int.from_bytes(number, 'little'):016X}"


def read_public_key(text: str) -> PublicKey:
    """Read a public key.

    Args:
        text: the two lines of a public key file of minisign, or the second of them alone.

    Raises:
        BundleError: it is no public key.
    """
    lines = text.strip().splitlines()
    if len(lines) == 2 and lines[0].startswith(UNTRUSTED):
        del lines[0]
    content = _from_base64(lines[0].strip(), _KEY_BYTES) if len(lines) == 1 else None
    if content is None or content[:2] != b"Ed":
        raise BundleError(
            f"{printable(text.strip()[:60])!r} is not a public key of minisign; give the file minisign.pub, or its second line, which begins with RW."
        )
    return PublicKey(content[2:10], content[10:])


def read_signature(path: Path) -> FileSignature:
    """Read a signature file.

    Raises:
        BundleError: it cannot be read, is not one of minisign, or is damaged; the message says in what.
    """
    try:
        lines = read_bounded(path, _MOST_SIGNATURE).decode("utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise _damaged(path, f"it cannot be read ({error})") from error
    if len(lines) != 5 or lines[4]:
        raise _damaged(path, "it does not have four lines")
    if not lines[0].startswith(UNTRUSTED) or lines[0][len(UNTRUSTED) :] not in COMMENTS:
        raise _damaged(path, f"its first line is not '{UNTRUSTED}{COMMENTS[0]}'")
    first = _from_base64(lines[1], _SIGNATURE_BYTES)
    if first is None or first[:2] not in (b"ED", b"Ed"):
        raise _damaged(path, "its second line is not an Ed25519 signature")
    if not lines[2].startswith(TRUSTED):
        raise _damaged(path, f"its third line does not begin with '{TRUSTED}'")
    second = _from_base64(lines[3], 64)
    if second is None:
        raise _damaged(path, "its fourth line is not an Ed25519 signature")
    return FileSignature(first[:2] == b"ED", first[2:10], first[10:], lines[2][len(TRUSTED) :].encode(), second)


def check_signature(path: Path, signature: Path, keys: Sequence[str]) -> str:
    """See that a file was signed with one of the keys, and that neither it nor the signature was changed since.

    Args:
        path: the file.
        signature: its signature file.
        keys: the public keys that are trusted, as ``read_public_key`` takes them.

    Returns:
        The id of the key, as minisign prints it.

    Raises:
        BundleError: the file or the signature was changed, it was signed with another key, or a key is no key.
        BackendUnavailable: nothing on this machine can check Ed25519 signatures.
    """
    found = read_signature(signature)
    trusted = [read_public_key(text) for text in keys]
    named = [each for each in trusted if each.number == found.number]
    if not named:
        raise BundleError(
            f"{signature} was made with the key {key_id(found.number)}, and the trusted ones are {', '.join(each.id for each in trusted) or 'none'}; "
            "do not use the bundle, unless its maker confirms the new key and you give it with `public_key`."
        )
    if not any(_verify(path, signature, found, each) for each in named):
        raise BundleError(
            f"The signature {signature} does not belong to {path.name} as it is now: one of the two was changed, or another key named {named[0].id} "
            "signed it; do not use the bundle, and copy it again from where it was made."
        )
    return named[0].id


def require_trusted(folder: Path, keys: Sequence[str], required: bool) -> str | None:
    """Check the signature over ``SHA256SUMS`` of a bundle, as far as one is asked for.

    Args:
        folder: the bundle.
        keys: the public keys that are trusted here. Where there are any, a bundle without a signature is refused.
        required: whether a signature is asked for in any case.

    Returns:
        The id of the key that signed the bundle; None where there is no key to check it with and none is asked for.

    Raises:
        BundleError: the bundle is not signed, or not by one of the keys, or was changed.
        BackendUnavailable: nothing on this machine can check Ed25519 signatures.
    """
    signature = folder / SIGNATURE
    signed = signature.is_file()
    if keys and not signed:
        raise BundleError(
            f"{folder} is not signed (it has no {SIGNATURE}), and this device takes signed bundles only; sign it with "
            "python -m edge_effdet.deploy --sign, or get the signed one."
        )
    if keys:
        return check_signature(folder / SUMS, signature, keys)
    if required:
        raise BundleError(
            f"`require_signature` is set, and no key is trusted here yet to check {folder} with; give the maker's with `public_key`."
        )
    if signed:
        # Without a key its form is all that can be looked at.
        read_signature(signature)
        logger.warning(
            "the bundle is signed, but no key is trusted here to check that with; give the maker's with `public_key`"
        )
    else:
        logger.warning("the bundle is not signed: its hashes show damage, but not who made it")
    return None


def _verify(path: Path, signature: Path, found: FileSignature, key: PublicKey) -> bool:
    """Whether both signatures of a file are right, by the first way that this machine has."""
    message = _message(path, found)
    pairs = ((found.signature, message), (found.comment_signature, found.signature + found.comment))
    for way in (_by_cryptography, _by_openssl):
        answers = [way(key.point, *pair) for pair in pairs]
        if None not in answers:
            return all(answers)
    answer = _by_minisign(path, signature, key)
    if answer is None:
        raise BackendUnavailable(
            f"Nothing on this machine can check the signature of {path}; install one of openssl (3.0 or newer), minisign and python3-cryptography, "
            "for example by apt install openssl."
        )
    return answer


def _message(path: Path, found: FileSignature) -> bytes:
    """What was signed: the BLAKE2b-512 hash of the file, or the file."""
    try:
        with open(path, "rb") as stream:
            if not found.hashed:
                return read_bounded(path, _MOST_UNHASHED)
            digest = hashlib.blake2b(digest_size=64)
            for block in iter(lambda: stream.read(1 << 20), b""):
                digest.update(block)
            return digest.digest()
    except OSError as error:
        raise BundleError(
            f"{path} cannot be read ({error.strerror}), so its signature cannot be checked; copy it again."
        ) from error
    except ValueError as error:
        raise BundleError(
            f"{path} was signed as a whole and not by its hash, which is not checked where {error}; sign it with minisign -S, or deploy --sign."
        ) from error


def _by_cryptography(point: bytes, signature: bytes, message: bytes) -> bool | None:
    """Whether a signature is right, by the package ``cryptography``; None where it is missing or cannot be used."""
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    # A package of another Python, or one whose libraries are missing, fails in its own ways; a pyo3 panic is no Exception.
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        return None
    try:
        Ed25519PublicKey.from_public_bytes(point).verify(signature, message)
    except InvalidSignature:
        return False
    # Older releases, and libraries that are restricted to other algorithms, have no Ed25519.
    except Exception:
        return None
    return True


def _by_openssl(point: bytes, signature: bytes, message: bytes) -> bool | None:
    """Whether a signature is right, by the program ``openssl``; None where it is missing, older than 3.0, or cannot be used."""
    program = shutil.which("openssl")
    if program is None:
        return None
    try:
        with temporary_folder() as folder:
            names = [folder / each for each in ("key", "signature", "message")]
            for path, content in zip(names, (_SPKI + point, signature, message), strict=True):
                path.write_bytes(content)
            key, signed, text = map(str, names)
            flags = ["-verify", "-pubin", "-keyform", "DER", "-inkey", key, "-rawin", "-sigfile", signed, "-in", text]
            done = subprocess.run([program, "pkeyutl", *flags], capture_output=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    # Another error than a wrong signature, as of a flag that an older one does not know, says nothing of the signature.
    if done.returncode == 0 and b"Verified Successfully" in done.stdout:
        return True
    return False if done.returncode == 1 and b"Verification Failure" in done.stdout else None


def _by_minisign(path: Path, signature: Path, key: PublicKey) -> bool | None:
    """Whether both signatures of a file are right, by the program ``minisign``; None where it is missing or cannot be used."""
    program = shutil.which("minisign")
    if program is None:
        return None
    command = [program, "-V", "-q", "-m", str(path), "-x", str(signature), "-P", key.text]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_SECONDS, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return {0: True, 1: False}.get(done.returncode)


def _from_base64(text: str, length: int) -> bytes | None:
    """The bytes of a text in Base64; None where it is none, of another length, or not how these bytes are written."""
    try:
        content = base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, ValueError):
        return None
    return content if len(content) == length and base64.b64encode(content).decode() == text else None


def _damaged(path: Path, what: str) -> BundleError:
    return BundleError(f"{path} is not a signature of minisign or was changed: {what}; copy it again.")
