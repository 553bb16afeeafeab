"""A program that does wrong in one way by each of its words, and one that does not, to see that the matrix finds what it is there to find."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from edge_effdet.artifacts import write_json

CONTENT = {"numbers": list(range(6000))}
OUTPUT = Path("out", "a.json")
READ = Path("in", "clip.mp4")


def write_well() -> None:
    write_json(OUTPUT, CONTENT)


def write_in_place() -> None:
    with OUTPUT.open("w") as stream:
        json.dump(CONTENT, stream)


def leave_something() -> None:
    write_well()
    Path("tmp", f"left-{os.getpid()}").touch()


def change_what_is_read() -> None:
    write_well()
    with READ.open("ab") as stream:
        stream.write(b"more")


def raise_an_error() -> None:
    raise RuntimeError("a mistake of the program")


def hang() -> None:
    time.sleep(600)


def leave_a_process() -> None:
    write_well()
    subprocess.Popen(["sleep", "600"])


def forget_to_write() -> None:
    """End well without the output, if there is no room."""
    try:
        write_well()
    except Exception:
        print("it does not matter")


def write_by_native_code() -> None:
    """By the streams of C, by SQLite, and by a copy inside the kernel."""
    libc = ctypes.CDLL(None)
    libc.fopen.restype = ctypes.c_void_p
    stream = ctypes.c_void_p(libc.fopen(b"out/stream", b"w"))
    libc.fwrite(b"content", ctypes.c_size_t(1), ctypes.c_size_t(7), stream)
    libc.fclose(stream)
    with sqlite3.connect("out/base.sqlite") as base:
        base.execute("CREATE TABLE numbers (number)")
    base.close()
    shutil.copyfile(READ, "out/copy")


_WAYS: dict[str, Callable[[], None]] = {
    each.__name__: each
    for each in (
        write_well, write_in_place, leave_something, change_what_is_read, raise_an_error, hang, leave_a_process, forget_to_write,
        write_by_native_code,
    )
}  # fmt: skip


def main(words: Sequence[str]) -> int:
    try:
        _WAYS[words[0]]()
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        if words[0] == "raise_an_error":
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0
