"""The live view over HTTP: a picture that moves, with boxes as each viewer wants them, and how it goes."""

from __future__ import annotations

import io
import math
import threading
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import numpy as np
from PIL import Image
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from edge_effdet.artifacts import Detections, ModelSpec
from edge_effdet.errors import UsageError
from edge_effdet.runtime.drawing import draw_detections
from edge_effdet.runtime.sinks import detections_to_json
from edge_effdet.serving.answers import PRIVATE, error_answer, json_answer
from edge_effdet.serving.live import Live, LiveFrame

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from edge_effdet.serving.server import Service

MOST_VIEWERS = 8
"""People who watch at once; each may want other boxes, which are drawn for each frame."""

WIDEST = 1280
"""Pixels; wider frames are scaled down before boxes are drawn."""

QUALITY = 80
"""Of the JPEG pictures."""

RETRY_AFTER = 5
"""Seconds after which one who found no place may try again."""

_LOOK = 0.5
"""Seconds between two looks whether a stream has to end, while no frame comes."""

_BOUNDARY = b"--frame\r\n"


@dataclass(frozen=True, slots=True)
class ViewQuery:
    """Which boxes a viewer wants.

    Attributes:
        score_threshold: lower scores are left out.
        class_ids: the classes that are shown; None for all.
    """

    score_threshold: float
    class_ids: frozenset[int] | None = None

    def chosen(self, detections: Detections) -> Detections:
        """Those of the detections that the viewer wants."""
        kept = detections.scores >= self.score_threshold
        if self.class_ids is not None:
            kept &= np.isin(detections.class_ids, list(self.class_ids))
        return detections.select(kept)


def routes(service: Service) -> list[Route]:
    """The routes ``/live.mjpeg`` and ``/live.json``."""
    view = _LiveView(service)
    return [Route("/live.mjpeg", view.pictures), Route("/live.json", view.state)]


def parse_view_query(pairs: list[tuple[str, str]], spec: ModelSpec, usual_threshold: float) -> ViewQuery:
    """Read the query of a viewer: ``score_threshold`` at most once, and ``class`` once for each class that is wanted, or empty for none.

    ``again`` may have any value: a browser does not ask a second time for the address of an image that it has had.

    Args:
        pairs: names and values, in their order.
        spec: names the classes.
        usual_threshold: where the query names none.

    Raises:
        UsageError: a name is unknown, the threshold is none, or there is no such class.
    """
    unknown = [name for name, _ in pairs if name not in ("score_threshold", "class", "again")]
    if unknown:
        raise UsageError(f"There is no parameter {unknown[0][:40]!r}; give score_threshold and class.")
    thresholds = [value for name, value in pairs if name == "score_threshold"]
    threshold = usual_threshold
    if thresholds:
        try:
            threshold = float(thresholds[0])
        except ValueError:
            threshold = math.nan
        if len(thresholds) > 1 or not 0 <= threshold <= 1:
            raise UsageError(f"score_threshold={thresholds[-1][:40]} is not one number between 0 and 1; 0.3 is usual.")
    wanted = {value for name, value in pairs if name == "class"}
    if not wanted:
        return ViewQuery(threshold)
    wanted.discard("")
    strange = sorted(wanted - set(spec.class_names))
    if strange:
        raise UsageError(f"There is no class {strange[0][:80]!r}; GET /engine lists the classes.")
    return ViewQuery(threshold, frozenset(number for number, name in enumerate(spec.class_names) if name in wanted))


def draw_view(frame: LiveFrame, query: ViewQuery, spec: ModelSpec) -> bytes:
    """A frame as JPEG, at most ``WIDEST`` pixels wide, with the boxes that a viewer wants."""
    image, detections = frame.image, query.chosen(frame.detections)
    height, width = image.shape[:2]
    if width > WIDEST:
        size = WIDEST, max(1, round(height * WIDEST / width))
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0))
        scale = np.array([size[0] / width, size[1] / height] * 2, np.float32)
        detections = replace(detections, boxes=detections.boxes * scale)
    content = io.BytesIO()
    Image.fromarray(draw_detections(image, detections, spec)).save(content, format="JPEG", quality=QUALITY)
    return content.getvalue()


class DrawnFrames:
    """Draws each frame once for all viewers who want the same boxes. Any thread may call it.

    Attributes:
        drawn: how many pictures were made.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self.drawn = 0
        self._spec = spec
        self._lock = threading.Lock()
        self._made: dict[ViewQuery, _Drawn] = {}

    def enter(self, query: ViewQuery) -> None:
        """A viewer comes who wants these boxes."""
        with self._lock:
            self._made.setdefault(query, _Drawn()).viewers += 1

    def leave(self, query: ViewQuery) -> None:
        """A viewer who wanted these boxes has gone."""
        with self._lock:
            made = self._made[query]
            made.viewers -= 1
            if not made.viewers:
                del self._made[query]

    @property
    def viewers(self) -> int:
        """How many are there."""
        with self._lock:
            return sum(each.viewers for each in self._made.values())

    def picture(self, frame: LiveFrame, query: ViewQuery) -> tuple[LiveFrame, bytes]:
        """A frame as JPEG, or a newer one if somebody else has had that drawn already. The viewer must have entered."""
        with self._lock:
            made = self._made[query]
        # Who waits here wants the picture that is being drawn.
        with made.lock:
            if made.frame is None or made.frame.number < frame.number:
                made.jpeg, made.frame = draw_view(frame, query, self._spec), frame
                with self._lock:
                    self.drawn += 1
            return made.frame, made.jpeg


class _Drawn:
    """The newest picture for one query."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.viewers = 0
        self.frame: LiveFrame | None = None
        self.jpeg = b""


class _LiveView:
    """Answers the two routes."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._spec = service.engine.spec
        self._frames = DrawnFrames(self._spec)
        # Threads that wait for frames must not take the place of those that answer other requests.
        self._threads: anyio.CapacityLimiter | None = None

    async def pictures(self, request: Request) -> Response:
        """``GET /live.mjpeg``: multipart/x-mixed-replace, a JPEG picture a part."""
        live, query = self._service.live, self._query(request)
        if live is None:
            return _no_source()
        if isinstance(query, Response):
            return query
        headers = {**PRIVATE, "Content-Type": "multipart/x-mixed-replace; boundary=frame"}
        if request.method == "HEAD":
            return Response(headers=headers)
        if self._frames.viewers >= MOST_VIEWERS:
            return error_answer(
                503,
                f"{MOST_VIEWERS} viewers watch already, which is the most; try again in {RETRY_AFTER} s.",
                {"Retry-After": str(RETRY_AFTER)},
            )
        return _Stream(self._frames, query, self._parts(live, query), headers)

    async def state(self, request: Request) -> Response:
        """``GET /live.json``: how it goes, and what the newest frame shows of what the query wants."""
        live, query = self._service.live, self._query(request)
        if live is None:
            return _no_source()
        if isinstance(query, Response):
            return query
        frame = live.newest()
        data: dict[str, Any] = {**live.state(), "viewers": self._frames.viewers, "most_viewers": MOST_VIEWERS}
        data |= {"frame": None, "image": None, "detections": []}
        if frame is not None:
            height, width = frame.image.shape[:2]
            shown = detections_to_json(frame.name, query.chosen(frame.detections), self._spec)
            data |= {
                "number": frame.number,
                "frame": shown["image"],
                "image": {"height": height, "width": width},
                "detections": shown["detections"],
            }
        return json_answer(data)

    def _query(self, request: Request) -> ViewQuery | Response:
        usual = self._service.detector.options.score_threshold
        try:
            return parse_view_query(request.query_params.multi_items(), self._spec, usual)
        except UsageError as error:
            return error_answer(400, str(error))

    async def _parts(self, live: Live, query: ViewQuery) -> AsyncIterator[bytes]:
        """The parts of the answer: of the frames that come while one is being sent, only the newest becomes the next part."""
        if self._threads is None:
            self._threads = anyio.CapacityLimiter(MOST_VIEWERS)
        sent = 0
        # Browsers show a part when they see the boundary after it, so each part brings that along.
        yield _BOUNDARY
        while not self._service.stopping.is_set():
            found = await anyio.to_thread.run_sync(self._next, live, query, sent, limiter=self._threads)
            if found is None:
                continue
            frame, jpeg = found
            yield b"Content-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n%b\r\n%b" % (len(jpeg), jpeg, _BOUNDARY)
            # How old the first picture is says nothing of how fast this is.
            if sent:
                live.note_sent(frame)
            sent = frame.number

    def _next(self, live: Live, query: ViewQuery, sent: int) -> tuple[LiveFrame, bytes] | None:
        frame = live.wait_newer(sent, _LOOK)
        if frame is None:
            # A live view that was closed ends every wait at once.
            self._service.stopping.wait(_LOOK / 10)
            return None
        return self._frames.picture(frame, query)


class _Stream(StreamingResponse):
    """A stream that has a place among the viewers until it ends, however it ends."""

    def __init__(
        self, frames: DrawnFrames, query: ViewQuery, parts: AsyncIterator[bytes], headers: dict[str, str]
    ) -> None:
        super().__init__(parts, headers=headers)
        self._frames, self._query = frames, query

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._frames.enter(self._query)
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._frames.leave(self._query)


def _no_source() -> Response:
    return error_answer(
        404, "This service was started without a source, so there is no live view; start it with --source."
    )
