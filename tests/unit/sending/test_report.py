from __future__ import annotations

from edge_effdet.artifacts.reading import from_json, to_json
from edge_effdet.sending.report import SendReport, reports_of


def test_a_line_tells_what_is_not_usual():
    assert SendReport("mqtt://broker:1883/a", 1).text() == "mqtt://broker:1883/a: 1 message sent"
    report = SendReport("x", 3, waiting=2, dropped=4, refused=5, lost=6)
    assert report.text() == "x: 3 messages sent, 2 waiting in the spool, 4 dropped for newer ones, 5 refused, 6 lost"


def test_it_survives_json():
    report = SendReport("x", 3, waiting=2, problem="it is away")
    assert from_json(SendReport, to_json(report)) == report


def test_sinks_that_send_nothing_are_left_out():
    class Sending:
        def report(self):
            return SendReport("x")

    assert reports_of([object(), Sending()]) == [SendReport("x")]
