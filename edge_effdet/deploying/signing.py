"""Keys and signatures in the format of minisign, on the host.

The package ``py-minisign`` reads and writes the files, and ``cryptography`` below it signs. What is signed here is checked on a device by
``device.signature``, and by the program ``minisign`` wherever that is; keys that the program made are read here.

``python -m edge_effdet.deploying.signing --output keys`` makes a key pair where the program is not at hand.
"""

from __future__ import annotations

import argparse
import getpass
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_effdet.artifacts import atomic_output, require_writable
from edge_effdet.artifacts.files import sync_file, writing_failed
from edge_effdet.artifacts.temporary import temporary_file
from edge_effdet.cli import Result, add_switch, make_parser, run_verb
from edge_effdet.device.signature import UNTRUSTED, key_id, read_public_key
from edge_effdet.errors import BundleError, InputError, MissingDependency, UsageError, first_line

PASSWORD = "EDGE_EFFDET_KEY_PASSWORD"
"""The environment variable that the password of a secret key is taken from, before anybody is asked for it."""

SECRET_KEY, PUBLIC_KEY = "minisign.key", "minisign.pub"

_OPSLIMIT, _MEMLIMIT = 1 << 25, 1 << 30
"""How much work and memory scrypt takes for a password: libsodium's limits "sensitive", which minisign writes."""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A secret key that is ready to sign.

    Attributes:
        public: the public key that belongs to it, as ``signature.read_public_key`` takes it.
        secret: the key as ``py-minisign`` holds it.
    """

    public: str
    secret: Any = field(repr=False)


def read_secret_key(path: Path, password: str | None = None) -> SigningKey:
    """Read a secret key that minisign or ``make_keys`` wrote.

    Args:
        path: the file.
        password: its password. Without one it comes from the environment variable ``EDGE_EFFDET_KEY_PASSWORD``, else a terminal asks for it.

    Raises:
        InputError: the file is not there, is no secret key, or has another password.
        UsageError: it has a password, and there is neither the variable nor a terminal.
        MissingDependency: ``py-minisign`` is not installed.
    """
    minisign = _library()
    try:
        secret = minisign.SecretKey.from_file(path)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read as a secret key of minisign ({first_line(error)}); give the file that minisign -G wrote, as {SECRET_KEY}."
        ) from error
    if secret.is_encrypted():
        given = _password(path) if password is None else password
        try:
            secret.decrypt(given)
        except (MemoryError, ValueError) as error:
            reason = "it takes 1 GiB of free memory" if isinstance(error, MemoryError) else first_line(error)
            raise InputError(f"{path} could not be opened with its password ({reason}); check {PASSWORD}.") from error
    key = SigningKey(secret.get_public_key().to_base64().decode("ascii"), secret)
    # The checksum of a key without a password is not checked by anything, and minisign writes none.
    try:
        secret.get_public_key().verify(b"", secret.sign(b""))
    except ValueError as error:
        raise InputError(
            f"{path} is damaged: what it signs does not fit its own public half; restore it from a copy."
        ) from error
    return key


def read_public_keys(path: Path) -> tuple[str, ...]:
    """The public keys in a file, each as one line of Base64: one file of minisign, or several after one another.

    Raises:
        InputError: the file cannot be read.
        BundleError: a line is no public key, or there is no key.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} cannot be read as public keys ({first_line(error)}); give a file like {PUBLIC_KEY}."
        ) from error
    keys = [read_public_key(line).text for line in lines if line and not line.startswith(UNTRUSTED.strip())]
    if not keys:
        raise BundleError(f"{path} has no public key; give a file like {PUBLIC_KEY}, which minisign -G writes.")
    return tuple(dict.fromkeys(keys))


def sign_file(path: Path, key: SigningKey) -> Path:
    """Sign the BLAKE2b-512 hash of a file.

    Args:
        path: the file.
        key: with which.

    Returns:
        The signature file ``<path>.minisig``. An earlier one is replaced.

    Raises:
        InputError: the file cannot be read, or the signature not be written.
    """
    try:
        signature = key.secret.sign_file(path, prehash=True)
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} could not be signed: {first_line(error)}; give it a name in plain ASCII and read access."
        ) from error
    target = path.with_name(f"{path.name}.minisig")
    with atomic_output(target) as temporary:
        temporary.write_bytes(bytes(signature) + b"\n")
    return target


def make_keys(folder: Path, password: str | None) -> SigningKey:
    """Make a key pair: ``minisign.key``, which only its owner may read, and ``minisign.pub``.

    Args:
        folder: where they are written. Keys that are there already stay.
        password: encrypts the secret key by scrypt; None leaves it open, for whoever reads the file.

    Raises:
        UsageError: one of the files is there already.
        InputError: the folder cannot be written.
        MissingDependency: ``py-minisign`` is not installed.
    """
    minisign = _library()
    secret_path, public_path = folder / SECRET_KEY, folder / PUBLIC_KEY
    for path in (secret_path, public_path):
        if os.path.lexists(path):
            raise UsageError(f"{path} is there already, and a key is never overwritten; give another `output`.")
    require_writable(folder)
    pair = minisign.KeyPair.generate()
    number = key_id(read_public_key(pair.public_key.to_base64().decode("ascii")).number)
    # As minisign words it; the package has the bytes of the id in another order.
    pair.public_key.untrusted_comment = f"minisign public key {number}"
    public = pair.public_key.to_base64().decode("ascii")
    # The key that is returned stays open.
    written = minisign.SecretKey.from_bytes(bytes(pair.secret_key))
    written.untrusted_comment = "minisign encrypted secret key" if password is not None else "minisign secret key"
    if password is not None:
        written.encrypt(password, opslimit=_OPSLIMIT, memlimit=_MEMLIMIT)
    try:
        with temporary_file(folder, 0o600) as temporary:
            temporary.write_bytes(bytes(written) + b"\n")
            sync_file(temporary)
            _name_new(temporary, secret_path)
    except OSError as error:
        raise writing_failed(secret_path, error) from error
    try:
        with atomic_output(public_path) as temporary:
            temporary.write_bytes(bytes(pair.public_key) + b"\n")
    except BaseException:
        secret_path.unlink()
        raise
    return SigningKey(public, pair.secret_key)


def _name_new(temporary: Path, path: Path) -> None:
    """Give a file its name. Unlike a rename this replaces no file, not even one that came meanwhile; raises FileExistsError."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:
        # FAT has no links.
        os.replace(temporary, path)


def _library() -> Any:
    try:
        import minisign

        # Another package has the same module.
        _ = minisign.SecretKey, minisign.KeyPair
    except (ModuleNotFoundError, AttributeError) as error:
        raise MissingDependency("py-minisign", "deploy", "to sign bundles") from error
    return minisign


def _password(path: Path) -> str:
    """The password of a key, from the environment or from the person at the terminal."""
    given = os.environ.get(PASSWORD)
    if given is not None:
        return given
    if not sys.stdin.isatty():
        raise UsageError(
            f"{path} has a password, and there is no terminal to ask for it; set the environment variable {PASSWORD}."
        )
    return getpass.getpass(f"password of {path}: ")


def _run(arguments: argparse.Namespace) -> Result:
    password = None
    if arguments.password:
        password = _password(arguments.output / SECRET_KEY)
        if PASSWORD not in os.environ and getpass.getpass("once more: ") != password:
            raise UsageError("The two passwords differ; try again.")
    key = make_keys(arguments.output, password)
    secret, public = arguments.output / SECRET_KEY, arguments.output / PUBLIC_KEY
    text = (
        f"{secret}: keep it secret, and keep a copy; deploy takes it by --sign\n"
        f"{public}: give it to the devices; install takes it by --public-key\n\n{key.public}"
    )
    return Result(
        text,
        {"secret_key": str(secret), "public_key": str(public), "key": key.public, "id": read_public_key(key.public).id},
    )


def make_argument_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "deploying.signing",
        "Make a key pair in minisign's format, to sign bundles with.",
        "python -m edge_effdet.deploying.signing --output keys",
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="DIR",
        help=f"write {SECRET_KEY} and {PUBLIC_KEY} into this folder",
    )
    add_switch(
        parser, "--password", True, f"encrypt the secret key with the password in {PASSWORD}, or one that is asked for"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    return run_verb(make_argument_parser(), _run, argv)


if __name__ == "__main__":
    sys.exit(main())
