"""MQTT against a real mosquitto: at least once and in order, whatever the broker does meanwhile."""

from __future__ import annotations

import contextlib
import re
import socket
import subprocess
import threading

import pytest

from edge_effdet.runtime.sinks import detections_to_json
from edge_effdet.sending import mqtt
from edge_effdet.sending.options import SendOptions, make_senders
from tests.receivers import (
    SPEC,
    Broker,
    Subscriber,
    free_port,
    make_certificates,
    make_frame,
    mosquitto_or_skip,
    silent_server,
    wait_for,
)

pytest.importorskip("paho.mqtt")


def open_sink(folder, port, login="", topic="line/1", scheme="mqtt", **options):
    address = f"{scheme}://{login}127.0.0.1:{port}/{topic}"
    (sink,) = make_senders(SendOptions(mqtt=address, **options), SPEC, "camera", folder)
    return sink


def names(count: int, first: int = 0) -> list[str]:
    return [f"camera#{number}" for number in range(first, count)]


def images(messages) -> list[str]:
    return [each["image"] for each in messages]


@pytest.fixture
def broker(tmp_path):
    with Broker(tmp_path / "broker") as broker:
        yield broker


def test_frames_arrive_once_in_order_and_whole(tmp_path, broker):
    with Subscriber(broker.port) as subscriber:
        sink = open_sink(tmp_path, broker.port)
        frames = [make_frame(number, objects=number % 4) for number in range(100)]
        for frame in frames:
            sink.write(frame)
        sink.close()
        wait_for(lambda: len(subscriber.of("line/1")) >= 100)
        found = subscriber.of("line/1")
    assert images(found) == names(100)
    for frame, message in zip(frames, found, strict=True):
        assert message["duplicate"] is False
        expected = detections_to_json(frame.frame.name, frame.detections, SPEC)
        assert {key: message[key] for key in expected} == expected
        assert {"id", "time", "boot_s", "seconds"} <= message.keys()
    ids = [each["id"] for each in found]
    assert ids == sorted(set(ids))
    report = sink.report()
    assert (report.sent, report.waiting, report.problem) == (100, 0, "")


def test_whether_somebody_sends_is_retained(tmp_path, broker):
    with Subscriber(broker.port) as subscriber:
        sink = open_sink(tmp_path, broker.port)
        wait_for(lambda: subscriber.of("line/1/status") == [{"online": True}])
        sink.close()
        wait_for(lambda: subscriber.of("line/1/status") == [{"online": True}, {"online": False}])
    paho = pytest.importorskip("paho.mqtt.client")
    late: list[tuple[bytes, bool]] = []
    client = paho.Client(paho.CallbackAPIVersion.VERSION2)
    client.on_message = lambda _, __, message: late.append((message.payload, message.retain))
    client.connect("127.0.0.1", broker.port)
    client.loop_start()
    client.subscribe("line/1/status")
    wait_for(lambda: late)
    client.disconnect()
    client.loop_stop()
    assert late == [(b'{"online": false}', True)]


def test_a_connection_that_breaks_is_told_by_the_broker_and_opened_again(tmp_path, broker):
    relay = Relay(broker.port)
    with Subscriber(broker.port) as subscriber:
        sink = open_sink(tmp_path, relay.port)
        wait_for(lambda: subscriber.of("line/1/status") == [{"online": True}])
        relay.cut()
        wait_for(lambda: subscriber.of("line/1/status")[:3] == [{"online": True}, {"online": False}, {"online": True}])
        sink.write(make_frame(0))
        sink.close()
        wait_for(lambda: subscriber.of("line/1"))
    relay.close()


def test_a_broker_that_is_away_at_the_begin_is_waited_for(tmp_path, caplog):
    broker = Broker(tmp_path / "broker")
    with broker, Subscriber(broker.port) as subscriber:
        broker.stop()
        sink = open_sink(tmp_path, broker.port)
        for number in range(50):
            sink.write(make_frame(number))
        wait_for(lambda: sink.report().problem)
        assert sink.report().waiting == 50
        broker.start()
        wait_for(lambda: sink.report().sent == 50)
        sink.close()
        wait_for(lambda: len(subscriber.of("line/1")) >= 50)
        assert images(subscriber.of("line/1")) == names(50)
    assert len([record for record in caplog.records if "do not reach" in record.message]) == 1


def test_nothing_is_lost_while_a_broker_is_away(tmp_path, broker):
    with Subscriber(broker.port) as subscriber:
        sink = open_sink(tmp_path, broker.port)
        for number in range(30):
            sink.write(make_frame(number))
        wait_for(lambda: len(subscriber.of("line/1")) == 30)
        for start in (30, 60):
            broker.stop()
            for number in range(start, start + 30):
                sink.write(make_frame(number))
            wait_for(lambda: sink.report().problem)
            broker.start()
            wait_for(lambda: sink.report().waiting == 0)
        sink.close()
        wait_for(lambda: len({each["id"] for each in subscriber.of("line/1")}) == 90)
        found = subscriber.of("line/1")
    # The broker too may send again what it does not know to have arrived.
    unique: dict[str, str] = {}
    for each in found:
        unique.setdefault(each["id"], each["image"])
    assert list(unique.values()) == names(90)


class Relay:
    """Stands between a sender and a broker. It can cut all connections, swallow what the broker says, and play a broker that is older.

    Attributes:
        swallow: whether what the broker says is lost on the way from now on.
    """

    def __init__(self, target: int, only_old: bool = False) -> None:
        self._target, self._only_old = target, only_old
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.swallow = False
        self.refused = 0
        self._open: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._run(self._listen)

    def _run(self, work, *arguments) -> None:
        thread = threading.Thread(target=work, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _listen(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            first = near.recv(4096)
            # CONNECT holds a length, the name MQTT, and the version: 4 for 3.1.1, 5 for 5 (section 3.1.2 of both standards).
            version = first[first.index(b"MQTT") + 4]
            if self._only_old and version == 5:
                # CONNACK of 3.1.1 with "unacceptable protocol version".
                self.refused += 1
                near.sendall(bytes([0x20, 2, 0, 1]))
                near.close()
                continue
            far = socket.create_connection(("127.0.0.1", self._target))
            self._open += [near, far]
            far.sendall(first)
            self._run(self._pass, near, far, False)
            self._run(self._pass, far, near, True)

    def _pass(self, source: socket.socket, target: socket.socket, from_broker: bool) -> None:
        try:
            while content := source.recv(65536):
                if not (from_broker and self.swallow):
                    target.sendall(content)
        except OSError:
            pass
        finally:
            # What another thread reads is not closed by its close alone.
            for each in (source, target):
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def cut(self) -> None:
        """Break all connections."""
        for each in self._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()
        for thread in self._threads:
            thread.join()
        for each in self._open:
            each.close()


def test_what_arrived_without_a_confirmation_comes_again_and_says_so(tmp_path, broker, monkeypatch):
    monkeypatch.setattr(mqtt, "CONFIRM", 1.0)
    relay = Relay(broker.port)
    with Subscriber(broker.port) as subscriber:
        sink = open_sink(tmp_path, relay.port)
        wait_for(lambda: subscriber.of("line/1/status"))
        relay.swallow = True
        for number in range(5):
            sink.write(make_frame(number))
        wait_for(lambda: "does not confirm" in sink.report().problem)
        assert sink.report().sent == 0
        relay.swallow = False
        wait_for(lambda: sink.report().sent == 5)
        sink.close()
        wait_for(lambda: len({each["id"] for each in subscriber.of("line/1")}) == 5)
        found = subscriber.of("line/1")
    relay.close()
    assert len(found) > 5
    for number, each in enumerate(found):
        assert each["duplicate"] == (each["id"] in {other["id"] for other in found[:number]})


def test_a_broker_that_knows_no_mqtt_5_is_spoken_to_in_3_1_1(tmp_path, broker, caplog):
    caplog.set_level("INFO")
    relay = Relay(broker.port, only_old=True)
    with Subscriber(broker.port) as subscriber:
        sink = open_sink(tmp_path, relay.port)
        for number in range(5):
            sink.write(make_frame(number))
        wait_for(lambda: sink.report().sent == 5)
        sink.close()
        wait_for(lambda: len(subscriber.of("line/1")) == 5)
    relay.close()
    assert relay.refused == 1
    assert any("3.1.1" in record.message for record in caplog.records)


def set_password(folder) -> str:
    folder.mkdir(parents=True)
    path = folder / "passwords"
    subprocess.run(
        [mosquitto_or_skip("mosquitto_passwd"), "-b", "-c", path, "me", "p@ss"], check=True, capture_output=True
    )
    return f"password_file {path}"


def test_a_wrong_password_keeps_everything_and_is_told_without_it(tmp_path, caplog):
    lines = ("allow_anonymous false", set_password(tmp_path / "broker"))
    with Broker(tmp_path / "broker", *lines) as broker:
        for login in ("me:wr0ng@", ""):
            sink = open_sink(tmp_path / "spools", broker.port, login)
            sink.write(make_frame(0))
            wait_for(lambda sink=sink: sink.report().problem)
            sink.close()
            assert re.search("(?i)not authorized|password", sink.report().problem)
        with Subscriber(broker.port, user=("me", "p@ss")) as subscriber:
            # The spool belongs to broker and topic, whoever sends.
            sink = open_sink(tmp_path / "spools", broker.port, "me:p%40ss@")
            wait_for(lambda: sink.report().sent == 2)
            sink.close()
            wait_for(lambda: len(subscriber.of("line/1")) == 2)
    told = "".join(record.getMessage() for record in caplog.records) + str(sink.report())
    assert "wr0ng" not in told and "p@ss" not in told and "p%40ss" not in told


def test_what_the_broker_does_not_let_in_stays_in_the_spool(tmp_path):
    folder = tmp_path / "broker"
    folder.mkdir()
    (folder / "acl").write_text("topic readwrite line/2\ntopic readwrite line/2/#\ntopic read #\n")
    with Broker(folder, f"acl_file {folder / 'acl'}") as broker:
        sink = open_sink(tmp_path, broker.port)
        sink.write(make_frame(0))
        wait_for(lambda: "does not take what is published to line/1" in sink.report().problem)
        assert (sink.report().sent, sink.report().waiting) == (0, 1)
        sink.close()


def test_a_message_that_is_too_large_for_the_broker_is_dropped_alone(tmp_path, caplog):
    with Broker(tmp_path / "broker", "max_packet_size 4000") as broker, Subscriber(broker.port) as subscriber:
        sink = open_sink(tmp_path, broker.port)
        for number, objects in enumerate((1, 100, 2)):
            sink.write(make_frame(number, objects))
        sink.close()
        wait_for(lambda: len(subscriber.of("line/1")) == 2)
        assert images(subscriber.of("line/1")) == ["camera#0", "camera#2"]
    assert (sink.report().sent, sink.report().refused, sink.report().waiting) == (2, 1, 0)
    assert any("4000 bytes" in record.message for record in caplog.records)


def test_a_full_spool_gives_the_newest(tmp_path):
    broker = Broker(tmp_path / "broker")
    with broker, Subscriber(broker.port) as subscriber:
        broker.stop()
        sink = open_sink(tmp_path, broker.port, spool_mib=1)
        number = 0
        while sink.report().dropped < 10:
            sink.write(make_frame(number, objects=200))
            number += 1
        broker.start()
        wait_for(lambda: sink.report().waiting == 0)
        sink.close()
        report = sink.report()
        assert report.sent + report.dropped == number
        wait_for(lambda: len(subscriber.of("line/1")) >= report.sent)
        found = {each["id"]: each for each in subscriber.of("line/1")}
    assert images(found.values())[-(report.sent - 20) :] == names(number, number - (report.sent - 20))


# paho leaves the socket of a handshake that failed to Python to close.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_mqtts_with_an_authority_of_ones_own(tmp_path):
    files = make_certificates(tmp_path / "tls")
    with Broker(tmp_path / "broker") as plain, Subscriber(plain.port) as subscriber:
        # mosquitto's second listener, with TLS, on the same topics.
        port = free_port()
        plain.stop()
        with plain._config.open("a") as config:
            config.write(
                f"listener {port} 127.0.0.1\ncafile {files.authority}\ncertfile {files.certificate}\nkeyfile {files.key}\n"
            )
        plain.start()
        sink = open_sink(tmp_path / "1", port, scheme="mqtts", ca_file=str(files.authority))
        for number in range(3):
            sink.write(make_frame(number))
        wait_for(lambda: sink.report().sent == 3)
        sink.close()
        wait_for(lambda: len(subscriber.of("line/1")) == 3)
        stranger = open_sink(tmp_path / "2", port, scheme="mqtts", ca_file=str(files.stranger))
        stranger.write(make_frame(3))
        wait_for(lambda: stranger.report().problem)
        stranger.close()
        assert "certificate" in stranger.report().problem.lower()
        assert stranger.report().waiting == 1


def test_nobody_waits_for_a_broker_that_says_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(mqtt, "ANSWER", 0.5)
    with silent_server() as port:
        sink = open_sink(tmp_path, port)
        for number in range(100):
            sink.write(make_frame(number))
        assert (sink.report().sent, sink.report().waiting) == (0, 100)
        wait_for(lambda: sink.report().problem == "the broker does not answer")
        sink.close()
    # All threads have let go.
    wait_for(lambda: not [each for each in threading.enumerate() if each.name.startswith(("edge-effdet-send", "paho"))])
