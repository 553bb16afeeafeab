"""The webhook against a real HTTP server: what counts as delivered, what is tried again, and what never is."""

from __future__ import annotations

import base64
import email.utils
import http.client
import ssl
import time

import pytest

from edge_effdet.sending import webhook
from edge_effdet.sending.options import SendOptions, make_senders
from edge_effdet.sending.webhook import BATCH, _retry_after
from tests.receivers import SPEC, Answer, WebhookReceiver, make_certificates, make_frame, wait_for


def open_sink(folder, port, scheme="http", login="", path="/hook", **options):
    address = f"{scheme}://{login}127.0.0.1:{port}{path}"
    (sink,) = make_senders(SendOptions(webhook=address, **options), SPEC, "camera", folder)
    return sink


def images(receiver) -> list[str]:
    return [each["image"] for each in receiver.received]


def names(*numbers: int) -> list[str]:
    return [f"camera#{number}" for number in numbers]


def test_many_messages_go_in_few_requests_of_bounded_size(tmp_path):
    block = [Answer(503)]
    with WebhookReceiver(lambda _: block[0] if block else Answer()) as receiver:
        sink = open_sink(tmp_path, receiver.port)
        for number in range(250):
            sink.write(make_frame(number))
        wait_for(lambda: receiver.requests)
        count = len(receiver.requests)
        block.clear()
        sink.close()
    assert images(receiver)[-250:] == names(*range(250))
    sizes = [len(content) for _, _, content in receiver.requests[count:]]
    assert max(sizes) == BATCH
    assert len(sizes) <= 6
    path, headers, _ = receiver.requests[0]
    assert path == "/hook"
    assert headers["Content-Type"] == "application/json"
    assert "Authorization" not in headers


def test_a_password_is_sent_and_never_told(tmp_path, caplog):
    caplog.set_level("DEBUG")
    with WebhookReceiver(lambda _: Answer(500)) as receiver:
        sink = open_sink(tmp_path, receiver.port, login="me:p%40ss@", path="/a?token=t0k3n")
        sink.write(make_frame(0))
        wait_for(lambda: sink.report().problem)
        sink.close()
    path, headers, _ = receiver.requests[0]
    assert path == "/a?token=t0k3n"
    assert base64.b64decode(headers["Authorization"].removeprefix("Basic ")) == b"me:p@ss"
    told = str(sink.report()) + "".join(record.getMessage() for record in caplog.records)
    assert "do not reach" in told
    for secret in ("p@ss", "p%40ss", "t0k3n"):
        assert secret not in told


def test_one_message_that_is_refused_goes_alone_and_the_others_arrive(tmp_path, caplog):
    held = [True]

    def answer(messages):
        if held:
            return Answer(503)
        return Answer(400 if any(each["image"] == "camera#3" for each in messages) else 200)

    with WebhookReceiver(answer) as receiver:
        sink = open_sink(tmp_path, receiver.port)
        for number in range(6):
            sink.write(make_frame(number))
        wait_for(lambda: receiver.requests)
        held.clear()
        sink.close()
    report = sink.report()
    assert (report.sent, report.refused, report.waiting) == (5, 1, 0)
    taken = [each["image"] for _, _, content in receiver.requests for each in content if len(content) == 1]
    assert taken[-6:] == names(0, 1, 2, 3, 4, 5)
    (said,) = [record.message for record in caplog.records if "refused a message" in record.message]
    assert "400" in said


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_message_that_will_never_be_taken_is_dropped_and_counted(tmp_path, caplog, status):
    with WebhookReceiver(lambda _: Answer(status)) as receiver:
        sink = open_sink(tmp_path, receiver.port)
        sink.write(make_frame(0))
        wait_for(lambda: sink.report().refused)
        sink.close()
    assert (sink.report().sent, sink.report().refused, sink.report().waiting) == (0, 1, 0)
    assert len([record for record in caplog.records if str(status) in record.message]) == 1
    assert "1 refused" in sink.report().text()


@pytest.mark.parametrize("status", [401, 403, 404, 408, 410, 429, 500, 502, 503])
def test_what_may_succeed_later_is_tried_again(tmp_path, status):
    answers = [Answer(status), Answer(status)]
    with WebhookReceiver(lambda _: answers.pop() if answers else Answer(204)) as receiver:
        sink = open_sink(tmp_path, receiver.port)
        sink.write(make_frame(0))
        wait_for(lambda: sink.report().sent)
        sink.close()
    assert [each["duplicate"] for each in receiver.received] == [False, True, True]
    assert (sink.report().sent, sink.report().refused) == (1, 0)


def test_a_receiver_may_ask_to_be_left_alone(tmp_path):
    answers, times = [Answer(429, {"Retry-After": "1"})], []

    def answer(_):
        times.append(time.monotonic())
        return answers.pop() if answers else Answer()

    with WebhookReceiver(answer) as receiver:
        sink = open_sink(tmp_path, receiver.port)
        sink.write(make_frame(0))
        wait_for(lambda: sink.report().sent)
        sink.close()
    assert times[1] - times[0] >= 1
    assert len(receiver.requests) == 2


def test_the_forms_of_retry_after():
    def asked(text, date=""):
        headers = http.client.HTTPMessage()
        headers["Retry-After"] = text
        if date:
            headers["Date"] = date
        return _retry_after(headers)

    assert asked("7") == 7
    assert asked("999999") == webhook.LONGEST_ASKED
    assert asked("soon") is None
    assert asked("-1") is None
    assert _retry_after(http.client.HTTPMessage()) is None
    # By the receiver's clock: here both are of the past.
    assert asked("Wed, 21 Oct 2015 07:28:30 GMT", "Wed, 21 Oct 2015 07:28:00 GMT") == 30
    assert asked("Wed, 21 Oct 2015 07:28:00 GMT", "Wed, 21 Oct 2015 07:28:30 GMT") == 0
    assert asked(email.utils.formatdate(time.time() + 100, usegmt=True)) == pytest.approx(100, abs=5)


def test_a_redirect_is_not_followed(tmp_path):
    with WebhookReceiver() as other:
        target = f"http://127.0.0.1:{other.port}/hook"
        with WebhookReceiver(lambda _: Answer(307, {"Location": target})) as receiver:
            sink = open_sink(tmp_path, receiver.port)
            sink.write(make_frame(0))
            wait_for(lambda: sink.report().problem)
            sink.close()
        assert other.requests == []
    problem = sink.report().problem
    assert "redirects are not followed" in problem and target not in problem
    assert sink.report().waiting == 1


def test_a_connection_that_the_receiver_closed_costs_nothing(tmp_path, caplog):
    with WebhookReceiver(lambda _: Answer(then_close=True)) as receiver:
        sink = open_sink(tmp_path, receiver.port)
        for number in range(4):
            sink.write(make_frame(number))
            wait_for(lambda number=number: sink.report().sent == number + 1)
        sink.close()
    assert sorted(set(images(receiver))) == names(0, 1, 2, 3)
    assert not [record for record in caplog.records if "do not reach" in record.message]


def test_a_connection_that_breaks_before_the_answer_makes_a_duplicate(tmp_path):
    answers = [Answer(hang_up=True)]
    with WebhookReceiver(lambda _: answers.pop() if answers else Answer()) as receiver:
        sink = open_sink(tmp_path, receiver.port)
        sink.write(make_frame(0))
        wait_for(lambda: sink.report().sent)
        sink.close()
    first, second = receiver.received
    assert first["id"] == second["id"]
    assert (first["duplicate"], second["duplicate"]) == (False, True)


@pytest.mark.parametrize("where", ["head", "content"])
def test_a_receiver_that_trickles_is_given_up(tmp_path, monkeypatch, where):
    monkeypatch.setattr(webhook, "WHOLE", 0.5)
    with WebhookReceiver(lambda _: Answer(slowly=where)) as receiver:
        sink = open_sink(tmp_path, receiver.port)
        sink.write(make_frame(0))
        wait_for(lambda: sink.report().problem == "it does not answer in time")
        receiver.answer = lambda _: Answer()
        wait_for(lambda: sink.report().sent)
        sink.close()


def test_https_with_an_authority_of_ones_own(tmp_path):
    files = make_certificates(tmp_path / "tls")
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(files.certificate, files.key)
    with WebhookReceiver(tls=tls) as receiver:
        sink = open_sink(tmp_path / "1", receiver.port, "https", ca_file=str(files.authority))
        for number in range(3):
            sink.write(make_frame(number))
        sink.close()
        assert images(receiver) == names(0, 1, 2)
        for ca_file in (str(files.stranger), ""):
            sink = open_sink(tmp_path / "2", receiver.port, "https", ca_file=ca_file)
            sink.write(make_frame(0))
            wait_for(lambda sink=sink: sink.report().problem)
            sink.close()
            assert "certificate" in sink.report().problem.lower()
        assert len(receiver.received) == 3
