"""Text files as other programs write them: with or without a byte order mark, in UTF-8, UTF-16 or Windows' code page."""

from __future__ import annotations

import codecs
import json
from pathlib import Path
from typing import Any

from edge_effdet.errors import DataError

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_WINDOWS = "cp1252"


def read_text(file: Path) -> str:
    """The text of a file without its byte order mark. See ``decode_text``.

    Raises:
        DataError: the file cannot be read, or is no text.
    """
    try:
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file} cannot be read ({error.strerror or error}); check the file.") from error
    return decode_text(content, file)[0]


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
