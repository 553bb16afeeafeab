"""What changed against an earlier report, and whether that is a regression.

A row is compared with the baseline's row of the same name, else of the same model, size, backend and precision. Where the baseline's very
engine is still at its place, it runs in turns with the present one, which takes the state of the machine out of the comparison (*paired*);
else the rounds of both files are compared. A change is a regression where it is worse than its bound and its interval of 95 % excludes
that nothing changed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from edge_effdet.artifacts import Engine, file_sha256, load_engine, printable
from edge_effdet.artifacts.reading import from_json
from edge_effdet.benchmarking.host.machine import machine_differences
from edge_effdet.benchmarking.options import BenchmarkConfig
from edge_effdet.benchmarking.record import REPORT_FORMAT, Change, Comparison, Estimate, Machine, Report, Row
from edge_effdet.benchmarking.statistics import change_estimate
from edge_effdet.errors import EdgeEffDetError, InputError, UsageError

LEAST_ROUNDS = 5
"""Rounds without which a figure is not compared: the spread between fewer says next to nothing."""

BEFORE = " (baseline)"
"""Behind the name of a baseline's engine that runs again."""


def read_report(path: Path) -> Report:
    """Read a ``report.json``.

    Raises:
        InputError: it is missing, damaged, or of another format.
    """
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(raw, dict) and raw.get("format") != REPORT_FORMAT:
            raise InputError(
                f"{path} is of format {raw.get('format')!r}, and this version of edge_effdet reads reports of format {REPORT_FORMAT}; measure "
                "the baseline again with this version."
            )
        return from_json(Report, raw)
    except OSError as error:
        raise InputError(
            f"Cannot read the report {path}: {error.strerror}; give the report.json of an earlier benchmark."
        ) from error
    except ValueError as error:
        raise InputError(f"{path} is not the report.json of a benchmark ({error}); give another file.") from error


def require_same_machine(baseline: Report, machine: Machine, allowed: bool) -> bool:
    """Whether a baseline was measured on this kind of machine.

    Raises:
        UsageError: it was not, and that is not allowed.
    """
    differing = machine_differences(baseline.machine, machine)
    if differing and not allowed:
        raise UsageError(
            f"The baseline was measured on another machine ({'; '.join(differing)}), so a difference in time would say nothing of the engine; "
            "measure the baseline here, or give `any_machine` to compare all the same."
        )
    return not differing


def engines_of(baseline: Report, engines: Sequence[tuple[str, Engine]]) -> list[tuple[str, Engine]]:
    """The baseline's own engines that are still at their place, unchanged, and are not among those that are measured anyway."""
    measured = {engine.sha256 for _, engine in engines}
    found: list[tuple[str, Engine]] = []
    for row in baseline.rows:
        path = Path(row.path)
        try:
            if row.engine_sha256 not in measured and path.is_file() and file_sha256(path) == row.engine_sha256:
                found.append((row.name + BEFORE, load_engine(path)))
        except (OSError, EdgeEffDetError):
            # Without it the figures in the baseline's file are compared.
            continue
    return found


def compare_reports(
    baseline: Report, rows: Sequence[Row], again: Sequence[Row], config: BenchmarkConfig, same_machine: bool
) -> Comparison:
    """Compare an earlier report with what was measured now. See ``compare_rows``."""
    changes, missing = compare_rows(baseline.rows, rows, again, config.max_slowdown, config.max_ap_drop)
    return Comparison(
        baseline=f"{config.baseline}, measured at {baseline.created_at}",
        same_machine=same_machine,
        max_slowdown_percent=config.max_slowdown,
        max_ap_drop=config.max_ap_drop,
        changes=changes,
        missing=missing,
    )


def compare_rows(
    baseline: Sequence[Row], rows: Sequence[Row], again: Sequence[Row], max_slowdown: float, max_ap_drop: float
) -> tuple[tuple[Change, ...], tuple[str, ...]]:
    """Compare row by row.

    Args:
        baseline: the rows of an earlier report.
        rows: what was measured now.
        again: the baseline's own engines, measured in turns with ``rows``, named with ``BEFORE``.
        max_slowdown: the bound on time and rate, in per cent.
        max_ap_drop: the bound on AP, in points.

    Returns:
        The changes, and a sentence for each row without a counterpart.
    """
    changes: list[Change] = []
    missing: list[str] = []
    compared: set[str] = set()
    for row in rows:
        before = counterpart(row, baseline)
        if before is None:
            missing.append(f"{printable(row.name)} has no counterpart in the baseline.")
            continue
        compared.add(before.name)
        if row.skipped or before.skipped:
            who = "here" if row.skipped else "in the baseline"
            missing.append(f"{printable(row.name)} was not measured to the end {who}: {row.skipped or before.skipped}")
        repeated = next((each for each in again if each.name == before.name + BEFORE and not each.skipped), None)
        changes += _time_changes(row, repeated or before, before.name, repeated is not None, max_slowdown)
        changes += _ap_changes(row, before, repeated, max_ap_drop)
    missing += [
        f"{printable(row.name)} of the baseline was not measured now." for row in baseline if row.name not in compared
    ]
    return tuple(changes), tuple(missing)


def counterpart(row: Row, rows: Sequence[Row]) -> Row | None:
    """The row of the same name, else the only one of the same model, size, backend and precision; None where there is none."""

    def kind(each: Row) -> tuple[object, ...]:
        return each.model, each.image_size, each.backend, each.precision

    named = [each for each in rows if each.name == row.name]
    alike = [each for each in rows if kind(each) == kind(row)]
    return (named or (alike if len(alike) == 1 else []) or [None])[0]


def _time_changes(row: Row, before: Row, baseline_row: str, paired: bool, bound: float) -> list[Change]:
    changes: list[Change] = []

    def add(figure: str, old: Sequence[float], new: Sequence[float], shown: tuple[float, float]) -> None:
        if min(len(old), len(new)) < LEAST_ROUNDS:
            return
        percent = change_estimate(old, new, paired and len(old) == len(new))
        changes.append(_change(row.name, baseline_row, figure, shown, percent, paired, bound, "%"))

    def single(each: Row) -> tuple[Sequence[float], float]:
        scenario = each.scenario("SingleStream")
        return (
            ((), 0.0) if scenario is None or scenario.p50_ms is None else (scenario.round_p50_ms, scenario.p50_ms.value)
        )

    def offline(each: Row) -> tuple[Sequence[float], float]:
        scenario = each.scenario("Offline")
        # As a time: seconds an image grow where the rate falls.
        return (
            ((), 0.0)
            if scenario is None or scenario.rate is None
            else ([1 / own for own in scenario.round_rate], scenario.rate.value)
        )

    for figure, read in (("time of an image (median)", single), ("images/s, all at once", offline)):
        (old, old_value), (new, new_value) = read(before), read(row)
        add(figure, old, new, (old_value, new_value))
    if before.network is not None and row.network is not None:
        add(
            "time of the network (median)",
            before.network_round_ms,
            row.network_round_ms,
            (before.network.value, row.network.value),
        )
    return changes


def _ap_changes(row: Row, before: Row, repeated: Row | None, bound: float) -> list[Change]:
    if row.quality is None or before.quality is None:
        return []
    drop = 100 * (before.quality.AP - row.quality.AP)
    change = Estimate(drop, drop, drop)
    # Where the baseline's engine ran on the same images, the images were drawn anew for the interval; else there are no detections to
    # draw from, and what was measured on the same images is taken as it is.
    paired = repeated is not None and repeated.quality is not None and repeated.quality.reference == row.name
    if paired and repeated is not None and repeated.quality is not None and repeated.quality.drop_interval is not None:
        # The repeated engine's loss against the present one, turned round.
        low, high = repeated.quality.drop_interval
        change = Estimate(-(repeated.quality.drop or 0.0), -high, -low)
    shown = (100 * before.quality.AP, 100 * row.quality.AP)
    return [_change(row.name, before.name, "AP (points)", shown, change, paired, bound, "points")]


def _change(
    row: str,
    baseline_row: str,
    figure: str,
    shown: tuple[float, float],
    percent: Estimate,
    paired: bool,
    bound: float,
    unit: str,
) -> Change:
    significant = not percent.low <= 0 <= percent.high
    regression = significant and percent.value > bound
    word = "worse" if percent.value > 0 else "better"
    low, high = sorted((abs(percent.low), abs(percent.high)))
    if significant:
        said = f"{abs(percent.value):.1f} {unit} {word} ({low:.1f} to {high:.1f})"
    else:
        said = f"no change that the noise lets one see ({percent.low:+.1f} to {percent.high:+.1f} {unit})"
    return Change(
        row=row,
        baseline_row=baseline_row,
        figure=figure,
        before=shown[0],
        now=shown[1],
        percent=percent,
        paired=paired,
        significant=significant,
        regression=regression,
        text=f"{printable(row)}, {figure}: {shown[0]:.4g} before, {shown[1]:.4g} now, {said}{', beyond the bound' if regression else ''}.",
    )
