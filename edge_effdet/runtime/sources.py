"""Sources of pictures, as iterators of frames: a file, a folder, a video, a camera.

Files of pictures need nothing but Pillow. Videos and cameras are read by PyAV (``pip install 'edge-effdet[video]'``); a
GStreamer pipeline, as a Jetson's CSI camera needs it, runs in ``gst-launch-1.0``, which sends its frames through a pipe.
"""

from __future__ import annotations

import gc
import logging
import os
import queue
import re
import shlex
import shutil
import stat
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from edge_effdet.cli import count_of
from edge_effdet.errors import BackendUnavailable, DataError, MissingDependency, NotEnoughMemory, first_line
from edge_effdet.runtime.images import IMAGE_SUFFIXES, describe_unreadable, list_images
from edge_effdet.runtime.limits import MAX_FRAME_PIXELS, MAX_PIXELS, refuse_huge

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

_LISTS = frozenset({".csv", ".json", ".jsonl", ".lst", ".txt", ".xml", ".yaml", ".yml"})
"""Suffixes of files that list images or describe them."""

_ONE_PATH = "give the path of an image or of a folder with images"

_LOOKED_AT = 20_000
"""So many files are looked at below a folder of images; more may lie in a whole disk."""

_GSTREAMER = "gst-launch-1.0"

_FINITE = frozenset({".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm", ".wmv"})
"""Suffixes of addresses that are videos with an end. Any other address is a live stream, which is opened again when it ends."""

FIRST_WAIT, LONGEST_WAIT, ATTEMPTS = 0.5, 8.0, 5
"""A camera that went away is opened again, up to ``ATTEMPTS`` times in a row. The first attempt follows after ``FIRST_WAIT``
seconds; the wait doubles each time, up to ``LONGEST_WAIT``."""

SILENCE = 5.0
"""Seconds without a frame after which a network camera counts as gone."""

OPENING, STALL = 60.0, 30.0
"""Seconds that a video at an address has to open in, since its index may stand at its end, and without a frame after which it counts as ended."""

_METADATA = "replace"
"""What PyAV does with a title or an author that is not in UTF-8, which nothing here reads. By itself it raises an error."""

_OF_SINGLE_FRAMES = frozenset({"mjpeg", "png", "rawvideo", "wrapped_avframe"})
"""Decoders, by FFmpeg's names, that hold no frame beside the one that they decode."""

_LARGE_FRAME, _FEW_THREADS = 4096 * 2304, 4
"""A decoder of larger frames than those of 4K gets no more than so many threads, for each of them holds a frame and what it refers to."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One picture of a source.

    Attributes:
        name: the name in logs and results: a file's path, or a video's or camera's name, ``#`` and the frame's number.
        picture: a file that is not decoded yet, or uint8 [height, width, 3] in RGB.
        seconds: time since the start of the video or of the camera; None for a file.
        arrived: when the frame arrived, in seconds of ``time.perf_counter``.
    """

    name: str
    picture: Path | np.ndarray
    seconds: float | None
    arrived: float


class Source(Protocol):
    """Yields frames in order.

    Attributes:
        name: the name in logs and results.
        live: whether frames come at their own pace, as a camera's do; then old ones are dropped.
        total: number of frames, None if unknown.
        rate: nominal frames per second, None if unknown.
    """

    name: str
    live: bool
    total: int | None
    rate: float | None

    def __iter__(self) -> Iterator[Frame]: ...

    def stop(self) -> None:
        """End a wait for the next frame. It is called in another thread than the iteration."""
        ...


class ImageFiles:
    """Image files. Their frames hold paths; the pipeline decodes them."""

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
    """The frames of a video, to the last one that can be decoded."""

    live = False

    def __init__(self, address: Path | str) -> None:
        """Open the video once, so that a file that is no video is refused here. Raises DataError, MissingDependency."""
        self._address, self.name = str(address), _without_password(str(address))
        self._av = _import_av("to read a video")
        self._stopped = threading.Event()
        with self._open() as (_, stream):
            self.total: int | None = stream.frames or None
            self.rate: float | None = float(stream.average_rate) if stream.average_rate else None

    def __iter__(self) -> Iterator[Frame]:
        count = damaged = 0
        reason = ""
        self._stopped.clear()
        with self._open() as (container, stream):
            try:
                for packet in container.demux(stream):
                    if self._stopped.is_set():
                        return
                    try:
                        images = packet.decode()
                    except self._av.error.InvalidDataError as error:
                        damaged, reason = damaged + 1, _reason(error)
                        continue
                    for image in images:
                        yield Frame(f"{self.name}#{count}", _pixels(image), image.time or 0.0, time.perf_counter())
                        count += 1
            except MemoryError as error:
                raise _no_memory(self.name, container) from error
            except (self._av.error.FFmpegError, OSError) as error:
                damaged, reason = damaged + 1, _reason(error)
        if not count:
            raise DataError(
                f"{self.name} holds no frame that can be decoded ({reason or 'it ends early'}); copy it again."
            )
        if damaged or count < (self.total or 0):
            promised = f" of {self.total}" if self.total else ""
            logger.warning(
                "%s is damaged (%s): %d%s frames could be decoded",
                self.name,
                reason or "it ends early",
                count,
                promised,
            )

    def stop(self) -> None:
        self._stopped.set()

    @contextmanager
    def _open(self) -> Iterator[tuple[Any, Any]]:
        # A container of PyAV refers to itself, so the one of an earlier pass, with its frames, is there until Python looks for such.
        gc.collect()
        try:
            # A disk answers or fails; a server may do neither.
            if "://" in self._address:
                container = _in_a_thread(
                    lambda: self._av.open(self._address, timeout=(OPENING, STALL), metadata_errors=_METADATA)
                )
            else:
                container = self._av.open(self._address, metadata_errors=_METADATA)
        except MemoryError as error:
            raise _no_memory(self.name) from error
        except (self._av.error.FFmpegError, OSError) as error:
            raise DataError(
                f"{self.name} is not a video that can be read ({_reason(error)}); copy it again."
            ) from error
        with container:
            if not container.streams.video:
                raise DataError(f"{self.name} holds no pictures, only sound; give another file.")
            stream = container.streams.video[0]
            _limit_decoder(stream, self.name, live=False)
            yield container, stream


class Camera:
    """The frames of a camera. If it goes away it is opened again after growing waits, and given up after some attempts."""

    live = True

    def __init__(
        self,
        name: str,
        images: Callable[[], Iterator[np.ndarray]],
        attempts: int = ATTEMPTS,
        first_wait: float = FIRST_WAIT,
    ) -> None:
        """``images`` opens the camera and yields pictures, uint8 [height, width, 3], until the camera goes away.

        It raises OSError or ValueError, from which PyAV's errors derive, if the camera cannot be opened or read.
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
    """Open a source of pictures by its name.

    The name is one of these:

    - a file or a folder of pictures, or a video file;
    - a V4L2 camera, ``/dev/video0`` or its number, or a named pipe that another program writes a video stream to;
    - the address of a stream, ``rtsp://…``, ``http://…``, ``udp://…``, or of a video file;
    - a GStreamer pipeline up to the raw picture, as in ``nvarguscamerasrc ! nvvidconv``: any text with a ``!``.

    Raises:
        DataError: there is nothing of this name, or it cannot be read.
        MissingDependency: the source is a video or a camera, and PyAV is not installed.
        BackendUnavailable: the source is a GStreamer pipeline, and GStreamer is not installed.
    """
    # The password of an address may have a ``!``, and Path.exists raises for a long pipeline.
    if "!" in text and not re.match(r"[\w+.-]+://", text) and not os.path.exists(text):  # noqa: PTH110
        return Camera(_without_password(text).split("!", 1)[0].strip(), _gstreamer_opener(text))
    if "://" in text:
        # Not urlsplit, which raises for a ``[`` in a password.
        if Path(re.split("[?#]", text.partition("://")[2].partition("/")[2])[0]).suffix.lower() in _FINITE:
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
    """The picture files that a path names: the file itself, or all in a folder. What is left out of a folder is logged.

    Raises:
        DataError: there is nothing at the path, it is a list or a pattern of names, or the folder holds no pictures.
    """
    if source.is_file():
        if source.suffix.lower() in _LISTS:
            raise DataError(f"{source} is no image, and lists of images are not read; {_ONE_PATH}.")
        return [source]
    if not source.is_dir():
        if set("*?[") & set(str(source)):
            raise DataError(f"There is no image or folder at {source}, and patterns are not read; {_ONE_PATH}.")
        raise DataError(f"There is no image or folder at {source}; correct `source`.")
    images = list_images(source)
    files = sorted(path for path in source.iterdir() if path.is_file())
    unreadable = describe_unreadable(files)
    videos = [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES - IMAGE_SUFFIXES]
    below, first = _images_below(source)
    others = [count_of(below, "image") + " in sub-folders"] if below else []
    others += [count_of(len(videos), "video")] if videos else []
    if images:
        if unreadable:
            logger.warning("%s holds pictures that cannot be read here and are left out: %s", source, unreadable)
        if others:
            logger.info("%s: left out %s", source, " and ".join(others))
        return images
    if below:
        cure = f"; give the folder that holds them, such as {first}"
    elif videos:
        cure = f"; give a video by its name to detect, such as {videos[0]}"
    else:
        # What cannot be read comes with its own cure.
        cure = "" if unreadable else f"; {_ONE_PATH}"
    held = [unreadable, *others] if unreadable else others
    if not held:
        suffixes = Counter(path.suffix.lower() or "without suffix" for path in files)
        held = [f"{count} {suffix}" for suffix, count in suffixes.most_common(3)]
    raise DataError(f"{source} holds no images (.jpg, .png, …){' but ' if held else ''}{', '.join(held)}{cure}.")


def _images_below(folder: Path) -> tuple[int, str]:
    """How many images the folders below a folder hold, as far as is looked, and the first that has some."""
    count, first, looked = 0, "", 0
    seen: set[tuple[int, int]] = set()
    for place, folders, files in os.walk(folder, followlinks=True):
        status = Path(place).stat()
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        here = sum(os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES for name in files)  # noqa: PTH122
        if here and place != str(folder):
            count, first = count + here, first or place
        looked += len(files) + len(folders)
        if looked > _LOOKED_AT:
            break
    return count, first


def _stream_opener(address: str, format: str | None = None) -> Callable[[], Iterator[np.ndarray]]:  # noqa: A002 - PyAV's
    av = _import_av("to read a camera")
    options = {"rtsp_transport": "tcp"} if address.startswith("rtsp") else {}
    # A pipe has no time limit: the program that writes to it may start later.
    limit = SILENCE if "://" in address else None

    def images() -> Iterator[np.ndarray]:
        try:
            with av.open(
                address, format=format, options=options, timeout=limit, metadata_errors=_METADATA
            ) as container:
                yield from _decode(container, _without_password(address))
        # PyAV's error for a time limit derives from none of Python's.
        except av.error.ExitError as error:
            raise TimeoutError(_reason(error)) from error

    return images


def _gstreamer_opener(pipeline: str) -> Callable[[], Iterator[np.ndarray]]:
    av = _import_av("to read a camera")
    if shutil.which(_GSTREAMER) is None:
        raise BackendUnavailable(
            f"{_GSTREAMER} is not installed, which a GStreamer pipeline needs; run apt install gstreamer1.0-tools "
            "gstreamer1.0-plugins-good."
        )
    # YUV4MPEG2 is a raw stream with a header that tells its size, which plain raw video lacks.
    tail = "! videoconvert ! video/x-raw,format=I420 ! y4menc ! fdsink fd=1"

    def images() -> Iterator[np.ndarray]:
        command = [_GSTREAMER, "--quiet", *shlex.split(f"{pipeline} {tail}")]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            try:
                with av.open(process.stdout, format="yuv4mpegpipe") as container:
                    yield from _decode(container, _GSTREAMER)
            finally:
                process.terminate()

    return images


def _in_a_thread(work: Callable[[], Any]) -> Any:
    """Work in another thread, so that Ctrl-C ends the wait for it at once: in the main thread no signal is seen before the work is done."""
    done: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            done.put((work(), None))
        except BaseException as error:  # raised by whoever waits
            done.put((None, error))

    threading.Thread(target=run, name="edge-effdet-open", daemon=True).start()
    result, error = done.get()
    if error is not None:
        raise error
    return result


def _decode(container: Any, name: str) -> Iterator[np.ndarray]:
    for stream in container.streams.video[:1]:
        _limit_decoder(stream, name, live=True)
    try:
        for image in container.decode(video=0):
            yield _pixels(image)
    except MemoryError as error:
        raise _no_memory(name, container) from error


def _limit_decoder(stream: Any, name: str, live: bool) -> None:
    """Let a decoder use several threads, and make it refuse frames that are too large, also those that become so later.

    Raises:
        DataError: they are too large from the first one on, or nothing here decodes the stream.
    """
    context = stream.codec_context
    if context is None:
        raise DataError(f"{name} has a codec that is not known here; convert it to H.264.")
    most = _most_pixels(context)
    refuse_huge((context.height, context.width), name, most)
    if not live:
        # Decoding several frames at once holds back as many frames as there are threads, which a camera must not.
        stream.thread_type = "AUTO"
    if context.height * context.width > _LARGE_FRAME:
        context.thread_count = _FEW_THREADS
    # FFmpeg looks at it before it takes memory for a frame.
    # It counts the border that a decoder puts around a frame.
    context.options = {**dict(context.options), "max_pixels": str(most * 5 // 4)}


def _most_pixels(context: Any) -> int:
    """How many pixels a frame may have: as many as a picture where the decoder holds one frame at a time."""
    return MAX_PIXELS if context.name in _OF_SINGLE_FRAMES else MAX_FRAME_PIXELS


def _no_memory(name: str, container: Any = None) -> NotEnoughMemory:
    """FFmpeg gives the same error where the system gives no memory and where frames have become larger than they may be.

    Raises:
        DataError: they have become larger.
    """
    for stream in container.streams.video[:1] if container is not None else ():
        refuse_huge((stream.codec_context.height, stream.codec_context.width), name, _most_pixels(stream.codec_context))
    return NotEnoughMemory(
        f"There is not enough memory to decode {name}; end other programs, or give fewer `decoders` and `runs`, or smaller frames."
    )


def _pixels(image: Any) -> np.ndarray:
    """A PyAV frame as uint8 [height, width, 3], RGB, turned and mirrored as the video's display matrix says."""
    pixels = image.to_ndarray(format="rgb24")
    matrix = image.side_data.get("DISPLAYMATRIX")
    # PyAV's own ``rotation`` takes a mirrored picture for one that is turned.
    return pixels if matrix is None else _displayed(pixels, np.frombuffer(matrix, np.int32))


def _displayed(pixels: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Apply FFmpeg's display matrix, of which the first two columns of [[a, b, u], [c, d, v], [x, y, w]] matter: a pixel at (x, y) is
    shown at (a x + c y, b x + d y)."""
    a, b, c, d = matrix[[0, 1, 3, 4]]
    if abs(b) > abs(a):
        pixels, a, d = pixels.transpose(1, 0, 2), c, b
    return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def _reason(error: BaseException) -> str:
    # PyAV ends a wait by an exit that FFmpeg was asked for.
    if type(error).__name__ == "ExitError":
        return "nothing came for too long"
    # strerror holds the reason alone; str of a PyAV error adds a number and the path.
    return getattr(error, "strerror", None) or first_line(error)


def _without_password(address: str) -> str:
    """An address, or a GStreamer pipeline, without user names and passwords, for logs and results."""
    address = re.sub(r"""\b(?:user|proxy)-(?:id|pw)\s*=\s*("[^"]*"|'[^']*'|\S+)\s*""", "", address)
    return re.sub(r"://[^/\s]*@", "://", address)


def _import_av(purpose: str) -> ModuleType:
    try:
        import av
    except ModuleNotFoundError as error:
        raise MissingDependency("av", "video", purpose) from error
    # FFmpeg's own log is off: this module reports a damaged stream in one sentence.
    av.logging.set_level(None)
    return av
