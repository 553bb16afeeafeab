"""Limits of pictures and frames: what is refused before it is decoded, what memory decoding takes, and a shortage of it."""

from __future__ import annotations

import os
import resource
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edge_effdet.artifacts import ModelSpec
from edge_effdet.data.text import read_content
from edge_effdet.errors import DataError, NotEnoughMemory
from edge_effdet.runtime import images, limits
from edge_effdet.runtime.detector import Detector
from edge_effdet.runtime.feeds import Feed
from edge_effdet.runtime.images import open_picture, pixels_of, read_image
from edge_effdet.runtime.limits import (
    LARGE_PIXELS,
    MAX_DECODE_BYTES,
    MAX_PICTURE_BYTES,
    MAX_PIXELS,
    MAX_SIDE,
    ByteBudget,
    is_large,
    refuse_huge,
)
from edge_effdet.runtime.pipeline import Pipeline
from edge_effdet.runtime.sources import Frame, ImageFiles
from tests.backends import BrightBoxRunner

SPEC = ModelSpec("tf_efficientdet_lite0", (64, 64), ("thing",), (1,))

CHANNELS = {0: 1, 2: 3, 4: 2, 6: 4, 3: 1}
"""By the colour type of a PNG."""


def write_png(path: Path, height: int, width: int, depth: int = 8, color: int = 2, rows: int | None = None) -> Path:
    """Write a PNG of zeros, which are a few bytes when compressed; ``rows`` is how many there really are."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    packer = zlib.compressobj(1)
    row = bytes(1 + -(-width * depth * CHANNELS[color] // 8))
    pixels = b"".join(packer.compress(row) for _ in range(height if rows is None else rows)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    palette = chunk(b"PLTE", bytes(6)) if color == 3 else b""
    parts = (chunk(b"IHDR", header), palette, chunk(b"IDAT", pixels), chunk(b"IEND", b""))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    return path


def test_a_size_is_refused_by_its_pixels_and_by_its_sides():
    refuse_huge((9000, 9000), "it")
    with pytest.raises(DataError, match="it has 10000x9000 pixels, and more than 89 million are refused"):
        refuse_huge((9000, 10000), "it")
    with pytest.raises(DataError, match="more than 50 million are refused"):
        refuse_huge((9000, 9000), "it", 50_000_000)
    refuse_huge((MAX_SIDE, 2), "it")
    for size in ((MAX_SIDE + 1, 2), (2, MAX_SIDE + 1)):
        with pytest.raises(DataError, match="sides of more than 65535 are refused"):
            refuse_huge(size, "it")


@pytest.mark.parametrize(("depth", "color", "kind"), [(8, 6, "RGBA in PNG"), (8, 4, "LA in PNG")])
def test_a_picture_is_refused_by_what_it_takes_to_decode(
    tmp_path: Path, monkeypatch, depth: int, color: int, kind: str
):
    """Fewer pixels than a picture in RGB may have. Only the header is there: it is refused before it is decoded."""
    path = write_png(tmp_path / "a.png", 9000, 9000, depth, color, rows=1)
    assert 9000 * 9000 < MAX_PIXELS
    monkeypatch.setattr(limits, "MAX_PICTURE_BYTES", 2**29)
    with pytest.raises(DataError, match=rf"a\.png has 9000x9000 pixels as {kind}, which take 617 MiB to decode"):
        read_image(path)


def test_a_service_may_set_a_smaller_limit(tmp_path: Path):
    path = write_png(tmp_path / "a.png", 40, 50)
    detector = Detector(BrightBoxRunner(64), SPEC)
    assert detector.read(path.read_bytes(), most_pixels=2000)[1] == (40, 50)
    for source in (path, path.read_bytes()):
        with pytest.raises(DataError, match=r"has 50x40 pixels, and more than 1999 are refused"):
            detector.read(source, most_pixels=1999)


PEAK = """
# Of this process alone: what getrusage says begins with that of the process that started it.
def peak():
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

import sys
from pathlib import Path
import numpy as np
from PIL import Image
from edge_effdet.runtime import images
images.open_picture(Path(sys.argv[2]))
before = peak()
getattr(images, sys.argv[3])(Path(sys.argv[1]))
print(peak() - before >> 10)
"""


def peak_mib(path: Path, small: Path, function: str = "open_picture") -> int:
    """How many MiB the memory of a process of its own grows by while a picture is decoded, after a small one of the kind was."""
    command = [sys.executable, "-c", PEAK, str(path), str(small), function]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize(
    ("name", "depth", "color", "bytes_each"),
    [("16-bit grey", 16, 0, 7), ("RGBA", 8, 6, 8), ("grey", 8, 0, 5), ("RGB", 8, 2, 4), ("palette", 1, 3, 5)],
)
def test_decoding_takes_what_was_counted(tmp_path: Path, name: str, depth: int, color: int, bytes_each: int):
    """A picture of 25 million pixels: what is counted beforehand is what it takes, and a few MiB for strips and tables."""
    side = 5000
    path = write_png(tmp_path / "a.png", side, side, depth, color)
    with Image.open(path) as image:
        counted = images.decoding_bytes(image)
    assert counted == bytes_each * side * side
    peak = peak_mib(path, write_png(tmp_path / "small.png", 50, 50, depth, color))
    assert counted / 2**20 / 2 < peak < counted / 2**20 + 30


def test_a_large_picture_as_an_array_takes_one_copy_more(tmp_path: Path):
    path = write_png(tmp_path / "a.png", 5000, 5000)
    assert is_large((5000, 5000))
    peak = peak_mib(path, write_png(tmp_path / "small.png", 50, 50), "read_image")
    assert peak < (4 + 3) * 5000 * 5000 / 2**20 + 30


def test_the_strips_of_a_large_picture_are_all_of_it():
    rng = np.random.default_rng(0)
    pixels = np.repeat(rng.integers(0, 256, (5000, 1, 3), np.uint8), 4000, axis=1)
    assert is_large(pixels.shape[:2])
    np.testing.assert_array_equal(pixels_of(Image.fromarray(pixels)), pixels)


@pytest.mark.parametrize("shape", [(4200, 4100), (5000, 3500)])
def test_a_large_picture_for_the_network_alone_has_the_same_pixels(tmp_path: Path, shape: tuple[int, int]):
    rng = np.random.default_rng(1)
    coarse = Image.fromarray(rng.integers(0, 256, (shape[0] // 50, shape[1] // 50, 3), np.uint8))
    coarse.resize(shape[::-1]).save(tmp_path / "a.png", compress_level=0)
    assert shape[0] * shape[1] > LARGE_PIXELS
    detector = Detector(BrightBoxRunner(64), SPEC)
    rows = np.zeros((2, 3, 64, 64), np.uint8)
    for row, whole in zip(rows, (True, False), strict=True):
        picture, size = detector.read(tmp_path / "a.png", whole=whole)
        assert size == shape and isinstance(picture, Image.Image)
        assert (picture.size == shape[::-1]) == whole
        detector.prepare(picture, size, row)
    np.testing.assert_array_equal(rows[0], rows[1])


def test_a_large_picture_that_is_drawn_on_is_decoded_again(tmp_path: Path):
    pixels = np.zeros((4200, 4100, 3), np.uint8)
    pixels[1000:2000, 500:2500] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png", compress_level=1)
    Image.fromarray(pixels[:50, :50]).save(tmp_path / "b.png")
    paths = [tmp_path / "a.png", tmp_path / "b.png"]
    large, small = Pipeline(Detector(BrightBoxRunner(64), SPEC), ImageFiles(paths, "x"), keep_images=True)
    np.testing.assert_array_equal(large.image, pixels)
    np.testing.assert_allclose(large.detections.boxes, [[500, 1000, 2500, 2000]], atol=80)
    assert small.image.shape == (50, 50, 3)


SHORT = """
import resource, sys
from pathlib import Path
import numpy as np
from edge_effdet.errors import DataError, NotEnoughMemory
from edge_effdet.runtime.detector import Detector
from edge_effdet.runtime.images import open_picture
from edge_effdet.runtime.pipeline import Pipeline, PipelineOptions
from edge_effdet.runtime.sources import ImageFiles
from edge_effdet.artifacts import ModelSpec
from tests.backends import BrightBoxRunner

large, small = map(Path, sys.argv[1:])
open_picture(small)
detector = Detector(BrightBoxRunner(64), ModelSpec("x", (64, 64), ("thing",), (1,)))
list(Pipeline(detector, ImageFiles([small], "x"), PipelineOptions(1, 1)))
used = 4096 * int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (used + 60 * 2**20, resource.RLIM_INFINITY))
try:
    open_picture(large)
except NotEnoughMemory as error:
    print(error)
running = Pipeline(detector, ImageFiles([small, large, small], "x"), PipelineOptions(1, 1))
try:
    for found in running:
        print(found.problem or "found")
except NotEnoughMemory:
    print("ended", running.progress.failed)
"""


@pytest.mark.parametrize(("depth", "color"), [(8, 2), (16, 0), (8, 6)])
def test_a_shortage_of_memory_is_no_damaged_picture(tmp_path: Path, depth: int, color: int):
    """In a process that gets 60 MiB more than it has, and a picture that takes more."""
    large = write_png(tmp_path / "large.png", 6000, 6000, depth, color)
    small = write_png(tmp_path / "small.png", 50, 50, depth, color)
    command = [sys.executable, "-c", SHORT, str(large), str(small)]
    root = Path(__file__).parents[3]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0].startswith(f"There is not enough memory to decode {large}; ")
    assert done.stdout.splitlines()[-1] == "ended 0", "it was counted as a damaged picture"
    assert not issubclass(NotEnoughMemory, DataError)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell what is open")
def test_a_shortage_of_open_files_is_no_damaged_file(tmp_path: Path):
    path = tmp_path / "a.jpg"
    Image.new("RGB", (8, 8)).save(path)
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The lowest number that is free is the first that is not allowed.
    first = os.open(os.devnull, os.O_RDONLY)
    os.close(first)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (first, limit[1]))
        for read in (read_image, images.picture_frame, read_content):
            with pytest.raises(
                NotEnoughMemory, match=r"a\.jpg cannot be read now \(Too many open files\); free what is short"
            ):
                read(path)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limit)


def test_what_threads_hold_together_keeps_to_the_budget():
    budget = ByteBudget(100 << 20)
    lock = threading.Lock()
    held, most = 0, 0

    def work(count: int) -> None:
        nonlocal held, most
        for _ in range(10):
            with budget.hold(count):
                with lock:
                    held += count
                    most = max(most, held)
                time.sleep(0.001)
                with lock:
                    held -= count

    threads = [threading.Thread(target=work, args=(size << 20,)) for size in (40, 40, 40, 60, 20, 300)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    # The one that is larger than the budget is alone.
    assert most == 300 << 20
    assert held == 0


def test_a_block_that_fails_gives_back_what_it_held():
    budget = ByteBudget(100 << 20)
    with pytest.raises(RuntimeError), budget.hold(90 << 20):
        raise RuntimeError
    with budget.hold(90 << 20):
        pass


class Frames:
    """A video of frames of 1 MB."""

    name, live, rate, total = "video", False, None, 9

    def __init__(self) -> None:
        self.given = 0

    def __iter__(self):
        for number in range(9):
            self.given += 1
            yield Frame(f"#{number}", np.zeros(10**6, np.uint8), None, 0.0)

    def stop(self) -> None:
        pass


def test_frames_on_their_way_keep_to_their_limit():
    source = Frames()
    feed = Feed(source, most_bytes=3 * 10**6)
    frames = [feed.next() for _ in range(3)]
    waiting = threading.Thread(target=lambda: frames.append(feed.next()), daemon=True)
    waiting.start()
    waiting.join(0.2)
    assert waiting.is_alive() and source.given == 3
    feed.done(frames[0][1])
    waiting.join(60)
    assert not waiting.is_alive() and frames[3][0] == 3
    # Whoever waits for room is woken at the end.
    last = threading.Thread(target=lambda: frames.append(feed.next()), daemon=True)
    last.start()
    feed.close()
    last.join(60)
    assert frames[4] is None and source.given == 4


def test_a_pipeline_of_frames_that_fill_the_limit_comes_to_its_end(monkeypatch: pytest.MonkeyPatch):
    from edge_effdet.runtime import pipeline

    monkeypatch.setattr(pipeline, "Feed", lambda source: Feed(source, most_bytes=1))

    class Video(Frames):
        def __iter__(self):
            for number in range(9):
                yield Frame(f"#{number}", np.full((40, 40, 3), 200, np.uint8), None, 0.0)

    found = list(Pipeline(Detector(BrightBoxRunner(64), SPEC), Video(), keep_images=True))
    assert [each.frame.name for each in found] == [f"#{number}" for number in range(9)]


def test_a_fork_while_pictures_are_decoded_begins_anew():
    budget = ByteBudget(100 << 20)
    with budget.hold(90 << 20):
        budget.forget()
        with budget.hold(90 << 20):
            pass


@pytest.mark.parametrize(
    "content", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", b"8BPS\x00\x01" + bytes(60)]
)
@pytest.mark.parametrize("name", ["a.jpg", "a.eps"])
def test_a_format_that_is_not_for_photographs_is_not_opened(tmp_path: Path, monkeypatch, content: bytes, name: str):
    """Pillow would start Ghostscript for an EPS file, whatever it is called."""
    from PIL import EpsImagePlugin

    started: list[object] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *arguments: started.append(arguments))
    (tmp_path / name).write_bytes(content)
    for source in (tmp_path / name, content):
        with pytest.raises(DataError, match="not an image"):
            open_picture(source)
    assert not started


def test_every_format_that_is_listed_is_opened(tmp_path: Path):
    pixels = np.full((16, 16, 3), 90, np.uint8)
    for kind, suffixes in images.FORMATS.items():
        path = tmp_path / f"a{suffixes[0]}"
        Image.fromarray(pixels).save(path, format=kind)
        assert np.abs(read_image(path).astype(int) - pixels).max() < 12, kind
        assert set(suffixes) <= images.IMAGE_SUFFIXES


def test_decoding_limit_is_above_the_largest_photographs():
    """A camera's 61 million pixels as JPEG, turned or progressive, are decoded."""
    for extra in (0, 4, 3):
        assert 61_000_000 * (4 + extra) <= MAX_DECODE_BYTES


def test_kinds_with_transparency_are_decoded_up_to_the_limit_of_pixels():
    """HEIC takes 12 bytes for each pixel, and a telephone's has 48 million."""
    assert 12 * MAX_PIXELS <= MAX_PICTURE_BYTES
