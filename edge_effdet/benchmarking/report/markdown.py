"""The report as Markdown, in GitHub's dialect: what the page shows, with the figures of the charts in place of the charts."""

from __future__ import annotations

import re
from collections.abc import Iterable

from edge_effdet.benchmarking.record import Report
from edge_effdet.benchmarking.report.blocks import Block, Bullets, Chart, Command, Facts, Grid, Picture, Prose
from edge_effdet.benchmarking.report.contents import contents
from edge_effdet.benchmarking.report.figures import shown, terminal_lines

_SIGNS = re.compile(r"[\\`*\[\]{}|~$]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])|://|(?<![\w.])www\.|@(?=\w)")
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_LINE_START = re.compile(r"^(?:[-+#=](?=\s|[-+#=]|$)|(\d+)([.)])(?=\s|$))")


def markdown_text(report: Report) -> str:
    """The report as Markdown. Names in it are escaped: they format nothing, and no HTML and no control character is left of them."""
    whole = contents(report)
    lines = [
        f"# Benchmark of {escaped(whole.title)}",
        "",
        *_bullets(whole.lines),
        "",
        *(f"> **{escaped(text)}**" for text in whole.verdict),
    ]
    if whole.alerts:
        lines += ["", *(f"- **Mind:** {escaped(text)}." for text, _ in whole.alerts)]
    for section in whole.sections:
        lines += ["", f"## {escaped(section.title)}"]
        for block in section.blocks:
            own = _lines(block)
            lines += ["", *own] if own else []
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """A text that stands at the start of a line and in which nothing has a meaning in Markdown or HTML, on one line."""
    return _LINE_START.sub(lambda found: f"{found[1]}\\{found[2]}" if found[1] else f"\\{found[0]}", _cell(text))


def _cell(text: str) -> str:
    line = "".join(_HTML.get(letter, letter) for letter in shown(text))
    # An entity, and not a backslash, where GitHub would make a link or a mention of what follows.
    return _SIGNS.sub(
        lambda found: {"://": "&#58;//", "www.": "www&#46;", "@": "&#64;"}.get(found[0], f"\\{found[0]}"), line
    )


def _lines(block: Block) -> list[str]:
    match block:
        case Prose(text, _, title):
            return [*([f"### {escaped(title)}", ""] if title else []), escaped(text)]
        case Bullets(items, numbered, title):
            start = [f"**{escaped(title)}**", ""] if title else []
            return [*start, *(_numbered(items) if numbered else _bullets(items))]
        case Facts(title, items):
            start = [f"### {escaped(title)}", ""] if title else []
            return [*start, *(f"- **{escaped(name)}:** {escaped(value)}" for name, value in items)]
        case Command(text):
            return _fenced(text)
        case Picture(_, alt, caption):
            return [f"- {escaped(caption)} {escaped(alt)} The page has the picture."]
        case Chart():
            return _table(block.figures) if block.figures else []
        case Grid():
            return _table(block)


def _bullets(items: Iterable[str]) -> list[str]:
    return [f"- {escaped(item)}" for item in items]


def _numbered(items: Iterable[str]) -> list[str]:
    return [f"{number}. {escaped(item)}" for number, item in enumerate(items, 1)]


def _fenced(text: str) -> list[str]:
    lines = terminal_lines(text)
    fence = "`" * max(3, 1 + max((len(run) for line in lines for run in re.findall("`+", line)), default=0))
    return [f"{fence}sh", *lines, fence]


def _table(grid: Grid) -> list[str]:
    """A table. The names above several columns go before those of the columns, which Markdown has no other place for."""
    names = [name for name, width in grid.groups for _ in range(width)] or [""] * len(grid.head)
    head = [
        f"{_cell(above)}: {_cell(name)}" if above else _cell(name) for above, name in zip(names, grid.head, strict=True)
    ]
    rule = ["---:" if index in grid.numbers else "---" for index in range(len(head))]
    lines = [f"**{_cell(grid.caption)}**", "", _row(head), _row(rule)]
    for index, row in enumerate(grid.rows):
        cells = [_cell(cell) for cell in row] + [""] * (len(head) - len(row))
        if index == grid.picked:
            cells[0] = f"**{cells[0]} (the pick)**"
        lines.append(_row(cells))
    return lines


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
