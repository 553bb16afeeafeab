"""The service with a real engine: on pictures, on cameras that go and come back, on a full disk, and until it is told to end."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from edge_effdet.backends.base import BACKENDS
from edge_effdet.device.service import loop, watched
from edge_effdet.device.service.loop import run_service
from edge_effdet.device.service.options import ServiceOptions, write_options
from edge_effdet.device.service.processes import seconds_since_boot
from edge_effdet.device.service.status import judge, read_status
from edge_effdet.errors import DataError, EngineError, InputError, UsageError
from edge_effdet.runtime.detector import Detector
from tests.backends import BrightBoxRunner, FakeBackend
from tests.bench_backends import make_engine
from tests.cameras import NetworkCamera, PipeCamera
from tests.emulation.small_detector import make_pictures
from tests.receivers import Answer, WebhookReceiver

PATIENCE = 60.0


class RunningService:
    """``run_service`` in a thread."""

    def __init__(self, folder: Path, options: ServiceOptions) -> None:
        self.folder, self.options = folder, options
        self.stop = threading.Event()
        self.code: int | None = None
        self.error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            self.code = run_service(self.folder, self.options, self.stop)
        except BaseException as error:
            self.error = error

    def __enter__(self) -> RunningService:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self._thread.join()

    @property
    def status(self):
        return read_status(self.folder)

    def until(self, is_so, what: str = ""):
        """Wait until a status is as it should be, and give it."""
        end = time.monotonic() + PATIENCE
        while True:
            status = self.status
            if status is not None and is_so(status):
                return status
            assert self.error is None or not self._thread.is_alive(), self.error
            assert time.monotonic() < end, (what, status)
            if not self._thread.is_alive():
                pytest.fail(f"the service ended: {self.code} {self.error} {status}")
            time.sleep(0.05)

    def join(self) -> None:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(loop, "STATUS_EVERY", 0.1)
    monkeypatch.setattr(loop, "TICK", 0.05)
    monkeypatch.setattr(loop, "FIRST_WAIT", 0.1)


def rows_of(store):
    files = sorted((store.folder / "state/results").glob("*.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text().splitlines()]


def test_pictures_are_read_once_and_then_it_is_idle(store, pictures):
    options = ServiceOptions(source=str(pictures), score_threshold=0.1)
    before = seconds_since_boot()
    with RunningService(store.folder, options) as service:
        status = service.until(lambda status: status.state == "idle")
        assert judge(status) == ""
        assert (status.frames, status.skipped, status.dropped, status.reopened) == (3, 0, 0, 0)
        assert (status.version, status.pid, status.precision) == ("1.0-aaaa", os.getpid(), "int8")
        assert before < status.started_s <= status.updated_s <= seconds_since_boot()
        assert status.latency_ms_p90 >= status.latency_ms_p50 > 0
        assert status.fps > 0
        # It is still there, and says so.
        service.until(lambda later: later.updated_s > status.updated_s)
    assert service.code == 0
    assert service.status.state == "stopped"
    rows = rows_of(store)
    with Detector.load(store.current().engine, score_threshold=0.1) as detector:
        files = sorted(pictures.iterdir())
        expected = detector(list(files))
    assert sum(map(len, expected)) > 0
    for row, file, found in zip(rows, files, expected, strict=True):
        assert row["image"] == str(file)
        assert abs(row["time"] - time.time()) < 600
        assert before < row["boot_s"] <= seconds_since_boot()
        assert [each["score"] for each in row["detections"]] == pytest.approx(found.scores.tolist(), abs=1e-4)
        np.testing.assert_allclose([each["box"] for each in row["detections"]], found.boxes, atol=0.01)
        assert {each["class"] for each in row["detections"]} <= {"thing"}


def test_it_ends_with_its_pictures_where_that_is_wanted(store, pictures):
    with RunningService(store.folder, ServiceOptions(source=str(pictures), at_end="stop")) as service:
        service.join()
    assert (service.code, service.error) == (0, None)
    assert len(rows_of(store)) == 3


def test_it_begins_again_where_that_is_wanted(store, pictures):
    with RunningService(store.folder, ServiceOptions(source=str(pictures), at_end="repeat")) as service:
        status = service.until(lambda status: status.frames > 9)
        assert (status.state, status.healthy, status.reopened) == ("running", True, 0)
    assert [Path(row["image"]).name for row in rows_of(store)[:6]] == ["0.png", "1.png", "2.png"] * 2


def test_a_source_that_is_not_there_is_waited_for(store, pictures, caplog):
    caplog.set_level("INFO")
    away = pictures.with_name("away")
    with RunningService(store.folder, ServiceOptions(source=str(away), at_end="repeat")) as service:
        status = service.until(lambda status: status.reopened >= 3)
        assert (status.state, status.healthy, status.frames) == ("waiting", False, 0)
        assert "There is no image or folder" in status.reason
        assert str(away) in status.last_error
        pictures.rename(away)
        service.until(lambda status: status.healthy and status.frames > 0)
        away.rename(pictures)
        service.until(lambda status: status.state == "waiting")
        pictures.rename(away)
        frames = service.status.frames
        service.until(lambda status: status.healthy and status.frames > frames)
    said = [record.message for record in caplog.records]
    # Once for each time, however often it was tried.
    assert len([each for each in said if "is opened again until it is back" in each]) == 2
    assert said.count("the source is back") == 2


def test_the_waits_grow_and_are_bounded(store, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "FIRST_WAIT", 0.2)
    monkeypatch.setattr(loop, "LONGEST_WAIT", 0.8)
    opened = []
    real = watched.open_source

    def note(text):
        opened.append(time.monotonic())
        return real(text)

    monkeypatch.setattr(watched, "open_source", note)
    with RunningService(store.folder, ServiceOptions(source=str(tmp_path / "nowhere"))) as service:
        service.until(lambda status: status.reopened >= 5)
    waits = np.diff(opened[:5])
    assert (waits >= [0.2, 0.4, 0.8, 0.8]).all()


def test_pictures_that_cannot_be_read_are_counted(store, pictures, caplog):
    (pictures / "1.png").write_bytes(b"no picture")
    with RunningService(store.folder, ServiceOptions(source=str(pictures))) as service:
        status = service.until(lambda status: status.state == "idle")
    assert (status.frames, status.skipped, status.healthy) == (2, 1, True)
    assert "1.png" in status.last_error
    problems = [row for row in rows_of(store) if "problem" in row]
    assert [Path(row["image"]).name for row in problems] == ["1.png"]
    assert len([record for record in caplog.records if "left out a frame" in record.message]) == 1


def test_pictures_of_which_none_can_be_read_are_no_work_that_is_done(store, pictures):
    for file in pictures.iterdir():
        file.write_bytes(b"no picture")
    with RunningService(store.folder, ServiceOptions(source=str(pictures))) as service:
        status = service.until(lambda status: status.state == "waiting")
        assert "None of its pictures could be decoded" in status.reason


def test_what_is_found_is_sent_and_what_is_left_waits_for_the_next_start(store, pictures):
    with WebhookReceiver() as receiver:
        options = ServiceOptions(
            source=str(pictures), score_threshold=0.1, webhook=f"http://me:s3cret@127.0.0.1:{receiver.port}/hook"
        )
        with RunningService(store.folder, options) as service:
            service.until(lambda status: status.sending and status.sending[0].sent == 3)
        (report,) = service.status.sending
        assert (report.to, report.waiting) == (f"http://127.0.0.1:{receiver.port}", 0)
        told = [file.read_text() for file in (store.folder / "state").glob("*.json")]
        assert len(told) >= 1 and "s3cret" not in "".join(told)
        rows = rows_of(store)
        for sent, row in zip(receiver.received, rows, strict=True):
            assert (sent["image"], sent["detections"]) == (row["image"], row["detections"])
        receiver.answer = lambda _: Answer(503)
        with RunningService(store.folder, options) as service:
            service.until(
                lambda status: status.sending and status.sending[0].problem and status.sending[0].waiting == 3
            )
            # A receiver that is away does not make it unhealthy: it detects.
            assert judge(service.until(lambda status: status.state == "idle")) == ""
        assert service.status.sending[0].waiting == 3
        receiver.answer = lambda _: Answer()
        with RunningService(store.folder, options) as service:
            service.until(lambda status: status.sending and status.sending[0].sent == 6)
    assert len({each["id"] for each in receiver.received}) == 9
    assert len(list((store.folder / "state/spool").glob("webhook-*.spool"))) == 1


def test_a_spool_that_cannot_be_written_is_tried_again(store, pictures, monkeypatch, caplog):
    monkeypatch.setattr(loop, "SENDERS_AGAIN", 0.2)
    place = store.folder / "state" / "spool"
    place.parent.mkdir(exist_ok=True)
    place.touch()
    with WebhookReceiver() as receiver:
        options = ServiceOptions(
            source=str(pictures), at_end="repeat", webhook=f"http://127.0.0.1:{receiver.port}/hook"
        )
        with RunningService(store.folder, options) as service:
            status = service.until(lambda status: status.frames > 5)
            assert (status.healthy, status.sending) == (True, ())
            assert "`spool`" in status.last_error
            place.unlink()
            service.until(lambda status: status.sending and status.sending[0].sent > 5)
    said = [record.message for record in caplog.records]
    assert len([each for each in said if "nothing is sent" in each]) == 1


def test_a_link_that_another_user_made_is_not_sent_through(store, pictures, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    link = store.folder / "state" / "spool"
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(tmp_path / "elsewhere")
    if os.geteuid() != 0:
        pytest.skip("only root can give a link to another user")
    os.chown(link, 12345, 12345, follow_symlinks=False)
    options = ServiceOptions(source=str(pictures), webhook="http://127.0.0.1:9/hook")
    with RunningService(store.folder, options) as service:
        status = service.until(lambda status: status.state == "idle")
        assert "a link that another user made" in status.last_error
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_objects_are_not_followed_through_pictures(store, pictures):
    pytest.importorskip("trackforge")
    with pytest.raises(UsageError, match="`track`"):
        run_service(store.folder, ServiceOptions(source=str(pictures), track=True), threading.Event())
    assert read_status(store.folder).state == "failed"


def test_objects_of_a_camera_have_numbers(store, camera):
    pytest.importorskip("trackforge")
    camera.switch_on()
    options = ServiceOptions(source=camera.address, score_threshold=0.1, track=True, track_score=0.1)
    with RunningService(store.folder, options) as service:
        service.until(lambda status: status.frames >= 5)
    found = [each for row in rows_of(store) for each in row["detections"]]
    assert found and all(each["track_id"] >= 1 for each in found)


@pytest.fixture
def camera():
    pytest.importorskip("av")
    camera = NetworkCamera(make_pictures())
    yield camera
    with contextlib.suppress(OSError):
        camera.switch_off()


def test_a_network_camera_goes_and_comes_back(store, camera, caplog):
    camera.switch_on()
    with RunningService(store.folder, ServiceOptions(source=camera.address)) as service:
        status = service.until(lambda status: status.healthy and status.frames >= 3)
        assert "secret" not in status.source
        camera.switch_off()
        time.sleep(1.0)
        frames = service.status.frames
        camera.switch_on()
        status = service.until(lambda status: status.frames > frames + 3)
        assert status.healthy
    assert service.error is None
    said = [record.message for record in caplog.records]
    assert len([each for each in said if "is away" in each]) == 1
    assert not any("secret" in each for each in said)
    assert "secret" not in json.dumps(rows_of(store))


def test_it_starts_while_the_camera_is_off_and_is_ready(store, camera, listener):
    with RunningService(store.folder, ServiceOptions(source=camera.address)) as service:
        listener.until("READY=1")
        assert not service.status.healthy
        camera.switch_on()
        service.until(lambda status: status.healthy)


class Listener:
    """Stands in systemd's place at the other end of ``NOTIFY_SOCKET``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.messages: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(path))
        self._socket.settimeout(0.05)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._listen)
        self._thread.start()

    def _listen(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(TimeoutError):
                self.messages.append(self._socket.recv(4096).decode())

    def until(self, text: str) -> None:
        end = time.monotonic() + PATIENCE
        while not any(text in each.splitlines() for each in self.messages):
            assert time.monotonic() < end, self.messages
            time.sleep(0.02)

    def count(self, text: str) -> int:
        return len([each for each in self.messages if text in each.splitlines()])

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        self._socket.close()


@pytest.fixture
def listener(tmp_path, monkeypatch):
    listener = Listener(tmp_path / "notify")
    monkeypatch.setenv("NOTIFY_SOCKET", str(listener.path))
    yield listener
    listener.close()


def test_systemd_is_told_how_it_goes(store, pictures, listener):
    with RunningService(store.folder, ServiceOptions(source=str(pictures), at_end="repeat")) as service:
        service.until(lambda status: status.healthy)
        listener.until("WATCHDOG=1")
    listener.until("STOPPING=1")
    first = [each for each in listener.messages if each.startswith("READY=1")]
    assert len(first) == 1
    assert "frames, " in "".join(listener.messages)


def write_raw_video(frames: int) -> bytes:
    """A video of 64 x 64 grey pixels without compression, of which a reader needs little to know what it is."""
    head = b"YUV4MPEG2 W64 H64 F10:1 Ip A1:1 C420jpeg\n"
    return head + frames * (b"FRAME\n" + bytes([200]) * (64 * 64) + bytes([128]) * (64 * 64 // 2))


def test_a_camera_whose_driver_never_answers_ends_the_process(store, tmp_path, monkeypatch):
    monkeypatch.setattr(loop, "SILENCE", 0.5)
    monkeypatch.setattr(loop, "LETTING_GO", 0.5)
    camera = PipeCamera(tmp_path / "camera", write_raw_video(100))
    try:
        with RunningService(store.folder, ServiceOptions(source=str(camera.path))) as service:
            service.join()
    finally:
        camera.close()
    assert isinstance(service.error, DataError)
    assert "does not answer" in str(service.error)
    status = service.status
    assert status.frames > 0
    assert (status.state, status.healthy) == ("failed", False)
    assert status.last_error == str(service.error)


class HangingRunner(BrightBoxRunner):
    """Simulates an accelerator that hangs after some runs."""

    def __init__(self, good: int) -> None:
        super().__init__(64)
        self.good, self.released, self.hangs = good, threading.Event(), threading.Event()

    def run(self, feeds):
        if len(self.runs) >= self.good:
            self.hangs.set()
            self.released.wait()
        return super().run(feeds)


@pytest.fixture
def hanging(store, add_version, monkeypatch):
    """The runner of an installation whose engine hangs at the third frame."""
    runner = HangingRunner(2)
    monkeypatch.setitem(BACKENDS, "even", FakeBackend(make_runner=lambda: runner))
    add_version(store, "2.0-hangs", lambda folder: make_engine(folder, "even"))
    yield runner
    runner.released.set()


def test_an_engine_that_hangs_ends_the_process(store, hanging, pictures, monkeypatch, listener):
    monkeypatch.setattr(loop, "SILENCE", 0.5)
    monkeypatch.setattr(loop, "LATE", 0.3)
    monkeypatch.setattr(loop, "HANG", 2.0)
    with RunningService(store.folder, ServiceOptions(source=str(pictures), at_end="repeat")) as service:
        assert hanging.hangs.wait(PATIENCE)
        status = service.until(lambda status: status.reason.startswith("no frame has come"))
        assert not status.healthy
        # Before it ends by itself, the watchdog hears nothing more.
        time.sleep(0.7)
        count = listener.count("WATCHDOG=1")
        time.sleep(0.4)
        assert listener.count("WATCHDOG=1") == count
        service.join()
    assert isinstance(service.error, EngineError)
    assert "has not finished a frame" in str(service.error)
    assert service.status.state == "failed"
    # Of the others one may wait for the one that hangs.
    assert service.status.frames <= 2


def test_it_can_be_stopped_while_the_engine_hangs(store, hanging, pictures, monkeypatch):
    monkeypatch.setattr(loop, "LAST_RUN", 0.3)
    with RunningService(store.folder, ServiceOptions(source=str(pictures))) as service:
        assert hanging.hangs.wait(PATIENCE)
        service.stop.set()
        service.join()
    assert service.code == 0
    assert service.status.state == "stopped"


def test_it_can_be_stopped_while_the_engine_is_loaded(store, add_version, pictures, monkeypatch):
    loaded = threading.Event()

    def load_slowly():
        loaded.wait()
        return BrightBoxRunner(64)

    monkeypatch.setitem(BACKENDS, "even", FakeBackend(make_runner=load_slowly))
    add_version(store, "2.0-slow", lambda folder: make_engine(folder, "even"))
    with RunningService(store.folder, ServiceOptions(source=str(pictures))) as service:
        status = service.until(lambda status: status.state == "loading")
        assert (status.healthy, status.reason) == (False, "the engine is being loaded")
        service.stop.set()
        service.join()
        assert service.code == 0
    loaded.set()


def test_with_nothing_to_look_at_it_does_not_start(store):
    with pytest.raises(UsageError, match="`source`"):
        run_service(store.folder, ServiceOptions(), threading.Event())


def test_without_a_version_it_does_not_start(store):
    (store.folder / "current").unlink()
    with pytest.raises(InputError, match="No version is installed"):
        run_service(store.folder, ServiceOptions(source="/dev/null"), threading.Event())


def test_there_is_one_service_only(store, pictures):
    options = ServiceOptions(source=str(pictures))
    with RunningService(store.folder, options) as service:
        service.until(lambda status: status.state == "idle")
        with pytest.raises(UsageError, match="runs already"):
            run_service(store.folder, options, threading.Event())
        assert service.status.alive
    # The lock goes with the one who held it.
    with RunningService(store.folder, options) as service:
        service.until(lambda status: status.state == "idle")


@pytest.mark.parametrize("suffix", ["", ".json"])
def test_an_engine_that_was_changed_is_not_run(store, pictures, suffix):
    engine = store.current().engine
    path = engine.with_name(engine.name + suffix)
    content = path.read_bytes()
    path.write_bytes(content.replace(b'"precision": "int8"', b'"precision": "fp32"') if suffix else content[:-1] + b"x")
    assert path.read_bytes() != content
    with pytest.raises(EngineError):
        run_service(store.folder, ServiceOptions(source=str(pictures)), threading.Event())
    status = read_status(store.folder)
    assert (status.state, status.healthy, status.frames) == ("failed", False, 0)
    # An edit shows by the record's own digest, before its file's hash is looked at.
    assert ("somebody has changed it" if suffix else "SHA-256 differs") in status.last_error


@pytest.fixture
def small_disk(store):
    """The state on a file system of its own, with room for little."""
    state = store.folder / "state"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(state)], capture_output=True)
    if mounted.returncode:
        pytest.skip("this user may not mount a file system")
    yield state
    subprocess.run(["umount", "--lazy", str(state)], check=True)


def test_a_full_disk_loses_results_and_stops_nothing(store, small_disk, pictures, caplog):
    options = ServiceOptions(source=str(pictures), at_end="repeat", score_threshold=0.0)
    with RunningService(store.folder, options) as service:
        status = service.until(lambda status: status.results_lost > 0)
        later = service.until(lambda later: later.frames > status.frames + 10)
        # It goes on, and says so in a status that finds its room on a disk that has none.
        assert later.healthy
        assert later.last_error == "Results cannot be written: No space left on device."
        (file, *_) = sorted((small_disk / "results").iterdir())
        assert all(json.loads(line) for line in file.read_text().splitlines())
        file.unlink()
    said = [record.message for record in caplog.records]
    assert len([each for each in said if each.startswith("results are lost")]) >= 1
    assert service.code == 0


def start_process(store, environment=None):
    code = "import sys\nfrom pathlib import Path\nfrom edge_effdet.device.service.loop import serve\nsys.exit(serve(Path(sys.argv[1])))"
    return subprocess.Popen(
        [sys.executable, "-c", code, str(store.folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, **(environment or {})},
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(store, pictures, number):
    write_options(store.folder, ServiceOptions(source=str(pictures), at_end="repeat"))
    with start_process(store) as process:
        end = time.monotonic() + PATIENCE
        while (status := read_status(store.folder)) is None or not status.healthy:
            assert time.monotonic() < end
            time.sleep(0.05)
        assert status.pid == process.pid
        process.send_signal(number)
        # systemd would kill it after 15 s.
        assert process.wait(15) == 0
    status = read_status(store.folder)
    assert (status.state, status.alive) == ("stopped", False)
    assert judge(status) == "it was stopped"
    # Nothing was lost on the way.
    assert len(rows_of(store)) == status.frames


def test_a_signal_while_the_camera_sends_nothing_ends_it_too(store, tmp_path):
    camera = PipeCamera(tmp_path / "camera", write_raw_video(100))
    write_options(store.folder, ServiceOptions(source=str(camera.path)))
    try:
        with start_process(store) as process:
            end = time.monotonic() + PATIENCE
            while (status := read_status(store.folder)) is None or not status.frames:
                assert time.monotonic() < end
                time.sleep(0.05)
            process.terminate()
            assert process.wait(15) == 0
    finally:
        camera.close()
    assert read_status(store.folder).state == "stopped"
