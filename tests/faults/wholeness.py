"""Whether a file that a command left under a final name is whole: it can be read to its end, and what it says of itself is right."""

from __future__ import annotations

import json
import re
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import onnx
from PIL import Image

from edge_effdet.artifacts import engine_json_path, load_engine
from edge_effdet.device.manifest import SUMS, read_bundle
from edge_effdet.errors import EdgeEffDetError

_NUMBERS = re.compile(rb"[0-9a-f]*[0-9][0-9a-f]*")


def find_damage(path: Path, like: bytes | None) -> str:
    """What is wrong with a file; empty where it is whole.

    Args:
        path: the file.
        like: the content of the same file after a run that nothing hampered; None where there is no such file.
    """
    try:
        check = _check_bundle if path.name == SUMS else _CHECKS.get(path.suffix)
        if check is not None:
            check(path)
        elif path.suffix == ".md":
            if like is not None and _outline(path.read_bytes()) != _outline(like):
                return "has other headings than that of a run that nothing hampered, or ends in the middle"
        elif like is not None and _without_numbers(path.read_bytes()) != _without_numbers(like):
            return "differs from the file of a run that nothing hampered"
    except EdgeEffDetError as error:
        return str(error)
    except Exception as error:
        # Whatever a library raises of a file, the file is not whole.
        return f"{type(error).__name__}: {error}"
    return ""


def _without_numbers(content: bytes) -> bytes:
    """A text without what differs from run to run: hashes, times, sizes."""
    return _NUMBERS.sub(b"0", content)


def _outline(content: bytes) -> list[bytes]:
    """The headings of a Markdown text, and whether its last line ends. What stands between them tells of the machine, its load and its names of files."""
    lines = content.splitlines(keepends=True)
    return [*(_without_numbers(line) for line in lines if line.startswith(b"#")), lines[-1][-1:] if lines else b""]


def _check_graph(path: Path) -> None:
    if engine_json_path(path).exists():
        load_engine(path)
    else:
        onnx.checker.check_model(onnx.load(path))


def _check_json(path: Path) -> None:
    json.loads(path.read_text(encoding="utf-8"))
    described = path.with_suffix("")
    if described.suffix == ".onnx":
        load_engine(described)


def _check_lines(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if text and not text.endswith("\n"):
        raise ValueError("its last line has no end")
    for line in text.splitlines():
        json.loads(line)


def _check_weights(path: Path) -> None:
    from safetensors.torch import load

    from edge_effdet.models.checkpoint import open_checkpoint, tensors_sha256
    from edge_effdet.training.resume import FILE_NAME, load_progress

    if path.name == FILE_NAME:
        load_progress(path.parent)
        return
    open_checkpoint(path)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    metadata = json.loads(content[8 : 8 + length])["__metadata__"]
    said = next(json.loads(text) for text in metadata.values() if "tensors_sha256" in text)
    if tensors_sha256(load(content)) != said["tensors_sha256"]:
        raise ValueError("its tensors have another hash")


def _check_picture(path: Path) -> None:
    with Image.open(path) as picture:
        picture.load()


def _check_video(path: Path) -> None:
    import av

    with av.open(str(path)) as container:
        if not list(container.decode(video=0)):
            raise ValueError("it has no frame")


def _check_archive(path: Path) -> None:
    with tarfile.open(path) as archive:
        for member in archive:
            stream = archive.extractfile(member) if member.isfile() else None
            if stream is not None:
                stream.read()


def _check_wheel(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        if archive.testzip():
            raise ValueError("a file in it is damaged")


def _check_bundle(path: Path) -> None:
    read_bundle(path.parent)


def _check_page(path: Path) -> None:
    if not path.read_text(encoding="utf-8").rstrip().endswith("</html>"):
        raise ValueError("it has no end")


_CHECKS: dict[str, Callable[[Path], object]] = {
    ".gz": _check_archive,
    ".html": _check_page,
    ".jpg": _check_picture,
    ".json": _check_json,
    ".jsonl": _check_lines,
    ".mp4": _check_video,
    ".onnx": _check_graph,
    ".png": _check_picture,
    ".safetensors": _check_weights,
    ".whl": _check_wheel,
    ".xml": ElementTree.parse,
}
