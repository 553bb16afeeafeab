"""The live view over HTTP: what viewers get, that none waits for another, and who is refused."""

from __future__ import annotations

import io
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import anyio
import numpy as np
import pytest
from PIL import Image

from edge_effdet.artifacts import Detections, Engine, ModelSpec, engine_json_path, load_engine
from edge_effdet.backends.base import BACKENDS, LoadOptions
from edge_effdet.errors import UsageError
from edge_effdet.runtime.drawing import class_color
from edge_effdet.runtime.pipeline import FrameResult
from edge_effdet.runtime.sources import Frame
from edge_effdet.serving import live, live_routes
from edge_effdet.serving.live import Live, LiveFrame
from edge_effdet.serving.live_routes import DrawnFrames, ViewQuery, draw_view, parse_view_query
from tests.backends import BrightBoxRunner, FakeBackend
from tests.bench_backends import make_engine
from tests.records import write_record
from tests.serving import PATIENCE, RunningServer
from tests.statuses import wait

SPEC = ModelSpec("tiny", (64, 64), ("cell", "plate & co"), (1, 7))


class TwoThings(BrightBoxRunner):
    """Finds the bright box as a cell with a score of 0.8, and the whole picture as the other class with 0.2."""

    def run(self, feeds):
        found = super().run(feeds)
        count = len(feeds["images"])
        whole = np.tile(np.array([[[2, 2, 62, 62]]], np.float32), (count, 1, 1))
        return {
            "boxes": np.concatenate([found["boxes"], whole], axis=1),
            "scores": np.tile(np.array([[0.8, 0.2]], np.float32), (count, 1)),
            "class_ids": np.tile(np.array([[0, 1]], np.int32), (count, 1)),
        }


@pytest.fixture(scope="module")
def engine(tmp_path_factory) -> Engine:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BACKENDS, "two", FakeBackend(make_runner=lambda: TwoThings(64)))
        made = make_engine(tmp_path_factory.mktemp("engine"), "two")
        write_record(replace(made, record=replace(made.require_record(), spec=SPEC)))
        assert engine_json_path(made.path).is_file()
        yield load_engine(made.path)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(3):
        Image.fromarray(picture(number)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def server(engine, pictures):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(live, "PICTURES_A_SECOND", 25.0)
        with RunningServer(engine, str(pictures)) as running:
            assert running.service.live.wait_newer(0, PATIENCE)
            yield running


def picture(number: int, height: int = 64, width: int = 64) -> np.ndarray:
    image = np.zeros((height, width, 3), np.uint8)
    image[height // 4 : height // 2, 10 * number : 10 * number + 20] = 255
    return image


class Viewer:
    """A client of ``/live.mjpeg``, an iterator over the content of its pictures."""

    def __init__(self, address: str, query: str = "") -> None:
        url = urlsplit(address)
        self._socket = socket.create_connection((url.hostname, url.port), PATIENCE)
        self._socket.sendall(f"GET /live.mjpeg{query} HTTP/1.1\r\nHost: {url.netloc}\r\n\r\n".encode())
        self._stream = self._socket.makefile("rb")
        self.status = int(self._line().split()[1])
        self.headers = self._headers()
        self._body = Chunks(self._stream) if self.headers.get("transfer-encoding") == "chunked" else self._stream

    def _line(self) -> str:
        return self._stream.readline().decode().strip()

    def _headers(self) -> dict[str, str]:
        found = {}
        while line := self._line():
            name, _, value = line.partition(":")
            found[name.lower()] = value.strip()
        return found

    def __iter__(self):
        return self

    def __next__(self) -> bytes:
        line = b""
        while line.strip() != b"--frame":
            line = self._body.readline()
            if not line:
                raise StopIteration
        length = 0
        while line := self._body.readline().strip():
            name, _, value = line.decode().partition(": ")
            length = int(value) if name == "Content-Length" else length
        if not length:
            raise StopIteration
        content = self._body.read(length)
        self._body.readline()
        return content

    def __enter__(self):
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._socket.close()


class Chunks(io.RawIOBase):
    """The content of a body that comes in chunks."""

    def __init__(self, stream) -> None:
        self._chunks, self._left = stream, b""

    def read(self, size: int = -1) -> bytes:
        while len(self._left) < size and self._more():
            pass
        taken, self._left = self._left[:size], self._left[size:]
        return taken

    def readline(self, size: int | None = -1) -> bytes:
        while b"\n" not in self._left and self._more():
            pass
        return self.read(self._left.find(b"\n") + 1) if b"\n" in self._left else b""

    def _more(self) -> bool:
        length = int(self._chunks.readline() or b"0", 16)
        self._left += self._chunks.read(length)
        self._chunks.readline()
        return length > 0


def pixels(jpeg: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(jpeg))).astype(int)


def colored(image: np.ndarray, class_id: int) -> int:
    """How many pixels have the colour of a class, as far as JPEG keeps it."""
    return int((np.abs(image - np.array(class_color(class_id))).max(axis=2) < 70).sum())


def frame_of(number: int, image: np.ndarray, spec: ModelSpec = SPEC) -> LiveFrame:
    height, width = image.shape[:2]
    boxes = np.array([[0.1, 0.2, 0.5, 0.6], [0.0, 0.0, 1.0, 1.0]], np.float32) * [width, height, width, height]
    found = Detections(boxes.astype(np.float32), np.array([0.8, 0.2], np.float32), np.array([0, 1], np.int32))
    return LiveFrame(number, f"#{number}", image, found, time.perf_counter())


@pytest.mark.parametrize(
    ("pairs", "want"),
    [
        ([], ViewQuery(0.3)),
        ([("score_threshold", "0.5")], ViewQuery(0.5)),
        ([("class", "plate & co")], ViewQuery(0.3, frozenset({1}))),
        ([("class", "cell"), ("class", "plate & co"), ("score_threshold", "1")], ViewQuery(1.0, frozenset({0, 1}))),
        ([("class", "")], ViewQuery(0.3, frozenset())),
        ([("again", "12")], ViewQuery(0.3)),
    ],
)
def test_a_query_is_read(pairs, want):
    assert parse_view_query(pairs, SPEC, 0.3) == want


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        ([("score_threshold", "much")], "score_threshold=much is not one number"),
        ([("score_threshold", "nan")], "score_threshold=nan"),
        ([("score_threshold", "1.01")], "score_threshold=1.01"),
        ([("score_threshold", "-0.1")], "score_threshold=-0.1"),
        ([("score_threshold", "0.1"), ("score_threshold", "0.2")], "not one number"),
        ([("class", "dog")], "There is no class 'dog'"),
        ([("colour", "red")], "There is no parameter 'colour'"),
    ],
)
def test_a_query_that_makes_no_sense_is_refused(pairs, said):
    with pytest.raises(UsageError, match=said):
        parse_view_query(pairs, SPEC, 0.3)


def test_a_query_chooses_by_score_and_class():
    found = frame_of(1, picture(0)).detections
    assert ViewQuery(0.0).chosen(found).class_ids.tolist() == [0, 1]
    assert ViewQuery(0.3).chosen(found).class_ids.tolist() == [0]
    assert ViewQuery(0.0, frozenset({1})).chosen(found).scores == pytest.approx([0.2])
    assert len(ViewQuery(0.0, frozenset()).chosen(found)) == 0


def test_a_wide_frame_is_scaled_down_with_its_boxes():
    image = pixels(draw_view(frame_of(1, picture(0, 1200, 2560)), ViewQuery(0.5), SPEC))
    assert image.shape == (600, 1280, 3)
    rows, columns = np.nonzero(np.abs(image - np.array(class_color(0))).max(axis=2) < 60)
    # The lines of the box; its name stands above it.
    assert columns.min() == pytest.approx(128, abs=4)
    assert columns.max() == pytest.approx(640, abs=4)
    assert rows.max() == pytest.approx(360, abs=4)
    assert pixels(draw_view(frame_of(1, picture(0)), ViewQuery(0.5), SPEC)).shape == (64, 64, 3)


def test_a_frame_is_drawn_once_for_all_who_want_the_same():
    frames, query, other = DrawnFrames(SPEC), ViewQuery(0.5), ViewQuery(0.9)
    for each in (*[query] * 8, other):
        frames.enter(each)
    assert frames.viewers == 9
    with ThreadPoolExecutor(8) as threads:
        for number in range(1, 6):
            frame = frame_of(number, picture(0, 256, 256))
            made = list(threads.map(lambda _, frame=frame: frames.picture(frame, query)[1], range(8)))
            assert len(set(made)) == 1
    assert frames.drawn == 5
    frames.picture(frame, other)
    assert frames.drawn == 6
    for each in (*[query] * 8, other):
        frames.leave(each)
    assert frames.viewers == 0
    frames.enter(query)
    # Nothing was kept of what nobody watches.
    frames.picture(frame, query)
    assert frames.drawn == 7


def test_who_comes_with_an_older_frame_gets_the_newer_picture():
    frames, query = DrawnFrames(SPEC), ViewQuery(0.5)
    frames.enter(query)
    old, new = frame_of(1, picture(0)), frame_of(2, picture(3))
    assert frames.picture(new, query)[0].number == 2
    frame, jpeg = frames.picture(old, query)
    assert (frame.number, frames.drawn) == (2, 1)
    assert jpeg == draw_view(new, query, SPEC)


def test_viewers_see_the_boxes_that_they_ask_for(server):
    with Viewer(server.address) as usual, Viewer(server.address, "?score_threshold=0.1&class=plate+%26+co") as other:
        assert usual.status == 200
        assert usual.headers["content-type"] == "multipart/x-mixed-replace; boundary=frame"
        assert usual.headers["cache-control"] == "no-store"
        first, second = (pixels(next(viewer)) for viewer in (usual, other))
    with Viewer(server.address, "?score_threshold=0.9") as bare:
        plain = pixels(next(bare))
    assert first.shape == (64, 64, 3)
    assert colored(first, 0) > colored(plain, 0) + 20
    assert colored(second, 1) > colored(plain, 1) + 60
    assert colored(first, 1) <= colored(plain, 1) + 20


def test_the_picture_moves_and_its_delay_is_told(server):
    with Viewer(server.address) as viewer:
        seen = {next(viewer) for _ in range(12)}
        state = server.ask_json("GET", "/live.json")
    assert len(seen) >= 3
    assert state["behind_ms"] > 0
    assert state["behind_ms_p90"] >= state["behind_ms"]
    assert state["viewers"] == 1


def test_the_state_tells_what_the_newest_frame_shows(server, pictures):
    state = server.ask_json("GET", "/live.json?score_threshold=0.1")
    assert (state["state"], state["source"], state["image"]) == ("running", str(pictures), {"height": 64, "width": 64})
    assert [each["class"] for each in state["detections"]] == ["cell", "plate & co"]
    assert state["detections"][1]["category_id"] == 7
    assert Path(state["frame"]).parent == pictures
    only = server.ask_json("GET", "/live.json?score_threshold=0.1&class=plate+%26+co")
    assert [each["score"] for each in only["detections"]] == [0.2]
    assert server.ask_json("GET", "/live.json?class=")["detections"] == []


@pytest.mark.parametrize("path", ["/live.mjpeg", "/live.json"])
def test_bad_queries_are_answered_with_a_sentence(server, path):
    for query in ("score_threshold=x", "score_threshold=2", "class=dog", "other=1", "class=%00"):
        status, sentence = server.error("GET", f"{path}?{query}")
        assert status == 400
        assert sentence.endswith(".")


def test_the_head_of_the_stream_can_be_asked_for(server):
    status, headers, content = server.ask("HEAD", "/live.mjpeg")
    assert (status, content) == (200, b"")
    assert headers["Content-Type"].startswith("multipart/x-mixed-replace")


def test_one_more_viewer_than_there_are_places_is_refused(server, monkeypatch):
    monkeypatch.setattr(live_routes, "MOST_VIEWERS", 2)
    wait(lambda: server.ask_json("GET", "/live.json")["viewers"] == 0)
    with Viewer(server.address) as one, Viewer(server.address) as other:
        assert next(one)
        assert next(other)
        status, headers, content = server.ask("GET", "/live.mjpeg")
        assert status == 503
        assert headers["Retry-After"] == str(live_routes.RETRY_AFTER)
        assert "2 viewers watch already" in json.loads(content)["error"]
        assert next(one)
    wait(lambda: server.ask_json("GET", "/live.json")["viewers"] == 0)
    with Viewer(server.address) as again:
        assert next(again)


def test_without_a_source_there_is_no_live_view(engine):
    with RunningServer(engine) as server:
        for path in ("/live.mjpeg", "/live.json"):
            status, sentence = server.error("GET", path)
            assert (status, "--source" in sentence) == (404, True)


def test_the_end_of_the_service_ends_the_streams(engine, pictures, monkeypatch):
    monkeypatch.setattr(live, "PICTURES_A_SECOND", 10.0)
    with RunningServer(engine, str(pictures)) as server, Viewer(server.address) as viewer:
        assert next(viewer)
        server.end()
        # The rest that was on its way, and then the end.
        assert len(list(viewer)) < 50
        assert server.service.live.state()["state"] == "stopped"


def make_watched(engine: Engine) -> tuple[Live, live_routes._LiveView]:
    """A live view that gets its frames from the test, and its routes."""
    from types import SimpleNamespace

    from edge_effdet.runtime.detector import Detector

    detector = Detector(TwoThings(64), SPEC)
    view = Live(detector, "unused", LoadOptions())
    service = SimpleNamespace(engine=engine, detector=detector, live=view, stopping=threading.Event())
    return view, live_routes._LiveView(service)


def give(view: Live, number: int) -> None:
    frame = Frame(f"#{number}", picture(0), None, time.perf_counter())
    found = frame_of(number, picture(0)).detections
    view._note(FrameResult(frame, found, "", picture(number), 0.0))


def test_a_slow_viewer_gets_the_newest_frame_and_no_queue(engine):
    view, routes = make_watched(engine)
    query = ViewQuery(0.9)
    routes._frames.enter(query)

    async def watch() -> list[bytes]:
        parts = routes._parts(view, query)
        seen = [await anext(parts)]
        for burst in range(3):
            for number in range(4):
                give(view, (burst + number) % 4)
            # A viewer who is slow asks for the next part late.
            seen.append(await anext(parts))
        await parts.aclose()
        return seen

    boundary, *seen = anyio.run(watch)
    assert boundary == b"--frame\r\n"
    assert view.newest().number == 12
    assert routes._frames.drawn == 3
    for burst, part in enumerate(seen):
        jpeg = part.split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n--frame\r\n")
        assert jpeg == draw_view(replace(view.newest(), image=picture((burst + 3) % 4)), query, SPEC)


def test_the_delay_is_from_arrival_to_the_viewer(engine):
    view, routes = make_watched(engine)
    query = ViewQuery(0.9)
    routes._frames.enter(query)

    async def watch() -> None:
        parts = routes._parts(view, query)
        await anext(parts)
        give(view, 0)
        await anext(parts)
        give(view, 1)
        await anext(parts)
        # What it takes to send a part counts.
        await anyio.sleep(0.2)
        give(view, 2)
        await anext(parts)
        await parts.aclose()

    anyio.run(watch)
    assert view.state()["behind_ms"] >= 200
