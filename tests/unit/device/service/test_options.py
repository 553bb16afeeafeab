"""``config.json``: read whole or in part, refused where it is wrong."""

from __future__ import annotations

import json

import pytest

from edge_effdet.device.service.options import ServiceOptions, read_options, write_options
from edge_effdet.errors import InputError, UsageError


def test_what_is_written_is_read(tmp_path):
    options = ServiceOptions(
        source="rtsp://camera/1", score_threshold=0.5, at_end="repeat", batch_size=2, mqtt="mqtt://a:b@c/d", track=True
    )
    write_options(tmp_path, options)
    assert read_options(tmp_path) == options


FIRST_OPTIONS = {
    "source",
    "score_threshold",
    "threads",
    "batch_size",
    "at_end",
    "results_mib",
    "keep_results",
    "memory_share",
}
"""Those of the first release, which refuses others. A rollback to it must not find any that nobody uses."""


def test_what_came_later_is_written_only_where_it_is_used(tmp_path):
    write_options(tmp_path, ServiceOptions(source="rtsp://camera/1"))
    assert set(json.loads((tmp_path / "config.json").read_text())) == FIRST_OPTIONS
    write_options(tmp_path, ServiceOptions(source="rtsp://camera/1", mqtt="mqtt://a:b@c/d"))
    assert set(json.loads((tmp_path / "config.json").read_text())) == {*FIRST_OPTIONS, "mqtt"}


def test_what_is_not_named_is_as_usual(tmp_path):
    assert read_options(tmp_path) == ServiceOptions()
    (tmp_path / "config.json").write_text('{"source": "/dev/video0", "score_threshold": 1}')
    assert read_options(tmp_path) == ServiceOptions(source="/dev/video0", score_threshold=1.0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "cannot be used"),
        ("[]", "it holds no object"),
        ('{"sauce": "x"}', "sauce is not a field"),
        ('{"threads": "two"}', "threads is 'two' (str) and not int"),
    ],
)
def test_a_damaged_file_is_refused_by_its_name(tmp_path, text, said):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError) as caught:
        read_options(tmp_path)
    assert said in str(caught.value)
    assert str(tmp_path / "config.json") in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"score_threshold": 1.5},
        {"threads": -1},
        {"batch_size": 0},
        {"at_end": "explode"},
        {"results_mib": 0},
        {"keep_results": -1},
        {"memory_share": 0.0},
        {"mqtt": "broker"},
        {"frames": "few"},
        {"spool_mib": 0},
        {"track_score": 2.0},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_what_makes_no_sense_is_refused_by_its_name(tmp_path, wrong):
    with pytest.raises(UsageError, match=f"`{next(iter(wrong))}`"):
        ServiceOptions(**wrong)
    (tmp_path / "config.json").write_text(json.dumps(wrong))
    with pytest.raises(UsageError):
        read_options(tmp_path)


def test_a_relative_path_is_made_absolute_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for source, written in (
        ("photos", str(tmp_path / "photos")),
        ("/dev/null", "/dev/null"),
        ("0", "0"),
        ("rtsp://photos", "rtsp://photos"),
        ("videotestsrc ! video/x-raw", "videotestsrc ! video/x-raw"),
        ("", ""),
    ):
        write_options(tmp_path, ServiceOptions(source=source))
        assert read_options(tmp_path).source == written
