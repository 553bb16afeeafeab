"""The verdict: the fastest engine that loses little enough, in sentences whose figures are those of the rows."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edge_effdet.artifacts.record import Verdict
from edge_effdet.benchmarking.advice import advise
from edge_effdet.benchmarking.record import Comparison, Estimate, Quality, Row, Scenario
from tests.reports import full_report

ROUNDS = tuple(1 + 0.01 * (number % 3) for number in range(10))


def make_row(
    precision: str,
    ms: float,
    ap: float | None = None,
    drop: float | None = None,
    interval=(-0.3, 0.4),
    backend="onnxruntime",
) -> Row:
    quality = None
    if ap is not None:
        quality = Quality(
            AP=ap, AP50=ap, AP75=ap, AP_small=None, AP_medium=ap, AP_large=ap, per_class={}, boxes_per_class={}, images=72,
            score_floor=0.001, engine_sha256="0" * 64, drop=drop, drop_interval=None if drop is None else interval,
            reference=None if drop is None else "fp32.onnx",
        )  # fmt: skip
    times = tuple(ms * each for each in ROUNDS)
    return Row(
        name=f"{precision}.onnx",
        path=f"{precision}.onnx",
        engine_sha256="0" * 64,
        engine_bytes=1,
        model="tf_efficientdet_lite0",
        image_size=(320, 320),
        backend=backend,
        backend_version="1",
        precision=precision,
        scenarios=(
            Scenario(
                name="SingleStream", driven_by="own loop", queries=700, images=700, seconds=7.0, enough="", p50_ms=Estimate(ms, ms, ms),
                round_p50_ms=times,
            ),
        ),
        quality=quality,
    )  # fmt: skip


def test_int8_that_is_faster_and_inside_the_noise_is_taken():
    advice = advise([make_row("fp32", 20, 0.35), make_row("int8", 10, 0.3496, 0.04, backend="openvino")], 1.0)
    assert advice.pick == "int8.onnx"
    assert advice.sentences[0] == (
        "INT8 on OpenVINO answers an image in 10 ms, 2.00 times (2.00 to 2.00) as fast as FP32 on onnxruntime, and loses 0.04 points of AP "
        "(-0.30 to +0.40 lost, on 72 images), inside the noise; take it."
    )


def test_one_that_loses_too_much_is_not_taken_however_fast():
    advice = advise([make_row("fp32", 20, 0.35), make_row("int8", 5, 0.23, 12.0, (9.0, 15.0))], 1.0)
    assert advice.pick == "fp32.onnx"
    text = " ".join(advice.sentences)
    assert "INT8 on onnxruntime is faster (5 ms) but loses 12.0 points of AP" in text
    assert "more than the 1 that are allowed" in text


def test_a_large_loss_within_the_noise_of_few_images_is_not_taken_and_more_images_are_asked_for():
    advice = advise([make_row("fp32", 20, 0.35), make_row("int8", 5, 0.33, 2.0, (-1.0, 5.0))], 1.0)
    assert advice.pick == "fp32.onnx" and "72 images are too few to be sure of that" in advice.sentences[1]


def test_a_small_loss_that_few_images_cannot_bound_is_taken_with_that_word():
    advice = advise([make_row("fp32", 20, 0.35), make_row("int8", 5, 0.345, 0.5, (-1.0, 2.0))], 1.0)
    assert advice.pick == "int8.onnx" and "72 images cannot exclude a loss of 2.00" in advice.sentences[0]


def test_no_gain_in_speed_is_worth_no_loss():
    advice = advise([make_row("fp32", 15, 0.35), make_row("int8", 14.99, 0.341, 0.9, (0.5, 1.2))], 1.0)
    assert advice.pick == "fp32.onnx" and "INT8 on onnxruntime is not surely faster" in " ".join(advice.sentences)


def test_where_every_engine_loses_too_much_none_is_taken():
    """The reference crashed after it was judged."""
    reference = replace(make_row("fp32", 20, 0.35), skipped="it crashed")
    advice = advise([reference, make_row("int8", 5, 0.23, 12.0, (9.0, 15.0))], 1.0)
    assert advice.pick is None and advice.sentences[0].startswith("No engine can be taken")


def test_an_engine_without_ap_is_not_taken_where_others_have_it():
    advice = advise([make_row("fp32", 20, 0.35), make_row("int8", 5)], 1.0)
    assert advice.pick == "fp32.onnx" and "its AP is not known" in " ".join(advice.sentences)


def test_without_labelled_images_the_gate_of_the_build_decides():
    row = make_row("int8", 5)
    gate = Verdict(
        passed=False, decided_by="drop", max_ap_drop=1.0, budget_was="default", text="it loses 12 points of AP"
    )
    failed = replace(row, evidence=replace(full_report().rows[0].evidence, gate=gate))
    advice = advise([make_row("fp32", 20), failed], 1.0)
    assert advice.pick == "fp32.onnx" and "it loses 12 points" in " ".join(advice.sentences)


def test_nothing_compared_is_not_called_no_regression():
    comparison = Comparison(
        baseline="old", same_machine=True, max_slowdown_percent=5, max_ap_drop=1, changes=(), missing=("x",)
    )
    assert "Nothing could be compared" in " ".join(advise([make_row("fp32", 20)], 1.0, comparison).sentences)


def test_int8_that_is_slower_is_not_taken():
    advice = advise([make_row("fp32", 20, 0.35), make_row("int8", 60, 0.35, 0.0)], 1.0)
    assert advice.pick == "fp32.onnx"
    assert advice.sentences[0].startswith("FP32 on onnxruntime is the one to take and answers an image in 20 ms")


def test_without_labelled_images_the_verdict_says_that_ap_was_not_measured():
    advice = advise([make_row("fp32", 20), make_row("int8", 10)], 1.0)
    assert advice.pick == "int8.onnx" and "AP was not measured here" in advice.sentences[0]


def test_a_row_that_was_skipped_is_never_taken():
    skipped = replace(make_row("int8", 1), skipped="the engine's process crashed (SIGSEGV)")
    assert advise([make_row("fp32", 20), skipped], 1.0).pick == "fp32.onnx"
    advice = advise([skipped], 1.0)
    assert advice.pick is None and "SIGSEGV" in advice.sentences[0]


def test_a_marked_row_says_so_in_the_verdict():
    row = replace(make_row("fp32", 20), marks=("other processes took 30 % of the processors",))
    assert "less certain than usual: other processes took 30 %" in " ".join(advise([row], 1.0).sentences)


def test_equal_engines_are_told_apart_by_their_names():
    first, second = make_row("fp32", 20), replace(make_row("fp32", 10), name="other.onnx")
    assert (
        advise([first, second], 1.0)
        .sentences[0]
        .startswith("other.onnx is the one to take and answers an image in 10 ms")
    )


@pytest.mark.parametrize("ms", [20.0, 20.01])
def test_a_difference_inside_the_noise_is_not_called_faster(ms: float):
    rows = [make_row("fp32", 20, 0.35), make_row("int8", 19.99, 0.35, 0.0)]
    single = rows[1].scenarios[0]
    noisy = replace(single, round_p50_ms=tuple(ms * (1.05 if number % 2 else 0.95) for number in range(10)))
    advice = advise([rows[0], replace(rows[1], scenarios=(noisy,))], 1.0)
    assert advice.pick == "fp32.onnx" and "INT8" not in advice.sentences[0]
