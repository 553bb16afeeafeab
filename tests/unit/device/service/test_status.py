"""What the service writes of itself, and what ``status`` makes of it."""

from __future__ import annotations

import json

import pytest

from edge_effdet.device.service.processes import seconds_since_boot
from edge_effdet.device.service.status import describe_service, judge, read_status, status_path, write_status
from edge_effdet.sending.report import SendReport
from tests.statuses import make_status


def test_what_is_written_is_read(store):
    status = make_status(source="/tmp/ä b")
    write_status(status_path(store.folder), status)
    assert read_status(store.folder) == status
    assert status.alive


FIRST_KEYS = {
    "format", "version", "state", "healthy", "reason", "pid", "process", "started_at", "started_s", "updated_s", "source", "engine", "backend",
    "precision", "frames", "fps", "latency_ms_p50", "latency_ms_p90", "last_frame_s", "dropped", "skipped", "reopened", "results_lost",
    "temperature_c", "temperature_of", "last_error", "last_error_s",
}  # fmt: skip
"""What the first release has in a status. It refuses one with other keys."""


def test_the_first_release_reads_it_and_it_reads_that_ones(store):
    """An update may be made, and a rollback is, by the code of one version which waits for the service of the other."""
    path = status_path(store.folder)
    write_status(path, make_status(sending=(SendReport("mqtt://broker:1883/line", 1),)))
    raw = json.loads(path.read_text())
    assert set(raw) == FIRST_KEYS and raw["format"] == 1
    path.with_name("sending.json").unlink()
    assert read_status(store.folder) == make_status(**{**raw, "sending": ()})


def test_what_an_earlier_process_sent_is_not_told_of_a_later_one(store):
    path = status_path(store.folder)
    write_status(path, make_status(process="earlier:1", sending=(SendReport("mqtt://broker:1883/line", 1),)))
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({**raw, "process": "later:1"}))
    found = read_status(store.folder)
    assert found is not None and found.sending == ()


def test_a_status_of_another_format_or_half_of_one_is_none(store):
    path = status_path(store.folder)
    assert read_status(store.folder) is None
    write_status(path, make_status(format=99))
    assert read_status(store.folder) is None
    path.write_text('{"format": 1, "version"')
    assert read_status(store.folder) is None
    path.write_text("[]")
    assert read_status(store.folder) is None


def test_without_a_place_for_a_new_file_the_old_one_is_written_over(store):
    path = status_path(store.folder)
    write_status(path, make_status(last_error="a long sentence, " * 20))
    # A folder in its way stands for a disk without room; the loop is tested on such a disk.
    path.with_name(f".{path.name}.new").mkdir()
    write_status(path, make_status(frames=11))
    assert read_status(store.folder).frames == 11
    path.unlink()
    with pytest.raises(OSError):
        write_status(path, make_status())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, ""),
        ({"state": "idle"}, ""),
        ({"healthy": False, "reason": "no frame has come so far"}, "no frame has come so far"),
        ({"process": "earlier:1", "last_error": "The camera is gone."}, "has ended: The camera is gone"),
        ({"process": "earlier:1", "state": "stopped"}, "it was stopped"),
        ({"updated_s": -100.0}, "s old, so its process"),
    ],
)
def test_a_status_is_judged(changes, said):
    assert (said in judge(make_status(**changes))) if said else judge(make_status(**changes)) == ""


def test_the_table_tells_a_service_that_runs(store):
    write_status(
        status_path(store.folder),
        make_status(last_error="It has sent nothing.", last_error_s=seconds_since_boot() - 300),
    )
    result = describe_service(store, running=True)
    for said in ("healthy       yes", "10, 12.5 a second", "40.0 ms median, 55.5 ms P90", "51.2 °C (tj-thermal)", "INT8 by onnxruntime",
                 "2 too old, 1 unreadable", "5 min ago: It has sent nothing.", "1.0-aaaa", "current"):  # fmt: skip
        assert said in result.text
    data = json.loads(json.dumps(result.data))
    assert data["healthy"] is True
    assert data["running"] is True
    assert data["service"]["fps"] == 12.5
    assert [(each["id"], each["current"], each["complete"]) for each in data["versions"]] == [("1.0-aaaa", True, True)]


def test_the_table_tells_what_is_missing(store):
    write_status(
        status_path(store.folder),
        make_status(latency_ms_p50=None, latency_ms_p90=None, temperature_c=None, temperature_of="no zone", engine=""),
    )
    text = describe_service(store).text
    for said in ("none in the last seconds", "not known: no zone", "not loaded", "last error    none"):
        assert said in text


def test_what_is_sent_is_told(store):
    reports = (
        SendReport("mqtt://broker:1883/line", 12, waiting=3, problem="Connection refused"),
        SendReport("https://host:443/hook", 15, dropped=2),
    )
    status = make_status(sending=reports)
    write_status(status_path(store.folder), status)
    assert read_status(store.folder) == status
    result = describe_service(store)
    assert (
        "sending       mqtt://broker:1883/line: 12 messages sent, 3 waiting in the spool (Connection refused)"
        in result.text
    )
    assert "sending       https://host:443/hook: 15 messages sent, 2 dropped for newer ones" in result.text
    assert [each["waiting"] for each in result.data["service"]["sending"]] == [3, 0]


def test_a_service_that_never_ran(store):
    result = describe_service(store)
    assert "no: it has written no status" in result.text
    assert (result.data["service"], result.data["healthy"], result.data["running"]) == (None, False, False)


def test_a_service_that_ended_is_not_shown_as_if_it_ran(store):
    write_status(status_path(store.folder), make_status(process="earlier:1"))
    result = describe_service(store)
    assert "not running (last: running)" in result.text
    assert "process       none" in result.text
    assert result.data["healthy"] is False


def test_versions_have_their_marks(store, add_version):
    add_version(store, "1.1-bbbb")
    store.mark_bad(store.version("1.0-aaaa"), "it did not become healthy")
    store.mark_good(store.version("1.1-bbbb"))
    (store.folder / "versions/2.0-half").mkdir()
    write_status(status_path(store.folder), make_status())
    result = describe_service(store)
    marks = {
        each["id"]: (each["complete"], each["current"], each["good"], each["bad"]) for each in result.data["versions"]
    }
    assert marks == {
        "1.0-aaaa": (True, False, False, "it did not become healthy"),
        "1.1-bbbb": (True, True, True, None),
        "2.0-half": (False, False, False, None),
    }
    for said in ("bad: it did not become healthy", "current, good", "not whole", "the installed version is 1.1-bbbb"):
        assert said in result.text
