"""The record of an engine: what it survives, what it refuses, and the schema that is published of it."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import jsonschema
import pytest

from edge_effdet.artifacts import EngineRecord, ModelSpec, json_text, record
from edge_effdet.artifacts.reading import from_json, to_json
from edge_effdet.artifacts.record import (
    Accuracy,
    Agreement,
    Calibration,
    Confidence,
    Fingerprint,
    Golden,
    GoldenPicture,
    Latency,
    MeanTopScore,
    Race,
    RaceEntry,
    Reference,
    Verdict,
    record_from_json,
    record_to_json,
)
from edge_effdet.errors import UsageError
from tests.records import make_record
from tests.schemas import attributes, schema_of

SCHEMA = Path(__file__).parents[3] / "docs" / "engine-record.schema.json"
MACHINE = Fingerprint("openvino", "2026.4.1", "x86", ("avx2",))
AGREEMENT = Agreement(
    distance=0.01,
    allowed=None,
    from_exact=0.01,
    from_exact_allowed=0.1,
    pictures=8,
    reference="the FP32 graph",
    backend_right=True,
    right=True,
    text="on 8 pictures",
)
LATENCY = Latency(9.5, 10.0, 30, 1, "bf16")
FULL = make_record(
    engine_verified=True,
    gate=Verdict(
        passed=True, decided_by="drop", max_ap_drop=None, budget_was="asked", text="it gains", tried_before=("INT8",)
    ),
    accuracy=Accuracy(
        AP=0.4,
        AP50=0.8,
        images=72,
        split="test",
        measured_on="engine",
        data_sha256="ab" * 32,
        drop_interval=(-1.0, 1.0),
        confidence=Confidence((0.05, 0.1), (3,), (4,), MeanTopScore(0.9, 0.8), False),
        machine=MACHINE,
    ),
    latency=LATENCY,
    reference=Reference("cd" * 32, 1000, LATENCY),
    agreement=AGREEMENT,
    race=Race(
        winner="openvino",
        order=("openvino",),
        precision="int8",
        graph_sha256="ef" * 32,
        backends=(
            RaceEntry(backend="openvino", version="1", precision="int8", agreement=AGREEMENT, latency=LATENCY),
            RaceEntry(backend="tensorrt", skipped="it is not installed"),
        ),
    ),
    calibration=Calibration(
        method="max",
        images=8,
        split="train",
        choice="random",
        seed=0,
        manifest_sha256="01" * 32,
        manifest={"a": "23" * 32},
        options={"equalize": True},
    ),
    golden=Golden(
        kind="pictures",
        fingerprint=MACHINE,
        tolerance=0.1,
        pictures=(GoldenPicture(((0.0, 1.0, 2.0, 3.0),), (0.5,), (0,), "AAAA"),),
        sha256="45" * 32,
    ),
)


def test_the_published_schema_is_that_of_the_record():
    """``EDGE_EFFDET_WRITE_SCHEMA=1`` writes it."""
    schema = schema_of(EngineRecord)
    # Not a field, for it is worked out of the fields. Records of earlier versions lack it.
    schema["properties"][record.DIGEST] = {"type": "string", "description": "the SHA-256 over all other fields."}
    text = json.dumps(schema, indent=2) + "\n"
    if os.environ.get("EDGE_EFFDET_WRITE_SCHEMA") == "1":
        SCHEMA.write_text(text)
    assert SCHEMA.read_text() == text


def test_every_field_of_the_record_is_described():
    kinds = [kind for kind in vars(record).values() if dataclasses.is_dataclass(kind) and kind is not ModelSpec]
    assert EngineRecord in kinds and len(kinds) > 12
    for kind in kinds:
        assert set(attributes(kind.__doc__)) == {field.name for field in dataclasses.fields(kind)}, kind


@pytest.mark.parametrize("given", [make_record(), FULL])
def test_a_record_survives_the_file_and_keeps_to_the_schema(given):
    raw = json.loads(json.dumps(record_to_json(given)))
    assert record_from_json(raw) == given
    jsonschema.validate(raw, json.loads(SCHEMA.read_text()))


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (("backend",), 3, "backend is 3 \\(int\\) and not str"),
        (("rewrites",), ["x"], "rewrites is .* and not Mapping"),
        (("rewrites",), {"rule": "x"}, "rewrites.rule is 'x' \\(str\\) and not int"),
        (("note",), "mine", "note is not a field that this version knows"),
        (("gate", "passed"), 1, "gate.passed is 1 \\(int\\) and not bool"),
        (("gate", "max_ap_drop"), True, "gate.max_ap_drop is True \\(bool\\) and not float"),
        (("accuracy", "AP"), None, "accuracy.AP is null and not float"),
        (("accuracy", "drop_interval"), [1.0], "accuracy.drop_interval has 1 values and not 2"),
        (("golden", "pictures"), 3, "golden.pictures is 3 \\(int\\) and not tuple"),
        (("golden", "fingerprint", "instructions"), ["a", 1], r"golden.fingerprint.instructions\[1\] is 1 .* not str"),
        (("golden", "fingerprint"), [], r"golden.fingerprint is \[\] \(list\) and not an object"),
    ],
)
def test_a_field_of_another_type_is_refused_by_its_name(place, value, message):
    raw = to_json(FULL)
    inner = raw
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    with pytest.raises(ValueError, match=message):
        record_from_json(raw)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("accuracy", "AP"), 0.9),
        (("gate", "passed"), False),
        (("spec", "class_names"), ["another"]),
        (("golden", "tolerance"), 1.0),
        (("target",), "a machine of another kind"),
    ],
)
def test_an_edit_of_a_field_is_noticed(place, value):
    raw = json.loads(json.dumps(record_to_json(FULL)))
    inner = raw
    for key in place[:-1]:
        inner = inner[key]
    assert inner[place[-1]] != value
    inner[place[-1]] = value
    with pytest.raises(ValueError, match="its fields are not those that its fields_sha256 was worked out of"):
        record_from_json(raw)
    # What an earlier version wrote is read, and nothing is known of edits.
    del raw["fields_sha256"]
    assert record_from_json(raw) == from_json(EngineRecord, raw)


def test_the_digest_is_of_the_fields_and_not_of_how_they_are_written():
    raw = record_to_json(FULL)
    again = json.loads(json.dumps(dict(reversed(raw.items())), indent=7, ensure_ascii=False))
    assert record_from_json(again) == FULL


def test_names_that_are_no_text_do_not_spoil_the_digest():
    """Bytes of a file name that are not UTF-8 are escaped when the record is written."""
    given = make_record(target="a\udcb2b")
    assert record_from_json(json.loads(json_text(record_to_json(given)))).target == "a\\xb2b"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"precision": "int4"}, "precision is 'int4' and none of fp32, fp16, int8"),
        ({"spec": {"class_names": ["a", "a"], "category_ids": [1, 2]}}, "several classes of one name \\('a'\\)"),
        ({"spec": {"class_names": ["a"], "category_ids": [1, 2]}}, "names 1 classes but 2 category ids"),
        ({"spec": {"preprocess": {"mean": [0, 0, 0], "std": [1, 0, 1]}}}, "normalisation makes no sense"),
        ({"spec": {"preprocess": {"mean": [0, float("nan"), 0], "std": [1, 1, 1]}}}, "normalisation makes no sense"),
        ({"spec": {"image_size": [0, 64]}}, "pictures of 0x64 pixels"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, said):
    raw = to_json(make_record())
    for key, value in changes.items():
        raw[key] = {**raw[key], **value} if isinstance(value, dict) else value
    with pytest.raises(ValueError, match=said):
        record_from_json(raw)


def test_a_whole_number_is_read_where_a_fraction_is_expected():
    raw = to_json(FULL)
    raw["latency"]["median_ms"] = 9
    median = from_json(EngineRecord, raw).latency.median_ms
    assert median == 9.0 and isinstance(median, float)


def test_only_the_present_format_is_made():
    with pytest.raises(UsageError, match="`format` 2"):
        make_record(format=2)
