"""Whether two runs of ``benchmark`` on one engine agree within the confidence that they state.

python -m benchmarks.agreement --first report/report.json --second again/report.json

Two figures agree where their intervals overlap. For Server the interval is from the rate up to which every try held to the next higher one at which none did.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.machine import save_result
from benchmarks.parser import make_parser
from edge_effdet.benchmarking.baseline import read_report
from edge_effdet.benchmarking.record import Estimate, Row
from edge_effdet.cli import Result, run_verb, table
from edge_effdet.errors import InputError

FIGURES = ("p50_ms", "p90_ms", "p99_ms", "rate")


def compare(first: Row, second: Row) -> list[dict[str, Any]]:
    """Each figure that both rows have, with both intervals and whether they overlap."""
    pairs: list[tuple[str, Estimate | None, Estimate | None]] = [("network, ms", first.network, second.network)]
    for own in first.scenarios:
        other = second.scenario(own.name)
        pairs += [(f"{own.name}, {name}", getattr(own, name), getattr(other, name)) for name in FIGURES if other]
    found = []
    for figure, one, two in pairs:
        if one is not None and two is not None:
            both = [[each.low, each.value, each.high] for each in (one, two)]
            found.append({"figure": figure, "estimates": both, "agrees": one.low <= two.high and two.low <= one.high})
    return found


def _run(arguments: argparse.Namespace) -> Result:
    reports = [read_report(path) for path in (arguments.first, arguments.second)]
    rows = [report.rows[0] for report in reports]
    if rows[0].engine_sha256 != rows[1].engine_sha256 or reports[0].settings.mode != reports[1].settings.mode:
        raise InputError("The reports are of two engines, or of two modes; give two runs that are alike.")
    found = compare(*rows)
    result = {
        "engine_sha256": rows[0].engine_sha256,
        "mode": reports[0].settings.mode,
        "began": [report.created_at for report in reports],
        "figures": found,
        "agree": sum(each["agrees"] for each in found),
    }
    lines = [("figure", "first", "second", "agrees")]
    lines += [
        (
            each["figure"],
            *(f"{value:.1f} ({low:.1f}-{high:.1f})" for low, value, high in each["estimates"]),
            "yes" if each["agrees"] else "no",
        )
        for each in found
    ]
    text = f"{table(lines)}\n\n{result['agree']} of {len(found)} figures agree"
    if arguments.save:
        text += f"\n\n{save_result('benchmark-agreement', result)}"
    return Result(text, result)


def main(argv: Sequence[str] | None = None) -> int:
    parser = make_parser(
        "agreement",
        "Whether two runs of benchmark on one engine agree within the confidence that they state.",
        "--first report/report.json --second again/report.json",
    )
    parser.add_argument("--first", type=Path, required=True, metavar="F", help="the report.json of a run")
    parser.add_argument("--second", type=Path, required=True, metavar="F", help="that of another one")
    parser.add_argument("--save", action=argparse.BooleanOptionalAction, default=True, help="write the result file")
    return run_verb(parser, _run, argv)


if __name__ == "__main__":
    sys.exit(main())
