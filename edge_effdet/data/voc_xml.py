"""One XML file of Pascal VOC: its encoding, its objects, and the lines that they stand in."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from edge_effdet.artifacts import Size
from edge_effdet.data.base import Problem
from edge_effdet.data.raw import RawBox
from edge_effdet.data.text import decode_text, read_content
from edge_effdet.errors import DataError

_SIDES = ("xmin", "ymin", "xmax", "ymax")
_OTHER_SHAPES = ("polygon", "robndbox", "segmentation", "cyclic", "mask")
_HEAD = 4096
_FIRST_ELEMENT = re.compile(rb"<([A-Za-z_][\w.:-]*)")
_COMMENT = re.compile(rb"<!--.*?-->", re.DOTALL)
_DECLARED_ENCODING = re.compile(rb"""^\s*<\?xml[^>]*?encoding\s*=\s*["']([\w.:-]+)["']""")


@dataclass(slots=True)
class Annotation:
    """What a file says of its picture.

    Attributes:
        xml: the file.
        filename: the picture's name; empty where there is none.
        size: the picture's height and width; None where there is none.
        database, owner, path: what the file says of the data set, its owner and the picture's place; programs are known by that.
        boxes: the boxes of its objects.
        rejected: how many objects could not be understood.
    """

    xml: Path
    filename: str
    size: Size | None
    database: str
    owner: str
    path: str
    boxes: list[RawBox] = field(default_factory=list)
    rejected: int = 0


def read_annotation(xml: Path, problems: list[Problem]) -> Annotation | None:
    """Read a file.

    Args:
        xml: the file.
        problems: gets what is wrong in it.

    Returns:
        The annotation; None where the file is not whole or is no file of VOC's. Its picture is not background then.
    """
    try:
        text, skipped = _read_text(xml)
    except DataError as error:
        problems.append(Problem("encoding", f"{xml}:1", f"skipped, because {error}"))
        return None
    try:
        root = ElementTree.fromstring(text)
    except ElementTree.ParseError as error:
        reason = f"skipped {xml.name}: it is not whole XML ({expat.ErrorString(error.code)})"
        problems.append(Problem("bad_row", f"{xml}:{error.position[0] + skipped}", reason))
        return None
    if root.tag.lower() != "annotation":
        reason = f"skipped {xml.name}: its first element is <{root.tag}> and not VOC's <annotation>"
        problems.append(Problem("bad_row", f"{xml}:1", reason))
        return None
    annotation = Annotation(
        xml,
        _text_of(root, "filename"),
        _declared_size(root),
        _text_of(root, "source/database"),
        _text_of(root, "owner/name"),
        _text_of(root, "path"),
    )
    lines = _Lines(xml)
    for position, item in enumerate(root.iter("object")):
        boxes = _boxes(item, _Place(lines, position))
        if isinstance(boxes, str):
            text = f"skipped object {position + 1} of {xml.name}: {boxes}"
            problems.append(Problem("bad_row", lines.place(position), text))
            annotation.rejected += 1
        else:
            annotation.boxes += boxes
    return annotation


def first_element(xml: Path) -> str:
    """The name of the first element of an XML file, in lower case; empty where there is none in its head."""
    try:
        with open(xml, "rb") as stream:
            # Without its zeros UTF-16 reads like ASCII.
            head = _COMMENT.sub(b"", stream.read(_HEAD).replace(b"\0", b""))
    except OSError:
        return ""
    found = _FIRST_ELEMENT.search(head)
    return found[1].decode("ascii", "replace").lower() if found else ""


class _Lines:
    """The lines of the objects of an XML file, which are read when they are asked for."""

    __slots__ = ("_lines", "_xml")

    def __init__(self, xml: Path) -> None:
        self._xml = xml
        self._lines: list[int] = []

    def place(self, position: int) -> str:
        """``file:line`` of an object."""
        if not self._lines:
            self._lines = _object_lines(self._xml)
        return f"{self._xml}:{self._lines[position]}"


@dataclass(frozen=True, slots=True)
class _Place:
    lines: _Lines
    position: int

    def __call__(self) -> str:
        return self.lines.place(self.position)


def _object_lines(xml: Path) -> list[int]:
    """The line of each object, which ElementTree does not tell."""
    text, skipped = _read_text(xml)
    parser = expat.ParserCreate()
    lines: list[int] = []

    def start(tag: str, _: dict[str, str]) -> None:
        if tag == "object":
            lines.append(parser.CurrentLineNumber + skipped)

    parser.StartElementHandler = start
    parser.Parse(text, True)
    return lines


def _read_text(xml: Path) -> tuple[str, int]:
    """The text of a file, and how many lines before its beginning are left out, where XML allows none.

    The declared encoding counts only where the content is neither UTF-8 nor UTF-16: programs write declarations that are not true.

    Raises:
        DataError: the file cannot be read, or is no text.
    """
    content = read_content(xml)
    text = _decode_as_declared(content)
    if text is None:
        text = decode_text(content, xml)[0]
    begun = text.lstrip()
    return begun, text.count("\n", 0, len(text) - len(begun))


def _decode_as_declared(content: bytes) -> str | None:
    declared = _DECLARED_ENCODING.search(content[:_HEAD])
    if declared is None or declared[1].lower().startswith(b"utf"):
        return None
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        try:
            return content.decode(declared[1].decode("ascii"))
        except (LookupError, UnicodeDecodeError):
            return None
    return None


def _text_of(element: ElementTree.Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _declared_size(root: ElementTree.Element) -> Size | None:
    """Height and width that a file gives for its picture. Some programs write 0 where they do not know."""
    try:
        height, width = (int(float(root.findtext(f"size/{side}", ""))) for side in ("height", "width"))
    except (ValueError, OverflowError):
        return None
    return (height, width) if height > 0 and width > 0 else None


def _boxes(item: ElementTree.Element, place: _Place) -> list[RawBox] | str:
    """The boxes of an object, most often one, or what is wrong with it.

    Corners stay as they are written: Pascal VOC's own files count pixels from 1, most others from 0, and no file tells which.
    """
    name = _text_of(item, "name")
    if not name:
        return "it has no name"
    written = item.findall("bndbox")
    if not written:
        other = next((child.tag for child in item if child.tag in _OTHER_SHAPES), None)
        return f"{name} has no bndbox{f' but a {other}, which is not read' if other else ''}"
    ignore = _text_of(item, "difficult").lower() in ("1", "true")
    try:
        # By their names, because Roboflow writes xmax before ymin.
        corners = [tuple(float(box.findtext(side, "")) for side in _SIDES) for box in written]
    except ValueError:
        return f"{name} has a box that is not four numbers"
    return [RawBox((x_min, y_min, x_max, y_max), name, ignore, place) for x_min, y_min, x_max, y_max in corners]
