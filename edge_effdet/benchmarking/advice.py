"""The verdict of a report: which engine to take, and why, in sentences that a person decides by."""

from __future__ import annotations

from collections.abc import Sequence

from edge_effdet.benchmarking.quality import reference_row
from edge_effdet.benchmarking.record import Advice, Comparison, Estimate, Quality, Row
from edge_effdet.benchmarking.statistics import change_estimate
from edge_effdet.cli import count_of

TITLES = {"fp32": "FP32", "fp16": "FP16", "int8": "INT8"}
BACKENDS = {"onnxruntime": "onnxruntime", "onnxruntime-cuda": "onnxruntime (CUDA)", "openvino": "OpenVINO", "tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}  # fmt: skip


WORTH = 1.02
"""How many times as fast an engine has to be at least, with the lower end of the interval, so that it is worth any AP."""


def advise(rows: Sequence[Row], max_ap_drop: float, comparison: Comparison | None = None) -> Advice:
    """Choose the fastest of the engines that lose little enough, and say why.

    An engine other than the reference is chosen only where it is surely faster. Where one engine has AP, those without it are not chosen.

    Args:
        rows: the engines.
        max_ap_drop: points of AP that one may lose against the best FP32 engine.
        comparison: what changed against a baseline.
    """
    timed = [row for row in rows if row.skipped is None and _median(row) is not None]
    if not timed:
        reason = next((row.skipped for row in rows if row.skipped), "nothing was measured")
        return Advice(pick=None, sentences=(f"No engine could be measured to the end: {reason.rstrip('.')}.",))
    reference = _reference(timed, rows)
    judged = any(row.quality is not None for row in timed)
    good = [row for row in timed if _keeps(row, max_ap_drop, judged)]
    worth = [row for row in good if row is reference or _ratio(row, reference).low > WORTH]
    fastest = min(timed, key=lambda row: _value(_median(row)))
    sentences: list[str] = []
    pick = min(worth or good, key=lambda row: _value(_median(row)), default=None)
    if pick is None:
        sentences.append("No engine can be taken: each of them loses more AP than it may.")
    else:
        sentences.append(_choice(pick, reference, timed, max_ap_drop))
    if fastest is not pick:
        sentences += _why_not(fastest, timed, max_ap_drop)
    if pick is not None:
        sentences += _rates(pick)
    if comparison is not None:
        sentences.append(_compared(comparison))
    if pick is not None and pick.marks:
        mark = pick.marks[0].rstrip(".")
        sentences.append(f"The figures are less certain than usual: {mark[:1].lower()}{mark[1:]}.")
    return Advice(pick=None if pick is None else pick.name, sentences=tuple(sentences))


def _reference(timed: Sequence[Row], rows: Sequence[Row]) -> Row:
    """The row that AP was compared with, so that one sentence has one reference; else the one that it would be."""
    named = {row.quality.reference for row in timed if row.quality is not None and row.quality.reference}
    found = [row for row in rows if row.name in named and _median(row) is not None]
    return found[0] if found else reference_row(timed)


def _keeps(row: Row, max_ap_drop: float, judged: bool) -> bool:
    """Whether an engine loses no more than it may, as far as anybody has measured it."""
    if row.quality is not None:
        return row.quality.drop is None or row.quality.drop <= max_ap_drop
    gate = None if row.evidence is None else row.evidence.gate
    return not judged and (gate is None or gate.passed)


def _choice(pick: Row, reference: Row, rows: Sequence[Row], max_ap_drop: float) -> str:
    title, single = _title(pick, rows), len(rows) == 1
    if pick.quality is None:
        judged = f"AP was not measured here{_built(pick)}, so judge it on labelled images before you take it"
    elif pick.quality.drop is None:
        judged = f"its AP is {100 * pick.quality.AP:.1f}"
    else:
        judged = f"{_loss(pick.quality)}; {_take(pick.quality, max_ap_drop)}"
    if pick is reference:
        start = "" if single else " is the one to take and"
        return f"{title}{start} answers an image in {_ms(_median(pick))} (the median, from the picture's file to boxes); {judged}."
    ratio = _ratio(pick, reference)
    speed = f"{ratio.value:.2f} times ({ratio.low:.2f} to {ratio.high:.2f}) as fast as {_title(reference, rows)}"
    if ratio.low <= 1 <= ratio.high:
        speed = f"as fast as {_title(reference, rows)} ({ratio.low:.2f} to {ratio.high:.2f} times)"
    joined = ", and " if pick.quality is not None else "; "
    return f"{title} answers an image in {_ms(_median(pick))}, {speed}{joined}{judged}."


def _take(quality: Quality, max_ap_drop: float) -> str:
    if quality.drop_interval is None:
        return f"take it, though {count_of(quality.images, 'image')} cannot tell how sure that is"
    if quality.drop_interval[1] > max_ap_drop:
        return f"take it, though {count_of(quality.images, 'image')} cannot exclude a loss of {quality.drop_interval[1]:.2f}"
    return "take it"


def _why_not(fastest: Row, rows: Sequence[Row], max_ap_drop: float) -> list[str]:
    """Why the fastest engine is not the one to take; nothing where it is no faster."""
    quality, title = fastest.quality, _title(fastest, rows)
    if (
        quality is None
        and fastest.evidence is not None
        and fastest.evidence.gate is not None
        and not fastest.evidence.gate.passed
    ):
        return [
            f"{title} is faster ({_ms(_median(fastest))}), and did not pass the accuracy gate when it was built: {fastest.evidence.gate.text.rstrip('.')}."
        ]
    if quality is None:
        return [f"{title} is faster ({_ms(_median(fastest))}), and its AP is not known."]
    if quality.drop is not None and quality.drop > max_ap_drop:
        noise = quality.drop_interval is None or quality.drop_interval[0] <= 0
        told = (
            f"; {count_of(quality.images, 'image')} are too few to be sure of that, so judge it on more"
            if noise
            else ""
        )
        return [
            f"{title} is faster ({_ms(_median(fastest))}) but loses {quality.drop:.1f} points of AP{_interval(quality)}, more than the "
            f"{max_ap_drop:g} that are allowed{told}."
        ]
    return [f"{title} is not surely faster ({_ms(_median(fastest))})."]


def _compared(comparison: Comparison) -> str:
    if comparison.regressions:
        return f"Against the baseline it is a regression: {comparison.regressions[0].text}"
    if not comparison.changes:
        return "Nothing could be compared with the baseline."
    return (
        "Of what is compared with the baseline (medians, the rate of Offline, AP) nothing got worse beyond its bound."
    )


def _ratio(row: Row, reference: Row) -> Estimate:
    """How many times as fast a row is, from the rounds in which both took turns."""
    own, other = (each.scenario("SingleStream") for each in (row, reference))
    assert own is not None and other is not None
    if len(own.round_p50_ms) != len(other.round_p50_ms):
        value = _value(other.p50_ms) / _value(own.p50_ms)
        return Estimate(value, value, value)
    change = change_estimate(own.round_p50_ms, other.round_p50_ms, paired=True)
    return Estimate(1 + change.value / 100, 1 + change.low / 100, 1 + change.high / 100)


def _loss(quality: Quality) -> str:
    assert quality.drop is not None
    verb = "loses" if quality.drop >= 0 else "gains"
    inside = ""
    if quality.drop_interval is not None and quality.drop_interval[0] <= 0 <= quality.drop_interval[1]:
        inside = ", inside the noise"
    return f"{verb} {abs(quality.drop):.2f} points of AP{_interval(quality)}{inside}"


def _interval(quality: Quality) -> str:
    if quality.drop_interval is None:
        return ""
    return f" ({quality.drop_interval[0]:+.2f} to {quality.drop_interval[1]:+.2f} lost, on {quality.images} images)"


def _rates(pick: Row) -> list[str]:
    offline, server = pick.scenario("Offline"), pick.scenario("Server")
    sentences = []
    if offline is not None and offline.rate is not None:
        sentences.append(f"It reaches {_rate(offline.rate)} images/s when all are there at once.")
    if server is not None and server.bound_ms is not None:
        bound = f"within {server.bound_ms:g} ms"
        if server.rate is None:
            sentences.append(f"At no rate of random arrivals that was tried were 99 of 100 images answered {bound}.")
        else:
            count = next(probe.queries for probe in server.probes if probe.rate == server.rate.value)
            sentences.append(
                f"At {_rate(server.rate)} images/s that arrive at random, 99 of 100 are answered {bound} ({count} images were sent)."
            )
    return [" ".join(sentences)] if sentences else []


def _rate(estimate: Estimate) -> str:
    return f"{estimate.value:.0f}" if estimate.value >= 10 else f"{estimate.value:.2g}"


def _built(pick: Row) -> str:
    said = pick.evidence.built_accuracy if pick.evidence is not None else ""
    return f" ({said.rstrip('.')})" if said else ""


def _title(row: Row, rows: Sequence[Row]) -> str:
    """Precision and backend, or the row's name where these are not enough to tell it from another row."""
    same = [each for each in rows if (each.precision, each.backend) == (row.precision, row.backend)]
    return f"{TITLES[row.precision]} on {BACKENDS.get(row.backend, row.backend)}" if len(same) == 1 else row.name


def _median(row: Row) -> Estimate | None:
    single = row.scenario("SingleStream")
    return None if single is None else single.p50_ms


def _value(estimate: Estimate | None) -> float:
    assert estimate is not None
    return estimate.value


def _ms(estimate: Estimate | None) -> str:
    value = _value(estimate)
    return f"{value:.3g} ms" if value < 100 else f"{value:.0f} ms"
