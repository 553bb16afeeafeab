"""Text files as other programs write them: with or without a byte order mark, in UTF-8, UTF-16 or Windows' code page."""

from __future__ import annotations

import codecs
import json
import stat
from pathlib import Path
from typing import Any

from edge_effdet.errors import DataError
from edge_effdet.runtime.limits import refuse_shortage

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_WINDOWS = "cp1252"


def read_text(file: Path, most: int | None = None) -> str:
    """The text of a file without its byte order mark. See ``decode_text``.

    Args:
        file: the file.
        most: how many bytes it may have; None for any number.

    Raises:
        DataError: the file cannot be read, is too large, or is no text.
    """
    return decode_text(read_content(file, most), file)[0]


def read_content(file: Path, most: int | None = None) -> bytes:
    """The bytes of a file. A pipe or a device is not waited for. Arguments as in ``read_text``.

    Raises:
        DataError: the file cannot be read, is none, or is too large.
        NotEnoughMemory: the system gives no more memory or open files, which says nothing of the file.
    """
    try:
        status = file.stat()
        # Reading would wait for ever, or never end.
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise DataError(f"{file} is a pipe or a device and no file; correct what names it.")
        if most is not None and status.st_size > most:
            raise DataError(
                f"{file} has {status.st_size / 1e6:.1f} MB, and a file of its kind has {most / 1e6:.1f} at most; give the right file."
            )
        return file.read_bytes()
    except OSError as error:
        refuse_shortage(error, file)
        raise DataError(f"{file} cannot be read ({error.strerror or error}); check the file.") from error


def decode_text(content: bytes, file: Path) -> tuple[str, str]:
    """The text of a file's content, and the encoding that it was read in.

    A byte order mark decides. Without one it is UTF-8; UTF-16 where every other byte is 0, as in plain English; and else Windows' code
    page 1252, which most programs of Western Europe and America write.

    Args:
        content: the file's bytes.
        file: the file, for messages.

    Raises:
        DataError: it is none of these; the message names the encoding that was tried.
    """
    tried = next((name for mark, name in _MARKS if content.startswith(mark)), None)
    if tried is None and len(content) >= 4 and 0 in content[:4]:
        tried = "utf-16-be" if content[0] == 0 else "utf-16-le"
    for name in (tried,) if tried is not None else ("utf-8", _WINDOWS):
        try:
            text = content.decode(name)
        except UnicodeDecodeError:
            continue
        if "\x00" not in text:
            return text.replace("\r\n", "\n").replace("\r", "\n"), name
    raise DataError(f"{file} is no text in {tried or 'UTF-8 or Windows code page 1252'}; save it as UTF-8.")


def read_json(file: Path) -> Any:
    """The content of a JSON file in any encoding of ``decode_text``. Raises DataError where it is not whole."""
    try:
        return json.loads(read_text(file))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is not whole JSON ({error}); copy it again.") from error
