"""Where pictures come from: a file, a folder, a video, a camera. What ``--source`` names, as an iterator of frames.

Files of pictures need nothing but Pillow. Videos and cameras are read by PyAV (``pip install 'edge-effdet[video]'``); a
GStreamer pipeline, as a Jetson's CSI camera needs, runs in ``gst-launch-1.0`` and hands its frames over through a pipe.
"""

from __future__ import annotations

import logging
import re
import shlex
import shutil
import stat
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol
from urllib.parse import urlsplit

import numpy as np

from edge_effdet.errors import BackendUnavailable, DataError, MissingDependency, first_line
from edge_effdet.runtime.images import IMAGE_SUFFIXES, list_images

logger = logging.getLogger("edge_effdet.runtime.sources")

VIDEO_SUFFIXES = frozenset(
    {
        ".avi",
        ".flv",
        ".m2ts",
        ".m4v",
        ".mjpeg",
        ".mjpg",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpeg",
        ".mpg",
        ".ts",
        ".webm",
        ".wmv",
        ".y4m",
    }
)

_GSTREAMER = "gst-launch-1.0"

_FINITE = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm", ".wmv"})
"""Of an address: a film that ends, and not a camera that is away when it does."""

FIRST_WAIT, LONGEST_WAIT, ATTEMPTS = 0.5, 8.0, 5
"""Seconds before a camera that went away is tried again, doubled each time, and how often in a row."""

SILENCE = 5.0
"""Seconds without a frame after which a network camera counts as gone."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A picture on its way.

    Attributes:
        name: for people and results: the file's path, and in a video the number of the frame after a ``#``.
        picture: a file that is not decoded yet, or uint8 [height, width, 3] in RGB.
        seconds: since the start of the video or of the camera; None for a file.
        arrived: when it was there, by ``time.perf_counter``.
    """

    name: str
    picture: Path | np.ndarray
    seconds: float | None
    arrived: float


class Source(Protocol):
    """Frames in order.

    Attributes:
        name: for people.
        live: frames come whether they are wanted or not, so that old ones are dropped.
        total: how many there will be, where that is known.
        rate: frames a second that it is made for, where that is known.
    """

    name: str
    live: bool
    total: int | None
    rate: float | None

    def __iter__(self) -> Iterator[Frame]: ...

    def stop(self) -> None:
        """End a wait; called by another thread than the one that iterates."""
        ...


class ImageFiles:
    """Files of pictures; they are decoded later."""

    live = False

    def __init__(self, paths: Sequence[Path], name: str) -> None:
        self.paths, self.name = list(paths), name
        self.total: int | None = len(self.paths)
        self.rate: float | None = None

    def __iter__(self) -> Iterator[Frame]:
        for path in self.paths:
            yield Frame(str(path), path, None, time.perf_counter())

    def stop(self) -> None:
        pass


class VideoFile:
    """A video from its first frame to its last, or to where it breaks."""

    live = False

    def __init__(self, address: Path | str) -> None:
        """Open it once, so that a file that is none is refused at once. Raises DataError, MissingDependency."""
        self._address, self.name = str(address), _without_password(str(address))
        self._av = _import_av("to read a video")
        with self._open() as (_, stream):
            self.total: int | None = stream.frames or None
            self.rate: float | None = float(stream.average_rate) if stream.average_rate else None

    def __iter__(self) -> Iterator[Frame]:
        count = damaged = 0
        reason = ""
        with self._open() as (container, stream):
            try:
                for packet in container.demux(stream):
                    try:
                        images = packet.decode()
                    except self._av.error.InvalidDataError as error:
                        damaged, reason = damaged + 1, _reason(error)
                        continue
                    for image in images:
                        yield Frame(f"{self.name}#{count}", _pixels(image), image.time or 0.0, time.perf_counter())
                        count += 1
            except (self._av.error.FFmpegError, OSError) as error:
                damaged, reason = damaged + 1, _reason(error)
        if damaged or (self.total is not None and count < self.total):
            if not count:
                raise DataError(
                    f"{self.name} holds no frame that can be decoded ({reason or 'it ends early'}); copy it again."
                )
            promised = f" of {self.total}" if self.total else ""
            logger.warning(
                "%s is damaged (%s): %d%s frames could be decoded",
                self.name,
                reason or "it ends early",
                count,
                promised,
            )

    def stop(self) -> None:
        pass

    @contextmanager
    def _open(self) -> Iterator[tuple[Any, Any]]:
        try:
            container = self._av.open(self._address)
        except (self._av.error.FFmpegError, OSError) as error:
            raise DataError(
                f"{self.name} is not a video that can be read ({_reason(error)}); copy it again."
            ) from error
        with container:
            if not container.streams.video:
                raise DataError(f"{self.name} holds no pictures, only sound; give another file.")
            stream = container.streams.video[0]
            stream.thread_type = "AUTO"
            yield container, stream


class Camera:
    """Frames as they come. A camera that goes away is opened again, after longer and longer waits, and given up at last."""

    live = True

    def __init__(
        self,
        name: str,
        images: Callable[[], Iterator[np.ndarray]],
        attempts: int = ATTEMPTS,
        first_wait: float = FIRST_WAIT,
    ) -> None:
        """Take a function that opens the camera and gives pictures, uint8 [height, width, 3], until it goes away.

        It may raise OSError or ValueError where the camera cannot be opened or read, as PyAV's errors are.
        """
        self.name = name
        self.total: int | None = None
        self.rate: float | None = None
        self._images, self._attempts, self._first_wait = images, attempts, first_wait
        self._stopped = threading.Event()

    def __iter__(self) -> Iterator[Frame]:
        started = time.perf_counter()
        count = failures = 0
        while not self._stopped.is_set():
            reason = "it sends nothing more"
            try:
                for image in self._images():
                    now = time.perf_counter()
                    yield Frame(f"{self.name}#{count}", image, now - started, now)
                    count, failures = count + 1, 0
                    if self._stopped.is_set():
                        return
            except (OSError, ValueError) as error:
                reason = _reason(error)
            failures += 1
            if failures > self._attempts:
                raise DataError(
                    f"The camera {self.name} {'went away' if count else 'cannot be opened'} ({reason}) and {self._attempts} "
                    f"attempts to open it again failed; check its cable or address. {count} frames came before."
                )
            wait = min(LONGEST_WAIT, self._first_wait * 2 ** (failures - 1))
            logger.warning("the camera %s is away (%s); trying again in %.1f s", self.name, reason, wait)
            self._stopped.wait(wait)

    def stop(self) -> None:
        self._stopped.set()


def open_source(text: str) -> Source:
    """What ``--source`` names.

    - a file or a folder of pictures, or a video file;
    - a V4L2 camera, ``/dev/video0`` or its number; a named pipe that someone writes a video stream to;
    - the address of a stream, ``rtsp://…``, ``http://…``, ``udp://…``, or of a video file;
    - a GStreamer pipeline up to the raw picture, as in ``nvarguscamerasrc ! nvvidconv``: whatever has a ``!`` in it.

    Raises:
        DataError: there is nothing, or nothing that can be read.
        MissingDependency: a video or a camera, and PyAV is not installed.
        BackendUnavailable: a GStreamer pipeline, and GStreamer is not installed.
    """
    if "!" in text and not Path(text).exists():
        return Camera(text.split("!", 1)[0].strip(), _gstreamer_opener(text))
    if "://" in text:
        if Path(urlsplit(text).path).suffix.lower() in _FINITE:
            return VideoFile(text)
        return Camera(_without_password(text), _stream_opener(text))
    path = Path(f"/dev/video{text}") if text.isdecimal() and not Path(text).exists() else Path(text)
    if path.exists() and stat.S_ISCHR(path.stat().st_mode):
        return Camera(str(path), _stream_opener(str(path), format="v4l2"))
    if path.exists() and stat.S_ISFIFO(path.stat().st_mode):
        return Camera(str(path), _stream_opener(str(path)))
    if path.is_file() and path.suffix.lower() in VIDEO_SUFFIXES - IMAGE_SUFFIXES:
        return VideoFile(path)
    return ImageFiles(find_images(path), text)


def find_images(source: Path) -> list[Path]:
    """The pictures that a path names: one file, or a folder's.

    Raises:
        DataError: nothing there, or a folder without pictures.
    """
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise DataError(f"There is no image or folder at {source}; check --source.")
    images = list_images(source)
    if not images:
        raise DataError(f"{source} holds no images (.jpg, .png, …); give another folder.")
    return images


def _stream_opener(address: str, format: str | None = None) -> Callable[[], Iterator[np.ndarray]]:  # noqa: A002 - PyAV's
    av = _import_av("to read a camera")
    options = {"rtsp_transport": "tcp"} if address.startswith("rtsp") else {}
    # A pipe has no time limit: whoever writes to it may still have to start.
    limit = SILENCE if "://" in address else None

    def images() -> Iterator[np.ndarray]:
        with av.open(address, format=format, options=options, timeout=limit) as container:
            yield from _decode(container)

    return images


def _gstreamer_opener(pipeline: str) -> Callable[[], Iterator[np.ndarray]]:
    av = _import_av("to read a camera")
    if shutil.which(_GSTREAMER) is None:
        raise BackendUnavailable(
            f"{_GSTREAMER} is not installed, which a GStreamer pipeline needs; run apt install gstreamer1.0-tools "
            "gstreamer1.0-plugins-good."
        )
    # YUV4MPEG2 is a raw stream that says its size, which a plain raw one does not.
    tail = "! videoconvert ! video/x-raw,format=I420 ! y4menc ! fdsink fd=1"

    def images() -> Iterator[np.ndarray]:
        command = [_GSTREAMER, "--quiet", *shlex.split(f"{pipeline} {tail}")]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            try:
                with av.open(process.stdout, format="yuv4mpegpipe") as container:
                    yield from _decode(container)
            finally:
                process.terminate()

    return images


def _decode(container: Any) -> Iterator[np.ndarray]:
    for image in container.decode(video=0):
        yield _pixels(image)


def _pixels(image: Any) -> np.ndarray:
    """A PyAV frame as uint8 [height, width, 3], RGB, turned as the video says."""
    turns = round(getattr(image, "rotation", 0) / 90) % 4
    pixels = image.to_ndarray(format="rgb24")
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels


def _reason(error: BaseException) -> str:
    # PyAV's messages repeat a number and the path; an operating system's error has its words apart.
    return getattr(error, "strerror", None) or first_line(error)


def _without_password(address: str) -> str:
    """What may stand in logs and results."""
    return re.sub(r"://[^/@]*@", "://", address)


def _import_av(purpose: str) -> ModuleType:
    try:
        import av
    except ModuleNotFoundError as error:
        raise MissingDependency("av", "video", purpose) from error
    # What FFmpeg has to say of a damaged stream is said here, in one sentence.
    av.logging.set_level(None)
    return av
