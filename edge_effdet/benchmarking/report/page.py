"""The report as one page of HTML that needs nothing else: no network, no script, no font."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from edge_effdet.benchmarking.record import Report
from edge_effdet.benchmarking.report.blocks import Chart
from edge_effdet.benchmarking.report.charts import chart_svg, stage_names
from edge_effdet.benchmarking.report.contents import contents
from edge_effdet.benchmarking.report.figures import shown, terminal_lines
from edge_effdet.benchmarking.report.sketch import DASHES, MARKERS, MOST_NAMED
from edge_effdet.benchmarking.report.svg import ROW_COLORS, STAGE_COLORS
from edge_effdet.errors import MissingDependency

_TEMPLATE = Path(__file__).with_name("page.html.jinja")
_HASH = re.compile(r"\b[0-9a-f]{64}\b")
_INTERVAL = re.compile(r"(.*\d) (\([^()]*\d\))(.*)")

_SHAPES = {
    "o": "M11 6a5 5 0 1 0 10 0a5 5 0 1 0-10 0z",
    "s": "M11.5 1.5h9v9h-9z",
    "^": "M16 .5l5.5 10.5h-11z",
    "D": "M16 0l6 6l-6 6l-6-6z",
    "v": "M16 11.5l5.5-10.5h-11z",
    "P": "M14 1h4v3h3v4h-3v3h-4v-3h-3v-4h3z",
    "X": "M13 .5l3 3l3-3l2.5 2.5l-3 3l3 3l-2.5 2.5l-3-3l-3 3l-2.5-2.5l3-3l-3-3z",
    "p": "M16 .5l5.7 4.2l-2.2 6.6h-7l-2.2-6.6z",
}
"""The markers of the charts, as paths for the legend."""


def page_text(report: Report) -> str:
    """The report as HTML. Names in it are escaped, and control characters are written as ``\\x1b``.

    Raises:
        MissingDependency: Jinja2 or matplotlib is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
        from markupsafe import Markup, escape
    except ModuleNotFoundError as error:
        raise MissingDependency("jinja2", "benchmark", "to write a report as a page") from error

    def cell(text: str) -> Markup:
        """A cell of a table, in which the interval of a figure has an element of its own, by which it is set smaller."""
        found = _INTERVAL.fullmatch(shown(text))
        return Markup('{} <span class="interval">{}</span>{}').format(*found.groups()) if found else hashes(text)

    def hashes(text: str) -> Markup:
        """A text in which each hash has an element of its own, by which it may be broken anywhere."""
        return Markup(_HASH.sub(lambda digest: f'<code class="hash">{digest[0]}</code>', str(escape(shown(text)))))

    def terminal(text: str) -> Markup:
        """Lines for a terminal, of which a further line of a command keeps its indent."""
        return Markup("\n").join(terminal_lines(text))

    def svg(chart: Chart, prefix: str) -> Markup:
        return Markup(chart_svg(report, chart, prefix))

    # A chart's figures need no escaping; all else that the template writes is shown on one line first.
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: value if isinstance(value, Markup) else shown(str(value)),
    )
    environment.filters |= {
        "cell": cell,
        "hashes": hashes,
        "terminal": terminal,
        "kind": lambda block: type(block).__name__,
    }
    template = environment.from_string(_TEMPLATE.read_text(encoding="utf-8"))
    whole = contents(report)
    return template.render(
        whole=whole,
        svg=svg,
        most_named=MOST_NAMED,
        legends={"rows": _row_legend(report), "stages": _stage_legend(report), "": ()},
    )


def _row_legend(report: Report) -> tuple[dict[str, Any], ...]:
    return tuple(
        {
            "name": row.name,
            "color": index % ROW_COLORS + 1,
            "path": _SHAPES[MARKERS[index % len(MARKERS)]],
            "dashes": _dashes(DASHES[index % len(DASHES)]),
        }
        for index, row in enumerate(report.rows)
        if row.quality
    )


def _dashes(style: Any) -> str:
    """Matplotlib's style of a line as SVG has it; its lengths are in widths of the line, which is two pixels."""
    return "" if isinstance(style, str) else " ".join(f"{2 * length:g}" for length in style[1])


def _stage_legend(report: Report) -> tuple[dict[str, Any], ...]:
    return tuple({"name": name, "color": index % STAGE_COLORS + 1} for index, name in enumerate(stage_names(report)))
