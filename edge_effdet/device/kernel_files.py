"""Reading what the kernel and the system tell in small files. A file that cannot be read tells nothing."""

from __future__ import annotations

import os
import re
from pathlib import Path

_FIELD = re.compile(r"([^:= ]+)\s*[:= ]\s*(.*)")


def read_text(path: Path | str) -> str | None:
    """The content without the white space around it; None where the file is missing, unreadable or has nothing to say now.

    A sensor that is powered off answers with an error, which ``os.read`` raises as an OSError and Python's file objects do not always.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        parts = []
        while part := os.read(descriptor, 1 << 16):
            parts.append(part)
    except OSError:
        return None
    finally:
        os.close(descriptor)
    # Texts of a device tree end with a zero byte.
    return b"".join(parts).decode(errors="replace").strip("\0 \n\t")


def read_number(path: Path | str) -> float | None:
    """The number that is the content; None where there is none."""
    text = read_text(path)
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def read_fields(path: Path | str) -> dict[str, str]:
    """Lines of a name and a value, with a colon, an equals sign or a space between them; the last of two equal names counts."""
    found = (_FIELD.match(line) for line in (read_text(path) or "").splitlines())
    return {each[1]: each[2].strip().strip('"') for each in found if each}
