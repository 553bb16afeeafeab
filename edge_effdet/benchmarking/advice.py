"""The verdict of a report: which engine to take, and why, in sentences that a person decides by."""

from __future__ import annotations

from collections.abc import Sequence

from edge_effdet.benchmarking.quality import reference_row
from edge_effdet.benchmarking.record import Advice, Comparison, Estimate, Quality, Row
from edge_effdet.benchmarking.statistics import change_estimate

TITLES = {"fp32": "FP32", "fp16": "FP16", "int8": "INT8"}
BACKENDS = {"onnxruntime": "onnxruntime", "onnxruntime-cuda": "onnxruntime (CUDA)", "openvino": "OpenVINO", "tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}  # fmt: skip


def advise(rows: Sequence[Row], max_ap_drop: float, comparison: Comparison | None = None) -> Advice:
    """Choose the fastest of the engines that lose little enough, and say why.

    Args:
        rows: the engines.
        max_ap_drop: points of AP that one may lose against the best FP32 engine, unless the loss is inside the noise.
        comparison: what changed against a baseline.
    """
    timed = [row for row in rows if row.skipped is None and _median(row) is not None]
    if not timed:
        reason = next((row.skipped for row in rows if row.skipped), "nothing was measured")
        return Advice(pick=None, sentences=(f"No engine could be measured to the end: {reason.rstrip('.')}.",))
    reference = reference_row(timed)
    good = [row for row in timed if row.quality is None or not _loses(row.quality, max_ap_drop)]
    pick = min(good, key=lambda row: _value(_median(row)))
    sentences = [_choice(pick, reference, timed)]
    fastest = min(timed, key=lambda row: _value(_median(row)))
    if fastest is not pick and fastest.quality is not None and fastest.quality.drop is not None:
        sentences.append(
            f"{_title(fastest, timed)} is faster ({_ms(_median(fastest))}) but loses {fastest.quality.drop:.1f} points of AP{_interval(fastest.quality)}, "
            f"more than the {max_ap_drop:g} that are allowed."
        )
    sentences.append(_rates(pick))
    if comparison is not None:
        worse = comparison.regressions
        sentences.append(
            f"Against the baseline it is a regression: {worse[0].text}"
            if worse
            else "Against the baseline nothing got worse beyond the bounds."
        )
    if pick.marks:
        mark = pick.marks[0].rstrip(".")
        sentences.append(f"The figures are less certain than usual: {mark[:1].lower()}{mark[1:]}.")
    return Advice(pick=pick.name, sentences=tuple(sentences))


def _choice(pick: Row, reference: Row, rows: Sequence[Row]) -> str:
    if pick.quality is None:
        judged = f"AP was not measured here{_built(pick)}"
    elif pick.quality.drop is None:
        judged = f"its AP is {100 * pick.quality.AP:.1f}"
    else:
        judged = _loss(pick.quality)
    title = _title(pick, rows)
    if pick is reference:
        others = len(rows) > 1
        start = f"{title} is the fastest that keeps its AP" if others and pick.quality is not None else title
        start = f"{title} is the fastest" if others and pick.quality is None else start
        joined = " and answers" if start != title else " answers"
        return f"{start}{joined} an image in {_ms(_median(pick))} (the median, from JPEG bytes to boxes); {judged}."
    return f"{title} answers an image in {_ms(_median(pick))}, {_ratio(pick, reference)} {_title(reference, rows)}, and {judged}; take it."


def _ratio(pick: Row, reference: Row) -> str:
    """How many times as fast, from the rounds in which both took turns."""
    own, other = (row.scenario("SingleStream") for row in (pick, reference))
    assert own is not None and other is not None
    if len(own.round_p50_ms) != len(other.round_p50_ms):
        return f"{_value(other.p50_ms) / _value(own.p50_ms):.2f} times as fast as"
    change = change_estimate(own.round_p50_ms, other.round_p50_ms, paired=True)
    low, value, high = (1 + each / 100 for each in (change.low, change.value, change.high))
    if low <= 1 <= high:
        return f"as fast as ({low:.2f} to {high:.2f} times)"
    return f"{value:.2f} times ({low:.2f} to {high:.2f}) as fast as"


def _loss(quality: Quality) -> str:
    assert quality.drop is not None
    low, high = quality.drop_interval or (quality.drop, quality.drop)
    verb = "loses" if quality.drop >= 0 else "gains"
    inside = ", inside the noise" if low <= 0 <= high else ""
    return f"{verb} {abs(quality.drop):.2f} points of AP{_interval(quality)}{inside}"


def _interval(quality: Quality) -> str:
    if quality.drop_interval is None:
        return ""
    return f" ({quality.drop_interval[0]:+.2f} to {quality.drop_interval[1]:+.2f} lost, on {quality.images} images)"


def _loses(quality: Quality, max_ap_drop: float) -> bool:
    """Whether it loses more than it may, and the loss is no noise."""
    if quality.drop is None:
        return False
    return quality.drop > max_ap_drop and (quality.drop_interval is None or quality.drop_interval[0] > 0)


def _rates(pick: Row) -> str:
    offline, server = pick.scenario("Offline"), pick.scenario("Server")
    parts = []
    if offline is not None and offline.rate is not None:
        parts.append(f"{offline.rate.value:.0f} images/s when all are there at once")
    if server is not None and server.bound_ms is not None:
        held = "no rate that was tried" if server.rate is None else f"{server.rate.value:.0f} images/s"
        parts.append(f"{held} arriving at random with 99 of 100 answered within {server.bound_ms:g} ms")
    single = pick.scenario("SingleStream")
    if single is not None and single.p99_ms is not None:
        parts.append(f"a 99th percentile of {_ms(single.p99_ms)} for one at a time")
    return f"It reaches {', and '.join(parts)}." if parts else ""


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
