"""Matplotlib's SVG made fit for a page: without ids of its own, with the page's colours and fonts."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping

_STANDS_FOR = {
    "#000001": "currentColor",
    "#000002": "var(--muted)",
    "#000003": "var(--line)",
    "#000004": "var(--surface)",
    "#000005": "var(--accent)",
    "#000006": "var(--shade-dark)",
    "#000007": "var(--shade-light)",
}
INK, MUTED, LINE, SURFACE, ACCENT, SHADE_DARK, SHADE_LIGHT = _STANDS_FOR
"""Colours to draw with. Each stands for one of the page's, which differ between light and dark."""

ROW_COLORS = 8
"""The page has so many colours for engines."""

STAGE_COLORS = 6
"""The page has so many colours for stages."""

PRECISIONS = ("fp32", "fp16", "bf16", "int8", "")
"""The precisions that have a colour of their own; the last is that of all others."""


def row_color(index: int) -> str:
    """The colour of the engine with this index."""
    return f"#0001{index % ROW_COLORS + 1:02x}"


def stage_color(index: int) -> str:
    """The colour of a stage."""
    return f"#0002{index % STAGE_COLORS + 1:02x}"


def stage_ink(index: int) -> str:
    """The colour of text that lies on a stage's colour."""
    return f"#0003{index % STAGE_COLORS + 1:02x}"


def precision_color(precision: str) -> str:
    """The colour of a layer of this precision."""
    return f"#0004{PRECISIONS.index(precision if precision in PRECISIONS else ''):02x}"


_STANDS_FOR |= {row_color(index): f"var(--row-{index + 1})" for index in range(ROW_COLORS)}
_STANDS_FOR |= {stage_color(index): f"var(--stage-{index + 1})" for index in range(STAGE_COLORS)}
_STANDS_FOR |= {stage_ink(index): f"var(--stage-{index + 1}-ink)" for index in range(STAGE_COLORS)}
_STANDS_FOR |= {precision_color(each): f"var(--{each or 'other'})" for each in PRECISIONS}

_COLOR = re.compile(r"#000[0-4][0-9a-f]{2}")
_NUMBER = re.compile(r"-?\d+\.\d{3,}")
_FONT = re.compile(r"font-family: [^;]*;? ?")
_REFERENCE = re.compile(r"#([\w.:-]+)")
_HREF = "{http://www.w3.org/1999/xlink}href"


def inline_svg(drawn: str, prefix: str, label: str, width: int, classes: str) -> str:
    """An SVG element for a page, from the file that matplotlib wrote.

    Args:
        drawn: the file's text, with text that is text and with the colours of this module.
        prefix: what each id that is left begins with, so that no two charts share one.
        label: what the chart shows, for those who cannot see it.
        width: the width in pixels at which its text has its own size.
        classes: the classes of the element.
    """
    root = ET.fromstring(drawn)
    box = root.get("viewBox", "")
    for element in list(root):
        # The metadata say nothing here, and the style would apply to the whole page; the page has it for its charts alone.
        if element.tag.endswith(("}metadata", "}defs")) and element.find("{*}clipPath") is None:
            root.remove(element)
    # Numbers, since matplotlib's own ids hash places whose last bits differ from one run to the next.
    used = dict.fromkeys(name for element in root.iter() for name in _references(element))
    ids = {name: f"{prefix}-{number}" for number, name in enumerate(used, 1)}
    for element in root.iter():
        _tidy(element, ids)
    root.attrib.clear()
    attributes = {
        "viewBox": box,
        "role": "img",
        "aria-label": label,
        "class": classes,
        "style": f"--natural: {width}px",
    }
    root.attrib.update(attributes)
    return ET.tostring(root, encoding="unicode")


def _references(element: ET.Element) -> list[str]:
    named = [element.get(_HREF, ""), element.get("clip-path", "")]
    return [found for text in named for found in _REFERENCE.findall(text)]


def _tidy(element: ET.Element, ids: Mapping[str, str]) -> None:
    element.tag = element.tag.rpartition("}")[2]
    name = element.attrib.pop("id", None)
    if name and name in ids:
        element.set("id", ids[name])
    target = element.attrib.pop(_HREF, None)
    if target:
        element.set("href", f"#{ids[target[1:]]}")
    if "clip-path" in element.attrib:
        element.set("clip-path", _REFERENCE.sub(lambda found: f"#{ids[found[1]]}", element.attrib["clip-path"]))
    style = element.get("style")
    if style:
        style = _FONT.sub("", style)
        element.set("style", _COLOR.sub(lambda found: _STANDS_FOR.get(found[0], found[0]), style))
    for key in ("d", "x", "y", "transform", "width", "height"):
        if key in element.attrib:
            # A hundredth of a pixel cannot be seen.
            text = _NUMBER.sub(lambda found: f"{float(found[0]):.2f}", element.attrib[key])
            element.set(key, " ".join(text.split()))
    if element.tag != "text" and element.text and not element.text.strip():
        element.text = None
    if element.tail and not element.tail.strip():
        element.tail = None
