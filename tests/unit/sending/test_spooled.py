"""The sink with a spool: what a frame becomes, what is sent again, and that no frame waits for a receiver."""

from __future__ import annotations

import dataclasses
import json
import time

import pytest

from edge_effdet.runtime.sinks import detections_to_json
from edge_effdet.sending import webhook
from edge_effdet.sending.addresses import webhook_address
from edge_effdet.sending.options import SendOptions, make_senders
from edge_effdet.sending.spool import Spool, SpooledMessage
from edge_effdet.sending.spooled import SpooledSink, frame_to_json, payload_of
from edge_effdet.sending.webhook import WebhookCarrier
from tests.receivers import SPEC, Answer, WebhookReceiver, free_port, make_frame, silent_server, wait_for


def open_sink(folder, port, **options) -> SpooledSink:
    (sink,) = make_senders(SendOptions(webhook=f"http://127.0.0.1:{port}/hook", **options), SPEC, "camera", folder)
    assert isinstance(sink, SpooledSink)
    return sink


def test_a_frame_becomes_an_object():
    found = make_frame(7, objects=2, track_ids=[4, -1])
    row = json.loads(json.dumps(frame_to_json(found, SPEC)))
    assert abs(row.pop("time") - time.time()) < 600
    assert 0 < row.pop("boot_s") <= time.clock_gettime(time.CLOCK_BOOTTIME) + 0.001
    assert row.pop("seconds") == 0.7
    assert row == detections_to_json("camera#7", found.detections, SPEC)
    assert [each.get("track_id") for each in row["detections"]] == [4, None]
    failed = dataclasses.replace(found, detections=None, problem="It is empty.")
    assert frame_to_json(failed, SPEC).keys() == {"time", "boot_s", "image", "problem", "seconds"}


def test_a_message_says_who_it_is_and_whether_it_may_have_come_before():
    message = SpooledMessage(1, "ab-000001-0000000001", True, b'{"time": 1, "image": "x"}')
    payload = json.loads(payload_of(message))
    assert list(payload.items())[:2] == [("id", "ab-000001-0000000001"), ("duplicate", True)]
    assert (payload["time"], payload["image"]) == (1, "x")
    assert json.loads(payload_of(dataclasses.replace(message, tried=False)))["duplicate"] is False


def test_frames_arrive_once_and_in_order(tmp_path):
    with WebhookReceiver() as receiver:
        sink = open_sink(tmp_path, receiver.port)
        for number in range(50):
            sink.write(make_frame(number, objects=number % 3))
        sink.close()
    assert [each["image"] for each in receiver.received] == [f"camera#{number}" for number in range(50)]
    assert [len(each["detections"]) for each in receiver.received] == [number % 3 for number in range(50)]
    assert not any(each["duplicate"] for each in receiver.received)
    ids = [each["id"] for each in receiver.received]
    assert ids == sorted(set(ids))
    report = sink.report()
    assert (report.sent, report.waiting, report.dropped, report.lost, report.problem) == (50, 0, 0, 0, "")


def test_frames_without_objects_may_be_left_out(tmp_path):
    with WebhookReceiver() as receiver:
        sink = open_sink(tmp_path, receiver.port, frames="with-objects")
        for number in range(9):
            sink.write(make_frame(number, objects=number % 3))
        sink.write(dataclasses.replace(make_frame(9), detections=None, problem="It is empty."))
        sink.close()
    assert [each["image"] for each in receiver.received] == [f"camera#{number}" for number in (1, 2, 4, 5, 7, 8)]


def test_a_frame_that_could_not_be_decoded_is_told(tmp_path):
    with WebhookReceiver() as receiver:
        sink = open_sink(tmp_path, receiver.port)
        sink.write(dataclasses.replace(make_frame(9), detections=None, problem="It is empty."))
        sink.close()
    assert [each["problem"] for each in receiver.received] == ["It is empty."]


def test_what_is_left_is_sent_by_the_next_run(tmp_path, caplog):
    caplog.set_level("INFO")
    port = free_port()
    sink = open_sink(tmp_path, port)
    for number in range(5):
        sink.write(make_frame(number))
    sink.close()
    report = sink.report()
    assert (report.sent, report.waiting) == (0, 5)
    assert "refused" in report.problem
    with WebhookReceiver() as receiver:
        # The spool is this receiver's.
        address = webhook_address(f"http://127.0.0.1:{receiver.port}/hook")
        (path,) = tmp_path.glob("webhook-*.spool")
        again = SpooledSink(Spool(path, 1), WebhookCarrier(address, None), SPEC)
        again.write(make_frame(5))
        again.close()
    assert [each["image"] for each in receiver.received] == [f"camera#{number}" for number in range(6)]
    # The first was taken for sending, though nobody was there.
    assert (receiver.received[0]["duplicate"], receiver.received[-1]["duplicate"]) == (True, False)
    said = [record.message for record in caplog.records]
    assert len([each for each in said if "do not reach" in each]) == 1
    assert any("5 messages from an earlier run" in each for each in said)


def test_a_receiver_that_comes_back_gets_everything(tmp_path, caplog):
    caplog.set_level("INFO")
    away = []
    with WebhookReceiver(lambda _: Answer(503 if away else 200)) as receiver:
        sink = open_sink(tmp_path, receiver.port)
        sink.write(make_frame(0))
        wait_for(lambda: sink.report().sent == 1)
        away.append(1)
        for number in range(1, 30):
            sink.write(make_frame(number))
        wait_for(lambda: sink.report().problem)
        count = len(receiver.requests)
        wait_for(lambda: len(receiver.requests) > count + 1)
        assert sink.report().waiting == 29
        away.clear()
        sink.close()
    assert sink.report().sent == 30
    last = {each["id"]: each for each in receiver.received}
    assert [each["image"] for each in last.values()] == [f"camera#{number}" for number in range(30)]
    # Of those that came more than once, all but the first say so.
    seen = set()
    for each in receiver.received:
        assert each["duplicate"] or each["id"] not in seen
        seen.add(each["id"])
    said = [record.message for record in caplog.records]
    assert len([each for each in said if "do not reach" in each and "503" in each]) == 1
    assert len([each for each in said if "again" in each]) == 1


def test_nobody_waits_for_a_receiver_that_says_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(webhook, "SILENCE", 0.5)
    with silent_server() as port:
        sink = open_sink(tmp_path, port)
        for number in range(200):
            sink.write(make_frame(number))
        assert (sink.report().sent, sink.report().waiting) == (0, 200)
        wait_for(lambda: sink.report().problem)
        sink.close()
    assert sink.report().problem == "it does not answer in time"
    assert sink.report().waiting == 200


def test_a_spool_that_cannot_be_written_is_told_once(tmp_path, caplog):
    sink = open_sink(tmp_path, free_port())
    sink.close()
    for number in range(3):
        sink.write(make_frame(number))
    assert sink.report().lost == 3
    assert len([record for record in caplog.records if "are lost" in record.message]) == 1


@pytest.mark.parametrize("mib", [1, 2])
def test_the_oldest_are_dropped_and_counted(tmp_path, mib):
    port = free_port()
    sink = open_sink(tmp_path, port, spool_mib=mib)
    number = 0
    while sink.report().dropped < 20:
        sink.write(make_frame(number, objects=200))
        number += 1
    sink.close()
    report = sink.report()
    assert (report.sent, report.waiting + report.dropped) == (0, number)
    with WebhookReceiver() as receiver:
        (path,) = tmp_path.glob("webhook-*.spool")
        address = webhook_address(f"http://127.0.0.1:{receiver.port}/")
        again = SpooledSink(Spool(path, mib), WebhookCarrier(address, None), SPEC)
        again.close()
    assert [each["image"] for each in receiver.received] == [f"camera#{each}" for each in range(report.dropped, number)]
