"""The report as data: what it survives, what it refuses, and the schema that is published of it."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import jsonschema
import pytest

from edge_effdet.artifacts.reading import from_json, to_json
from edge_effdet.benchmarking import record
from edge_effdet.benchmarking.record import Report
from edge_effdet.errors import UsageError
from tests.reports import full_report
from tests.schemas import attributes, schema_of

SCHEMA = Path(__file__).parents[3] / "docs" / "benchmark-report.schema.json"


def test_the_published_schema_is_that_of_the_report():
    """``EDGE_EFFDET_WRITE_SCHEMA=1`` writes it."""
    text = json.dumps(schema_of(Report), indent=2) + "\n"
    if os.environ.get("EDGE_EFFDET_WRITE_SCHEMA") == "1":
        SCHEMA.write_text(text)
    assert SCHEMA.read_text() == text


def test_every_field_of_the_report_is_described():
    kinds = [kind for kind in vars(record).values() if dataclasses.is_dataclass(kind)]
    assert Report in kinds and len(kinds) > 20
    for kind in kinds:
        assert set(attributes(kind.__doc__)) == {field.name for field in dataclasses.fields(kind)}, kind


def test_a_report_survives_the_file_and_keeps_to_the_schema():
    report = full_report()
    raw = json.loads(json.dumps(to_json(report)))
    assert from_json(Report, raw) == report
    jsonschema.validate(raw, json.loads(SCHEMA.read_text()))


def test_only_the_present_format_is_made():
    with pytest.raises(UsageError, match="`format` 2"):
        dataclasses.replace(full_report(), format=2)
