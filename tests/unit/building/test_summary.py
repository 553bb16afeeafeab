"""What a build says of the accuracy of an engine, and what to type next."""

from __future__ import annotations

from dataclasses import replace

import pytest

from edge_effdet.artifacts import Engine
from edge_effdet.artifacts.record import Accuracy, Latency, Verdict
from edge_effdet.building.summary import build_report
from tests.records import make_record

MEASURED = Accuracy(AP=0.447, AP50=0.8, images=72, split="test", measured_on="engine", data_sha256="ab")


def report(tmp_path, drop: float, interval: tuple[float, float]) -> str:
    path = tmp_path / "x.int8.onnx"
    path.write_bytes(b"an engine")
    accuracy = replace(MEASURED, reference_AP=0.447 + drop / 100, drop=drop, drop_interval=interval)
    record = make_record(
        precision="int8", accuracy=accuracy, latency=Latency(median_ms=10.0, p90_ms=11.0, runs=10, batch=1)
    )
    return build_report(Engine(path, record.spec, record.backend, "int8", record=record))


@pytest.mark.parametrize(
    ("drop", "interval", "said"),
    [
        (-0.26, (-1.15, 0.65), "INT8 gains 0.26 points of AP; with 95 % confidence it is between a gain of 1.15 and a loss of 0.65, so these 72 images"),
        (0.9, (0.4, 1.5), "INT8 loses 0.90 points of AP; with 95 % confidence it is between a loss of 0.40 and a loss of 1.50."),
    ],
)  # fmt: skip
def test_a_drop_is_told_as_a_gain_or_a_loss(tmp_path, drop, interval, said):
    assert said in report(tmp_path, drop, interval)


def gated(tmp_path, **verdict) -> str:
    path = tmp_path / "x.int8.onnx"
    path.write_bytes(b"an engine")
    gate = Verdict(
        **{"passed": True, "max_ap_drop": 1.0, "budget_was": "default", "text": "FP32 itself has an AP of 0.0"}
        | verdict
    )
    accuracy = replace(MEASURED, reference_AP=0.0, drop=0.0)
    record = make_record(
        precision="int8", accuracy=accuracy, latency=Latency(median_ms=10.0, p90_ms=11.0, runs=10, batch=1), gate=gate
    )
    return build_report(Engine(path, record.spec, record.backend, "int8", record=record))


@pytest.mark.parametrize("decided_by", ["nothing", "interval"])
def test_what_no_drop_could_decide_is_said(tmp_path, decided_by):
    assert "\nThe engine passes, though FP32 itself has an AP of 0.0.\n" in gated(tmp_path, decided_by=decided_by)


def test_of_a_drop_within_the_budget_the_table_says_enough(tmp_path):
    assert "The engine passes" not in gated(tmp_path, decided_by="drop")


def test_what_to_type_next_names_no_folder_that_need_not_be_there(tmp_path):
    text = report(tmp_path, 0.1, (-1, 1))
    assert "--source FOLDER_OF_PICTURES" in text and "photos" not in text
