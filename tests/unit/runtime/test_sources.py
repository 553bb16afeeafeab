"""Files, damaged videos, and cameras that go away. A named pipe, to which a thread writes a video, simulates the camera."""

from __future__ import annotations

import contextlib
import functools
import gc
import http.server
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edge_effdet.errors import BackendUnavailable, DataError
from edge_effdet.runtime import sources
from edge_effdet.runtime.sources import Camera, ImageFiles, VideoFile, find_images, open_source
from tests.hostile import make_model, write_engine

av = pytest.importorskip("av")

FRAMES = 12


def write_video(path: Path, codec: str = "mjpeg", frames: int = FRAMES, size: tuple[int, int] = (48, 64)) -> Path:
    """Write a video of noise, which compresses to many bytes, with a brightness that tells the number of the frame."""
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.height, stream.width = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        for number in range(frames):
            pixels = rng.integers(0, 40, (*size, 3), dtype=np.uint8) + np.uint8(15 * number % 210)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def test_a_folder_is_its_pictures_by_name(tmp_path: Path):
    for name in ("b.png", "a.jpg"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "notes.txt").touch()
    source = open_source(str(tmp_path))
    assert isinstance(source, ImageFiles)
    assert (source.total, source.live) == (2, False)
    assert [Path(frame.name).name for frame in source] == ["a.jpg", "b.png"]
    assert open_source(str(tmp_path / "a.jpg")).total == 1


@pytest.mark.parametrize(("name", "said"), [("nowhere", "There is no image or folder"), (".", "holds no images")])
def test_what_is_not_there_is_named(tmp_path: Path, name, said):
    with pytest.raises(DataError, match=said):
        open_source(str(tmp_path / name))
    with pytest.raises(DataError, match=said):
        find_images(tmp_path / name)


@pytest.mark.parametrize(
    ("files", "source", "said"),
    [
        (["raw.nef", "other.nef"], ".", "holds no images (.jpg, .png, …) but 2 .nef (develop them to JPEG or PNG)."),
        (["clip.mp4"], ".", "but 1 video; give a video by its name to detect, such as {}/clip.mp4."),
        (["a/b/x.jpg", "a/b/y.png"], ".", "but 2 images in sub-folders; give the folder that holds them, such as {}/a/b."),
        (["a/b/x.jpg", "clip.mp4"], ".", "but 1 image in sub-folders, 1 video; give the folder"),
        (["list.txt"], ".", "holds no images (.jpg, .png, …) but 1 .txt; give the path of an image or of a folder"),
        (["list.txt"], "list.txt", "list.txt is no image, and lists of images are not read; give the path of an image"),
        (["x.jpg"], "*.jpg", "There is no image or folder at {}/*.jpg, and patterns are not read; give the path"),
    ],
)  # fmt: skip
def test_what_holds_no_pictures_says_what_it_holds(tmp_path: Path, files, source, said):
    for name in files:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    with pytest.raises(DataError) as caught:
        open_source(str(tmp_path / source))
    assert said.format(tmp_path) in str(caught.value)


def test_what_is_left_out_of_a_folder_is_counted(tmp_path: Path, caplog):
    caplog.set_level("INFO")
    for name in ("a.jpg", "raw.nef", "clip.mp4", "deep/b.jpg", "deep/er/c.jpg", ".trash/d.jpg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    # A link back to the folder is no folder of its own.
    (tmp_path / "deep" / "loop").symlink_to(tmp_path)
    assert find_images(tmp_path) == [tmp_path / "a.jpg"]
    assert "left out: 1 .nef" in caplog.text
    assert "left out 2 images in sub-folders and 1 video" in caplog.text


@pytest.mark.parametrize(
    ("matrix", "show"),
    [
        ((1, 0, 0, 1), lambda image: image),
        ((-1, 0, 0, 1), lambda image: image[:, ::-1]),
        ((1, 0, 0, -1), lambda image: image[::-1]),
        ((-1, 0, 0, -1), lambda image: image[::-1, ::-1]),
        ((0, 1, -1, 0), lambda image: np.rot90(image, -1)),
        ((0, -1, 1, 0), np.rot90),
        ((0, 1, 1, 0), lambda image: image.transpose(1, 0, 2)),
        ((0, -1, -1, 0), lambda image: image.transpose(1, 0, 2)[::-1, ::-1]),
    ],
)
def test_a_video_is_turned_and_mirrored_by_its_display_matrix(tmp_path: Path, matrix, show):
    marked = np.full((48, 64, 3), 20, np.uint8)
    marked[:16, :16] = 230
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(marked, format="rgb24")))
        container.mux(stream.encode(None))
    content = bytearray(path.read_bytes())
    # The matrix stands 40 bytes after the name of the track's header, as fixed-point numbers; PyAV writes none but the identity.
    start = content.index(b"tkhd") + 44
    a, b, c, d = matrix
    numbers = [a << 16, b << 16, 0, c << 16, d << 16, 0, 0, 0, 1 << 30]
    assert content[start : start + 36] == struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    content[start : start + 36] = struct.pack(">9i", *numbers)
    path.write_bytes(content)
    (frame,) = open_source(str(path))
    assert isinstance(frame.picture, np.ndarray) and frame.picture.flags.c_contiguous
    assert frame.picture.shape == show(marked).shape
    assert np.abs(frame.picture.astype(int) - show(marked)).mean() < 5


@pytest.mark.slow
def test_a_video_that_is_read_again_and_again_does_not_keep_what_decoded_it_before(tmp_path):
    import av

    path = write_video(tmp_path / "clip.avi")
    for _ in range(4):
        assert sum(1 for _ in open_source(str(path))) == FRAMES
    source = open_source(str(path))
    for _ in range(2):
        # A pipeline stops its source at the end.
        assert sum(1 for _ in source) == FRAMES
        source.stop()
    kept = [each for each in gc.get_objects() if isinstance(each, av.container.InputContainer)]
    assert len(kept) <= 1


@pytest.mark.parametrize("suffix", ["avi", "mp4"])
def test_a_video_is_its_frames_in_order(tmp_path: Path, suffix):
    source = open_source(str(write_video(tmp_path / f"clip.{suffix}", "mjpeg" if suffix == "avi" else "mpeg4")))
    assert isinstance(source, VideoFile)
    assert (source.total, source.rate) == (FRAMES, 10)
    frames = list(source)
    assert [frame.name.rsplit("#")[1] for frame in frames] == [str(number) for number in range(FRAMES)]
    assert [round(frame.seconds, 2) for frame in frames] == [round(0.1 * number, 2) for number in range(FRAMES)]
    brightness = [frame.picture.mean() for frame in frames]
    assert brightness == sorted(brightness)
    assert frames[0].picture.shape == (48, 64, 3)
    assert frames[0].picture.dtype == np.uint8


def test_a_title_that_is_not_utf_8_is_no_error(tmp_path: Path):
    path = tmp_path / "clip.avi"
    with av.open(str(path), "w", metadata_encoding="latin-1") as container:
        container.metadata["title"] = "Möwen über Köln"
        stream = container.add_stream("mjpeg", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
        container.mux([*stream.encode(frame), *stream.encode(None)])
    with pytest.raises(UnicodeDecodeError):
        av.open(str(path))
    assert len(list(open_source(str(path)))) == 1


def test_a_video_that_breaks_gives_what_came_before(tmp_path: Path, caplog):
    path = write_video(tmp_path / "clip.avi")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) * 6 // 10])
    frames = list(open_source(str(path)))
    assert 0 < len(frames) < FRAMES
    assert f"clip.avi is damaged ({len(frames)}" not in caplog.text
    assert f"{len(frames)} of {FRAMES} frames could be decoded" in caplog.text


def test_a_video_with_a_hole_goes_on_behind_it(tmp_path: Path, caplog):
    path = write_video(tmp_path / "clip.avi")
    content = bytearray(path.read_bytes())
    starts = [place for place in range(len(content)) if content[place : place + 2] == b"\xff\xd8"]
    # How long a frame is depends on how many threads the encoder has.
    content[starts[5] : starts[6]] = bytes(starts[6] - starts[5])
    path.write_bytes(content)
    frames = list(open_source(str(path)))
    # FFmpeg may drop two frames for one that is damaged.
    assert FRAMES - 2 <= len(frames) < FRAMES
    assert frames[-1].picture.mean() > 15 * (FRAMES - 1)
    assert "clip.avi is damaged" in caplog.text


@pytest.mark.parametrize("content", [b"", b"words", b"\x00\x00\x00\x18ftypmp42"])
def test_what_is_no_video_is_named(tmp_path: Path, content):
    (tmp_path / "clip.mp4").write_bytes(content)
    with pytest.raises(DataError, match=r"clip\.mp4 is not a video"):
        open_source(str(tmp_path / "clip.mp4"))


def test_sound_alone_is_no_video(tmp_path: Path):
    path = tmp_path / "sound.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        samples.rate = 8000
        container.mux(stream.encode(samples))
        container.mux(stream.encode(None))
    with pytest.raises(DataError, match="only sound"):
        open_source(str(path))


def test_a_camera_that_goes_away_is_opened_again_and_given_up_at_last(tmp_path: Path, caplog):
    content = write_video(tmp_path / "clip.ts", "mpeg2video").read_bytes()
    pipe = tmp_path / "camera"
    os.mkfifo(pipe)
    cameras = 2

    def send() -> None:
        for _ in range(cameras):
            with open(pipe, "wb") as stream:
                stream.write(content)
        pipe.unlink()

    sender = threading.Thread(target=send, daemon=True)
    sender.start()
    opened = open_source(str(pipe))
    assert opened.live
    camera = Camera("camera", opened._images, attempts=2, first_wait=0.01)
    seen = []
    with pytest.raises(DataError, match=r"camera went away .* 2 attempts .*; check its cable or address"):
        seen.extend(frame.picture.shape for frame in camera)
    sender.join(10)
    assert len(seen) >= cameras * (FRAMES - 2)
    assert set(seen) == {(48, 64, 3)}
    assert "trying again in 0.0 s" in caplog.text


def test_a_stream_over_the_network_ends_with_its_server(tmp_path: Path):
    write_video(tmp_path / "door.ts", "mpeg2video")
    write_video(tmp_path / "film.avi")
    handler = functools.partial(QuietServer, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        opened = open_source(f"http://me:secret@127.0.0.1:{server.server_port}/door.ts")
        assert "secret" not in opened.name
        camera = Camera(opened.name, opened._images, attempts=1, first_wait=0.01)
        frames = iter(camera)
        # These are twice as many frames as the stream holds, so it was opened again.
        seen = [next(frames).picture.shape for _ in range(2 * FRAMES)]
        film = open_source(f"http://me:secret@127.0.0.1:{server.server_port}/film.avi?size=1")
        assert (film.live, len(list(film))) == (False, FRAMES)
        assert "secret" not in film.name
        server.shutdown()
    assert set(seen) == {(48, 64, 3)}
    with pytest.raises(
        DataError, match=r"The camera http://127\.0\.0\.1:\d+/door\.ts went away \(Connection refused\)"
    ):
        list(frames)


class QuietServer(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


def test_the_waits_grow_and_a_frame_starts_them_anew(monkeypatch):
    waits: list[float] = []
    opened = 0

    def images():
        nonlocal opened
        opened += 1
        if opened == 4:
            yield np.zeros((2, 2, 3), np.uint8)
        raise OSError("gone")

    camera = Camera("camera", images, attempts=6, first_wait=1)
    monkeypatch.setattr(camera._stopped, "wait", waits.append)
    with pytest.raises(DataError, match="1 frames came before"):
        list(camera)
    assert waits == [1, 2, 4, 1, 2, 4, 8, 8, 8]


def test_a_camera_that_is_stopped_ends_without_an_error():
    camera = Camera("camera", lambda: iter([np.zeros((2, 2, 3), np.uint8)] * 9))
    frames = iter(camera)
    next(frames)
    camera.stop()
    assert list(frames) == []


def test_a_gstreamer_pipeline_hands_its_frames_over(tmp_path: Path, monkeypatch):
    """A script simulates gst-launch-1.0: it writes what ``y4menc`` would write."""
    clip = write_video(tmp_path / "clip.y4m", "rawvideo")
    program = tmp_path / "gst-launch-1.0"
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/arguments\ncat {clip}\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    camera = open_source("nvarguscamerasrc sensor-id=0 ! nvvidconv")
    assert camera.live
    assert camera.name == "nvarguscamerasrc sensor-id=0"
    frames = iter(camera)
    assert [next(frames).picture.shape for _ in range(FRAMES)] == [(48, 64, 3)] * FRAMES
    camera.stop()
    assert list(frames) == []
    expected = "--quiet nvarguscamerasrc sensor-id=0 ! nvvidconv ! videoconvert ! video/x-raw,format=I420 ! y4menc ! fdsink fd=1"
    assert (tmp_path / "arguments").read_text().strip() == expected


def test_a_gstreamer_pipeline_without_gstreamer(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendUnavailable, match=r"gst-launch-1\.0 is not installed"):
        open_source("videotestsrc ! videoscale")


def test_addresses_and_devices_are_cameras(tmp_path: Path, monkeypatch):
    asked = []
    monkeypatch.setattr(sources, "_stream_opener", lambda *asked_for, **how: asked.append((*asked_for, how)))
    camera = open_source("rtsp://user:secret@10.0.0.2/stream")
    assert camera.live
    # The name appears in logs and results, so it must not hold the password.
    assert camera.name == "rtsp://10.0.0.2/stream"
    assert open_source("/dev/null").live
    assert asked == [("rtsp://user:secret@10.0.0.2/stream", {}), ("/dev/null", {"format": "v4l2"})]


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("rtsp://admin:p@ss!word@10.0.0.2/stream", "rtsp://10.0.0.2/stream"),
        ("rtsp://admin:p[ss@10.0.0.2/stream", "rtsp://10.0.0.2/stream"),
        ("rtsp://10.0.0.2/stream@1", "rtsp://10.0.0.2/stream@1"),
        ("rtspsrc location=rtsp://admin:p!ss@10.0.0.2/1 latency=0 ! decodebin", "rtspsrc location=rtsp://10.0.0.2/1 latency=0"),
        ("rtspsrc user-id=admin user-pw='pass word' latency=0 ! decodebin", "rtspsrc latency=0"),
        (f"videotestsrc ! {'x' * 300}", "videotestsrc"),
    ],
)  # fmt: skip
def test_the_name_of_a_camera_has_no_password(monkeypatch, source: str, name: str):
    monkeypatch.setattr(sources, "_stream_opener", lambda address: None)
    monkeypatch.setattr(sources, "_gstreamer_opener", lambda pipeline: None)
    assert open_source(source).name == name


def test_a_video_of_a_head_alone_is_refused(tmp_path: Path):
    path = tmp_path / "clip.y4m"
    path.write_bytes(b"YUV4MPEG2 W64 H48 F25:1 C420jpeg\n")
    with pytest.raises(DataError, match="holds no frame"):
        list(open_source(str(path)))


class StalledServer:
    """Answers with the first part of a file, and then sends nothing more and keeps the connection."""

    def __init__(self, content: bytes, sent: int) -> None:
        self.asked = threading.Event()
        self._over = threading.Event()
        self._content, self._sent = content, sent
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"http://127.0.0.1:{self._listener.getsockname()[1]}/clip.avi"
        self._threads = [threading.Thread(target=self._listen, daemon=True)]
        self._threads[0].start()

    def _listen(self) -> None:
        while not self._over.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._send, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _send(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.recv(4096)
            head = f"HTTP/1.1 200 OK\r\nContent-Type: video/x-msvideo\r\nContent-Length: {len(self._content)}\r\n\r\n"
            connection.sendall(head.encode() + self._content[: self._sent] if self._sent else b"")
            self.asked.set()
            self._over.wait()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._over.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "SILENCE", 0.5)
    monkeypatch.setattr(sources, "STALL", 0.5)
    monkeypatch.setattr(sources, "OPENING", 1.0)


def test_a_server_that_never_answers_is_given_up(impatient):
    with (
        StalledServer(b"", 0) as server,
        pytest.raises(DataError, match=r"not a video that can be read \(nothing came"),
    ):
        open_source(server.address)


def test_a_film_that_stalls_gives_what_came_before(tmp_path: Path, impatient, caplog):
    content = write_video(tmp_path / "clip.avi", frames=40).read_bytes()
    with StalledServer(content, len(content) * 3 // 4) as server:
        frames = list(open_source(server.address))
    assert 5 < len(frames) < 40
    assert "is damaged (nothing came for too long)" in caplog.text


def test_a_camera_that_falls_silent_is_opened_again(tmp_path: Path, impatient, caplog):
    content = write_video(tmp_path / "clip.avi", frames=40).read_bytes()
    with StalledServer(content, len(content) // 2) as server:
        camera = Camera("it", sources._stream_opener(server.address), attempts=1, first_wait=0.01)
        frames = iter(camera)
        names = [next(frames).name for _ in range(30)]
        camera.stop()
    assert len(set(names)) == 30
    assert "the camera it is away" in caplog.text


def test_a_camera_that_never_answers_is_given_up(impatient):
    """FFmpeg's error for a time limit derives from none of Python's."""
    with (
        StalledServer(b"", 0) as server,
        pytest.raises(DataError, match=r"cannot be opened \(nothing came for too long"),
    ):
        list(Camera("it", sources._stream_opener(server.address), attempts=1, first_wait=0.01))


WATCH = """
import os, signal, sys
# What starts the tests may have them ignore it, as a shell does what it starts in the background.
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, "-m", "edge_effdet.detect", "--engine", sys.argv[1], "--source", sys.argv[2]])
"""


@pytest.mark.parametrize("part", [0.0, 0.7])
def test_ctrl_c_ends_the_wait_for_a_film_that_stalls(tmp_path: Path, part: float):
    """Before the first frame and after some; within seconds, although FFmpeg itself cannot be woken."""
    content = write_video(tmp_path / "clip.avi", frames=40).read_bytes()
    engine = write_engine(tmp_path, make_model())
    with StalledServer(content, int(part * len(content))) as server:
        root = Path(__file__).parents[3]
        command = [sys.executable, "-c", WATCH, str(engine), server.address]
        with subprocess.Popen(command, cwd=root, stderr=subprocess.PIPE, text=True) as process:
            assert server.asked.wait(60)
            time.sleep(1)
            process.send_signal(signal.SIGINT)
            started = time.perf_counter()
            _, said = process.communicate(timeout=60)
            seconds = time.perf_counter() - started
    assert process.returncode == 130, said
    assert "interrupted" in said and "Traceback" not in said
    assert seconds < 10


def test_frames_that_are_too_large_are_refused_before_they_are_decoded(tmp_path: Path, monkeypatch):
    path = write_video(tmp_path / "clip.mp4", "mpeg4", size=(480, 640))
    monkeypatch.setattr(sources, "MAX_FRAME_PIXELS", 640 * 480 - 1)
    with pytest.raises(DataError, match=r"clip\.mp4 has 640x480 pixels, and more than 307199 are refused"):
        open_source(str(path))
    monkeypatch.setattr(sources, "MAX_FRAME_PIXELS", 640 * 480)
    assert len(list(open_source(str(path)))) == FRAMES


def test_frames_of_a_camera_that_are_too_large_end_it(tmp_path: Path, monkeypatch):
    path = write_video(tmp_path / "clip.mp4", "mpeg4", size=(480, 640))
    monkeypatch.setattr(sources, "MAX_FRAME_PIXELS", 640 * 480 - 1)
    camera = Camera("it", sources._stream_opener(str(path)), attempts=0)
    with pytest.raises(DataError, match="has 640x480 pixels"):
        list(camera)


def test_a_pipe_among_pictures_is_left_alone(tmp_path: Path):
    """To open it would wait for a writer for ever."""
    os.mkfifo(tmp_path / "a.jpg")
    Image.new("RGB", (4, 4)).save(tmp_path / "b.jpg")
    assert find_images(tmp_path) == [tmp_path / "b.jpg"]
    with pytest.raises(DataError, match="There is no image or folder"):
        find_images(tmp_path / "a.jpg")
