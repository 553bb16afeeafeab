"""The verb ``benchmark``: how fast and how good engines are on this machine, as a report, by ``benchmarking.stage``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from edge_effdet.artifacts.reading import to_json
from edge_effdet.benchmarking.options import BenchmarkConfig
from edge_effdet.benchmarking.record import Estimate, Report, Row
from edge_effdet.benchmarking.report.figures import shown
from edge_effdet.benchmarking.stage import FILES, benchmark_engines
from edge_effdet.cli import Result, add_options, make_parser, options_from, run_verb, table
from edge_effdet.errors import RegressionFound


def make_argument_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "benchmark",
        "How fast and how good engines are on this machine: latency under four kinds of load, AP of the same files, where the time goes, "
        "and a verdict, as a report.",
        "python -m edge_effdet.benchmark --engine engines/bccd.fp32.onnx --engine engines/bccd.int8.onnx --data bccd --output report",
    )
    parser.add_argument(
        "--engine", type=Path, action="append", required=True, metavar="F",
        help="an engine that build_engine wrote; given several times, the engines take turns",
    )  # fmt: skip
    effort = parser.add_mutually_exclusive_group()
    effort.add_argument(
        "--quick",
        dest="mode",
        action="store_const",
        const="quick",
        default="quick",
        help="measure for about a minute an engine (default)",
    )
    effort.add_argument(
        "--full",
        dest="mode",
        action="store_const",
        const="full",
        default="quick",
        help="measure for seven minutes an engine or more, until the 99th percentiles are known",
    )
    add_options(parser, BenchmarkConfig)
    return parser


def _run(arguments: argparse.Namespace) -> Result:
    config = options_from(BenchmarkConfig, arguments)
    report = benchmark_engines(arguments.engine, config)
    written = ", ".join(FILES)
    return Result(
        f"{report_text(report)}\n\nwritten to {config.output}: {written}",
        _without_pictures(report),
        _failure(report, config),
    )


def _failure(report: Report, config: BenchmarkConfig) -> RegressionFound | None:
    """The worst news for whoever started this from a script; None where nothing got worse than it may."""
    if report.comparison is None or not report.comparison.regressions:
        return None
    first, *others = report.comparison.regressions
    more = f", and {len(others)} more" if others else ""
    return RegressionFound(f"{first.text.rstrip('.')}{more}; the report in {config.output} has them all.")


def report_text(report: Report) -> str:
    """The verdict, a row for each engine, and what changed against the baseline, for a terminal."""
    rows = [("engine", "AP", "lost", "P50 ms", "P90 ms", "P99 ms", "images/s", "arriving/s")]
    rows += [_cells(row) for row in report.rows]
    lines = [f"{row.name} was not measured to the end: {row.skipped}" for row in report.rows if row.skipped]
    lines += [f"{row.name}: {mark}" for row in report.rows for mark in row.marks]
    if report.comparison is not None:
        lines += ["", f"against {report.comparison.baseline}:", *(change.text for change in report.comparison.changes)]
        lines += report.comparison.missing
    # Names of classes and files may hold what a terminal obeys; the table has escaped its own.
    return "\n".join([shown(" ".join(report.advice.sentences)), "", table(rows), *map(shown, [*lines, *report.notes])])


def _cells(row: Row) -> tuple[str, ...]:
    single, offline, server = (row.scenario(name) for name in ("SingleStream", "Offline", "Server"))
    quality = row.quality

    def figure(estimate: Estimate | None, digits: str = ".3g") -> str:
        return "-" if estimate is None else f"{estimate.value:{digits}}"

    times = (None, None, None) if single is None else (single.p50_ms, single.p90_ms, single.p99_ms)
    return (
        row.name,
        "-" if quality is None else f"{100 * quality.AP:.1f}",
        "-" if quality is None or quality.drop is None else f"{quality.drop:+.2f}",
        *(figure(each) for each in times),
        figure(None if offline is None else offline.rate, ".1f"),
        figure(None if server is None else server.rate, ".1f"),
    )


def _without_pictures(report: Report) -> dict[str, object]:
    """The report for printing; the pictures are in its file."""
    return {**to_json(report), "differences": len(report.differences)}


def main(argv: Sequence[str] | None = None) -> int:
    return run_verb(make_argument_parser(), _run, argv)


if __name__ == "__main__":
    sys.exit(main())
