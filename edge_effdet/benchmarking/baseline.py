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
from edge_effdet.benchmarking.record import REPORT_FORMAT, Change, Comparison, Estimate, Images, Machine, Report, Row
from edge_effdet.benchmarking.statistics import change_estimate
from edge_effdet.errors import EdgeEffDetError, InputError, UsageError

LEAST_ROUNDS = 5
"""Rounds without which a figure is not compared: the spread between fewer says next to nothing."""

UNDISTURBED = 0.25
"""The quantile of the rounds that two reports are compared by. What else a machine does only adds time, and it may do so in more than half of
the rounds of one of them."""

BEFORE = " (baseline)"
"""Behind the name of a baseline's engine that runs again."""


def read_report(path: Path) -> Report:
    """Read a ``report.json``.

    Raises:
        InputError: it is missing, damaged, or of another format.
    """
    try:
        # To open a pipe is to wait for whoever writes into it.
        if path.exists() and not path.is_file():
            raise ValueError("it is no file")
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
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not the report.json of a benchmark ({error}); give another file.") from error


def require_same_machine(baseline: Report, machine: Machine, threads: int, allowed: bool) -> bool:
    """Whether a baseline was measured on this kind of machine.

    Raises:
        UsageError: it was not, and that is not allowed; or it was measured with another number of threads.
    """
    if baseline.settings.threads != threads:
        raise UsageError(
            f"The baseline was measured with `threads` {baseline.settings.threads} and this would be with {threads}, so their times say nothing of "
            "the engine; give the same."
        )
    differing = machine_differences(baseline.machine, machine)
    if differing and not allowed:
        raise UsageError(
            f"The baseline was measured on another machine ({'; '.join(differing)}), so a difference in time would say nothing of the engine; "
            "measure the baseline here, or give `any_machine` to compare all the same."
        )
    return not differing


def engines_of(baseline: Report, engines: Sequence[tuple[str, Engine]]) -> list[tuple[str, Engine]]:
    """The baseline's own engines that are still at their place, unchanged, have a counterpart here, and are not measured anyway."""
    measured = {engine.sha256 for _, engine in engines}
    wanted = [
        counterpart((name, engine.spec.name, engine.spec.image_size, engine.backend, engine.precision), baseline.rows)
        for name, engine in engines
    ]
    found: list[tuple[str, Engine]] = []
    for row in baseline.rows:
        path = Path(row.path)
        try:
            if (
                row in wanted
                and row.engine_sha256 not in measured
                and path.is_file()
                and file_sha256(path) == row.engine_sha256
            ):
                found.append((row.name + BEFORE, load_engine(path)))
        except (OSError, EdgeEffDetError):
            # Without it the figures in the baseline's file are compared.
            continue
    return found


def compare_reports(
    baseline: Report,
    rows: Sequence[Row],
    again: Sequence[Row],
    images: Images,
    config: BenchmarkConfig,
    same_machine: bool,
) -> Comparison:
    """Compare an earlier report with what was measured now on these images. See ``compare_rows``."""
    timed = [(each.kind, each.count, each.median_size, each.sha256) for each in (baseline.images, images)]
    alike = timed[0] == timed[1] and baseline.settings.score_threshold == config.score_threshold
    same_images = baseline.images.sha256 == images.sha256 != ""
    bounds = config.max_slowdown, config.max_ap_drop
    changes, missing = compare_rows(
        baseline.rows, rows, again, *bounds, network_only=not alike, same_images=same_images
    )
    if not alike:
        missing += (
            "The baseline was timed on other pictures or with another score threshold, so of the times only the network's is compared.",
        )
    if not same_images:
        without = "The baseline has no AP" if not baseline.images.sha256 else "No labelled images were given"
        both = baseline.images.sha256 and images.sha256
        missing += (
            f"{'The baseline was judged on other images' if both else without}, so AP is compared only where its engine ran again.",
        )
    return Comparison(
        baseline=f"{config.baseline}, measured at {baseline.created_at}",
        same_machine=same_machine,
        max_slowdown_percent=config.max_slowdown,
        max_ap_drop=config.max_ap_drop,
        changes=changes,
        missing=missing,
    )


def compare_rows(
    baseline: Sequence[Row],
    rows: Sequence[Row],
    again: Sequence[Row],
    max_slowdown: float,
    max_ap_drop: float,
    *,
    network_only: bool = False,
    same_images: bool = True,
) -> tuple[tuple[Change, ...], tuple[str, ...]]:
    """Compare row by row.

    Args:
        baseline: the rows of an earlier report.
        rows: what was measured now.
        again: the baseline's own engines, measured in turns with ``rows``, named with ``BEFORE``.
        max_slowdown: the bound on time and rate, in per cent.
        max_ap_drop: the bound on AP, in points.
        network_only: whether of the times only the network's can be compared, because other pictures were decoded.
        same_images: whether AP was measured on the same images.

    Returns:
        The changes, and a sentence for each row without a counterpart.
    """
    changes: list[Change] = []
    missing: list[str] = []
    compared: set[str] = set()
    for row in rows:
        before = counterpart(kind_of(row), baseline)
        if before is None:
            missing.append(f"{printable(row.name)} has no counterpart in the baseline.")
            continue
        compared.add(before.name)
        if row.skipped and not before.skipped:
            # Whoever asks whether it got worse must not hear that nothing did.
            changes.append(_lost(row, before))
        elif before.skipped:
            missing.append(f"{printable(row.name)} was not measured to the end in the baseline: {before.skipped}")
        repeated = next((each for each in again if each.name == before.name + BEFORE and not each.skipped), None)
        changes += _time_changes(
            row, repeated or before, before.name, repeated is not None, max_slowdown, network_only and repeated is None
        )
        changes += _ap_changes(row, before, repeated, max_ap_drop, same_images)
    missing += [
        f"{printable(row.name)} of the baseline was not measured now." for row in baseline if row.name not in compared
    ]
    return tuple(changes), tuple(missing)


Kind = tuple[str, str, tuple[int, int], str, str]
"""What a row is found by: its name; the model, its size, the backend and the precision."""


def kind_of(row: Row) -> Kind:
    """What a row is found by in a baseline."""
    return row.name, row.model, row.image_size, row.backend, row.precision


def counterpart(kind: Kind, rows: Sequence[Row]) -> Row | None:
    """The row of the same name, else the only one of the same model, size, backend and precision; None where there is none."""
    named = [each for each in rows if each.name == kind[0]]
    alike = [each for each in rows if kind_of(each)[1:] == kind[1:]]
    return (named or (alike if len(alike) == 1 else []) or [None])[0]


def _lost(row: Row, before: Row) -> Change:
    return Change(
        row=row.name,
        baseline_row=before.name,
        figure="measured to the end",
        before=1,
        now=0,
        percent=Estimate(100, 100, 100),
        paired=False,
        significant=True,
        regression=True,
        text=f"{printable(row.name)} was measured to the end in the baseline and is not now: {printable(row.skipped or '').rstrip('.')}.",
    )


def _time_changes(
    row: Row, before: Row, baseline_row: str, paired: bool, bound: float, network_only: bool
) -> list[Change]:
    changes: list[Change] = []

    def add(
        figure: str, old: Sequence[float], new: Sequence[float], shown: tuple[float, float], rate: bool = False
    ) -> None:
        if min(len(old), len(new)) < LEAST_ROUNDS:
            return
        percent = change_estimate(old, new, paired and len(old) == len(new), UNDISTURBED)
        if rate:
            # From a time that grew by p % to a rate that fell: by 1 - 1 / (1 + p).
            value, low, high = (100 * each / (100 + each) for each in (percent.value, percent.low, percent.high))
            percent = Estimate(value, low, high)
        changes.append(_change(row.name, baseline_row, figure, shown, percent, paired, bound, "%"))

    old_single, new_single = before.scenario("SingleStream"), row.scenario("SingleStream")
    if not network_only and old_single and new_single and old_single.p50_ms and new_single.p50_ms:
        shown = old_single.p50_ms.value, new_single.p50_ms.value
        add("time of an image, ms (median)", old_single.round_p50_ms, new_single.round_p50_ms, shown)
    if before.network is not None and row.network is not None:
        shown = before.network.value, row.network.value
        add("time of the network, ms (median)", before.network_round_ms, row.network_round_ms, shown)
    old_all, new_all = before.scenario("Offline"), row.scenario("Offline")
    if not network_only and old_all and new_all and old_all.rate and new_all.rate:
        shown = old_all.rate.value, new_all.rate.value
        old, new = ([1 / own for own in each.round_rate] for each in (old_all, new_all))
        add("images/s, all at once", old, new, shown, rate=True)
    return changes


def _ap_changes(row: Row, before: Row, repeated: Row | None, bound: float, same_images: bool) -> list[Change]:
    if row.quality is None or before.quality is None:
        return []
    # The repeated engine's loss against the present one, on the images of today, turned round.
    if repeated is not None and repeated.quality is not None and repeated.quality.drop is not None:
        drop = -repeated.quality.drop
        low, high = repeated.quality.drop_interval or (-drop, -drop)
        shown = 100 * repeated.quality.AP, 100 * row.quality.AP
        return [_change(row.name, before.name, "AP", shown, Estimate(drop, -high, -low), True, bound, "points")]
    if not same_images or row.quality.images != before.quality.images:
        return []
    # There are no detections of the baseline to draw from, so this has no interval; it was measured on the very same images.
    drop = 100 * (before.quality.AP - row.quality.AP)
    shown = 100 * before.quality.AP, 100 * row.quality.AP
    return [_change(row.name, before.name, "AP", shown, Estimate(drop, drop, drop), False, bound, "points")]


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
    known = percent.low != percent.high
    if significant:
        said = f"{abs(percent.value):.1f} {unit} {word} ({f'{low:.1f} to {high:.1f}' if known else 'on the same images, without an interval'})"
    elif known:
        said = f"no change that the noise lets one see ({percent.low:+.1f} to {percent.high:+.1f} {unit})"
    else:
        said = "no change"
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
