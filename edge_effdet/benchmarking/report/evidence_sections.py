"""The sections of a report on how right the engines are, on the proof of it, and on what changed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from edge_effdet.artifacts.record import Calibration, Fingerprint
from edge_effdet.benchmarking.record import Change, Evidence, Quality, Report, Row
from edge_effdet.benchmarking.report.blocks import (
    DASH,
    Block,
    Bullets,
    Chart,
    Facts,
    Grid,
    Picture,
    Prose,
    Section,
)
from edge_effdet.benchmarking.report.figures import (
    between,
    counted,
    digits,
    estimated,
    joined,
    lost,
    percent,
    plain,
    points,
    tenths,
)
from edge_effdet.benchmarking.report.speed_sections import measured, why_no_accuracy

MOST_CLASSES = 20
"""So many classes are listed; of more, those that lost most are."""

MOST_NAMES = 12
"""So many layers are named; ``report.json`` names all of them."""

MOST_PICTURE_LETTERS = 2_000_000
"""The pictures together may take so many letters of base64, so that a page with all its charts stays below 3 MB."""


def accuracy(report: Report) -> Section:
    """AP, by size and by class, and precision over recall."""
    title = "Accuracy"
    known = [row for row in report.rows if row.quality]
    if not known:
        return Section("accuracy", title, (Prose(why_no_accuracy(report)),))
    blocks: list[Block] = [_quality_table(known), Prose(_images_judged(report, known), quiet=True)]
    if any(row.quality.curves for row in known if row.quality):
        each = joined(f"{row.name} {points(row.quality.AP50)}" for row in known if row.quality)
        blocks.append(
            Chart(
                kind="recall",
                label=f"Precision over recall, averaged over the classes, a line for each engine. AP50 in points: {each}.",
                caption="Precision over recall, averaged over the classes, at the overlap that stands above each picture.",
                legend="rows",
                figures=_curve_table(known),
            )
        )
    names, sentence = listed_classes(known)
    if names:
        blocks.append(
            Chart(
                kind="classes",
                label=f"AP of each class in points, a marker for each engine, for {counted(len(names), 'class', 'classes')}.",
                caption=sentence,
                legend="rows",
                figures=_class_table(known, names),
            )
        )
    missing = [row.name for row in report.rows if measured(row) and not row.quality]
    if missing:
        blocks.append(Prose(f"AP of {joined(missing)} was not measured."))
    return Section("accuracy", title, tuple(blocks))


def _quality_table(rows: Sequence[Row]) -> Grid:
    cells = []
    for row in rows:
        quality = row.quality
        assert quality
        interval = quality.drop_interval
        drop = (
            DASH if quality.drop is None else between(quality.drop, *(interval or (quality.drop, quality.drop)), lost)
        )
        values = (quality.AP, quality.AP50, quality.AP75, quality.AP_small, quality.AP_medium, quality.AP_large)
        cells.append((row.name, *map(points, values), drop, quality.reference or DASH))
    return Grid(
        caption="AP in points",
        head=("Engine", "AP", "AP50", "AP75", "Small", "Medium", "Large", "Points lost", "Against"),
        rows=tuple(cells),
        numbers=frozenset(range(1, 8)),
    )


def _images_judged(report: Report, rows: Sequence[Row]) -> str:
    images, floors = ({getattr(row.quality, field) for row in rows} for field in ("images", "score_floor"))
    texts = [
        f"AP is COCO's, over {joined(counted(number, 'image') for number in sorted(images))}, of detections that score "
        f"{joined(plain(floor) for floor in sorted(floors))} or more; the timed runs drop those below {plain(report.settings.score_threshold)}.",
        "Small boxes have less than 32 x 32 pixels, medium ones up to 96 x 96.",
    ]
    if any(row.quality and row.quality.AP_small is None for row in rows):
        texts.append("The data has no small box.")
    others = [row.name for row in rows if row.quality and row.quality.engine_sha256 != row.engine_sha256]
    if others:
        texts.append(f"Mind that AP and latency of {joined(others)} come from different files.")
    else:
        texts.append("AP and latency come from the same files, by their hashes.")
    return " ".join(texts)


def _curve_table(rows: Sequence[Row]) -> Grid:
    lines = tuple(
        (
            row.name,
            f"{curve.iou:.2f}",
            *(f"{curve.precision[index]:.2f}" if index < len(curve.precision) else DASH for index in range(0, 101, 10)),
        )
        for row in rows
        for curve in (row.quality.curves if row.quality else ())
    )
    head = ("Engine", "Overlap", *(f"{step / 10:.1f}" for step in range(11)))
    return Grid(
        caption="Precision at the recall that heads the column", head=head, rows=lines, numbers=frozenset(range(1, 13))
    )


def listed_classes(rows: Sequence[Row]) -> tuple[list[str], str]:
    """The classes that are shown, and a sentence on which they are.

    Args:
        rows: the engines with AP.
    """
    names = list(dict.fromkeys(name for row in rows if row.quality for name in row.quality.per_class))
    if len(names) <= MOST_CLASSES:
        return names, "AP of each class in points."
    references = {row.name: row.quality for row in rows if row.quality}
    losses = {
        name: max((_class_loss(row.quality, references, name) for row in rows if row.quality), default=-math.inf)
        for name in names
    }
    if all(loss == -math.inf for loss in losses.values()):
        best = {name: min(row.quality.per_class.get(name, math.inf) for row in rows if row.quality) for name in names}
        return sorted(names, key=lambda name: best[name])[:MOST_CLASSES], (
            f"AP of the {MOST_CLASSES} of {len(names)} classes with the lowest AP, in points; the JSON file has all of them."
        )
    return sorted(names, key=lambda name: -losses[name])[:MOST_CLASSES], (
        f"AP of the {MOST_CLASSES} of {len(names)} classes that lose most against the reference, in points; the JSON file has all of them."
    )


def _class_loss(quality: Quality, references: Mapping[str, Quality], name: str) -> float:
    """What a class lost against the row that its own is compared with; minus infinity where that is not known."""
    reference = references.get(quality.reference or "")
    if not reference or name not in reference.per_class or name not in quality.per_class:
        return -math.inf
    return reference.per_class[name] - quality.per_class[name]


def _class_table(rows: Sequence[Row], names: Sequence[str]) -> Grid:
    boxes = {name: count for row in rows if row.quality for name, count in row.quality.boxes_per_class.items()}
    return Grid(
        caption="AP of each class in points",
        head=("Class", "Boxes", *(row.name for row in rows)),
        rows=tuple(
            (
                name,
                f"{boxes[name]:,}" if name in boxes else DASH,
                *(points(row.quality.per_class.get(name)) if row.quality else DASH for row in rows),
            )
            for name in names
        ),
        numbers=frozenset(range(1, len(rows) + 2)),
    )


def differences(report: Report) -> Section | None:
    """The pictures in which two engines differ most; None where none was compared."""
    if not report.differences:
        return None
    blocks: list[Block] = []
    letters = left_out = 0
    for each in report.differences:
        names = joined(found.row for found in each.found)
        letters += len(each.jpeg)
        if letters > MOST_PICTURE_LETTERS:
            left_out += 1
            continue
        caption = f"{each.image}: {each.text} The distance is {each.distance:.2f}."
        blocks.append(Picture(each.jpeg, f"{each.image} with the boxes of {names} side by side.", caption))
    if left_out:
        blocks.append(
            Prose(
                f"{counted(left_out, 'more picture')} would make this file too large; the JSON file has all.",
                quiet=True,
            )
        )
    text = "The distance is how far the detections of the two lie apart, as a share of the scores: 0 where they are the same, 1 where all differ."
    return Section("differences", "Where the engines differ most", (Prose(text), *blocks))


def proof(report: Report) -> Section:
    """What each engine's own record says, and what was checked here."""
    blocks: list[Block] = [Facts(row.name, _evidence(row, row.evidence)) for row in report.rows if row.evidence]
    missing = [row.name for row in report.rows if not row.evidence]
    if missing:
        blocks.append(Prose(f"There is no proof of {joined(missing)}."))
    return Section("proof", "The proof", tuple(blocks) or (Prose("There is no engine."),))


def _evidence(row: Row, evidence: Evidence) -> tuple[tuple[str, str], ...]:
    shares = {
        "INT8": evidence.int8_mac_fraction,
        "FP16": evidence.fp16_mac_fraction,
        "BF16": evidence.bf16_mac_fraction,
        "FP32": evidence.fp32_mac_fraction,
    }
    work = joined(f"{percent(share)} {name}" for name, share in shares.items() if share) or "no convolution was counted"
    items = [("Convolutions' work", f"{work} ({evidence.proof_source})")]
    # Of an engine that was never quantized all layers are.
    if evidence.calibration:
        items.append(("Kept in high precision", _named(evidence.layers_kept_high_precision)))
    if evidence.layers_below_graph:
        items.append(("INT8 in the graph alone", _named(evidence.layers_below_graph)))
    if evidence.final_convolutions:
        kinds = sorted(set(evidence.final_convolutions.values()))
        finals = [
            f"{kind}: {_named([name for name, own in evidence.final_convolutions.items() if own == kind])}"
            for kind in kinds
        ]
        items.append(("Final convolutions", "; ".join(finals)))
    if row.arithmetic:
        items.append(("The rest is computed in", row.arithmetic))
    items += [
        ("Calibration", _calibrated(evidence.calibration) if evidence.calibration else "nothing was quantized"),
        (
            "Accuracy gate",
            f"{'passed' if evidence.gate.passed else 'failed'}: {evidence.gate.text}"
            if evidence.gate
            else "not judged",
        ),
        ("Accuracy when built", evidence.built_accuracy or "not measured"),
        ("Golden check", evidence.golden or "not made"),
        ("Proven on", _machine_of(evidence.built_on) if evidence.built_on else "not recorded"),
        ("Built", evidence.built_at),
    ]
    return (*items, *((f"SHA-256 of the {kind.replace('_', ' ')}", digest) for kind, digest in evidence.chain.items()))


def _named(names: Sequence[str]) -> str:
    if not names:
        return "none"
    left_out = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {left_out} more" if left_out > 0 else "")


def _calibrated(calibration: Calibration) -> str:
    split = f" of {calibration.split}" if calibration.split else ""
    return (
        f"{counted(calibration.images, 'image')}{split}, choice {calibration.choice}, seed {calibration.seed}, ranges by "
        f"{calibration.method}; SHA-256 of the manifest {calibration.manifest_sha256}"
    )


def _machine_of(machine: Fingerprint) -> str:
    instructions = f" with {', '.join(machine.instructions)}" if machine.instructions else ""
    return f"{machine.processor}{instructions}, {machine.backend} {machine.version}"


def baseline(report: Report) -> Section | None:
    """What changed against the baseline, regressions first; None where none was given."""
    comparison = report.comparison
    if not comparison:
        return None
    machine = "this kind of machine" if comparison.same_machine else "another kind of machine"
    found = len(comparison.regressions)
    verdict = (
        f"{counted(found, 'figure')} got worse by more than the bound."
        if found
        else "No figure got worse by more than the bound."
    )
    text = (
        f"{verdict} The baseline is {comparison.baseline}, measured on {machine}. The bounds are {plain(comparison.max_slowdown_percent)} % of "
        f"time or rate and {plain(comparison.max_ap_drop)} of AP in points. A change counts where its interval of 95 % excludes 0."
    )
    ordered = sorted(
        comparison.changes, key=lambda change: (not change.regression, not change.significant, -change.percent.value)
    )
    blocks: list[Block] = [Prose(text)]
    if found:
        blocks.append(Bullets(tuple(change.text for change in comparison.regressions), title="Regressions"))
    if ordered:
        head = ("Finding", "Engine", "Figure", "Before", "Now", "Worse by", "Compared")
        rows = tuple(
            (
                _finding(change),
                change.row,
                change.figure,
                digits(change.before),
                digits(change.now),
                f"{estimated(change.percent, lost)} points"
                if _is_ap(change)
                else f"{estimated(change.percent, tenths)} %",
                "in turns, here" if change.paired else f"with {change.baseline_row} in the file",
            )
            for change in ordered
        )
        blocks.append(
            Grid(caption="Figure by figure; below 0 is better", head=head, rows=rows, numbers=frozenset({3, 4, 5}))
        )
    if comparison.missing:
        blocks.append(Bullets(comparison.missing))
    return Section("baseline", "Against the baseline", tuple(blocks))


def _finding(change: Change) -> str:
    if change.regression:
        return "regression"
    if not change.significant:
        return "no clear change"
    return "worse, within the bound" if change.percent.value > 0 else "better"


def _is_ap(change: Change) -> bool:
    return change.figure.startswith("AP")
