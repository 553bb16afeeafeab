"""The routes of the service."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib import metadata
from typing import TYPE_CHECKING, Any

import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from edge_effdet.artifacts.reading import to_json
from edge_effdet.errors import DataError, EdgeEffDetError, MissingDependency, NotEnoughMemory, UsageError
from edge_effdet.runtime.detector import DetectOptions
from edge_effdet.runtime.sinks import detections_to_json
from edge_effdet.serving import live_routes, page_routes
from edge_effdet.serving.answers import error_answer, json_answer
from edge_effdet.serving.batching import Answer, Overloaded
from edge_effdet.serving.guard import Refusal
from edge_effdet.serving.metrics import CONTENT_TYPE
from edge_effdet.serving.protocol import HEADER_LENGTH, pack_detections, parse_infer_request, write_infer_response

if TYPE_CHECKING:
    from edge_effdet.serving.server import Service

logger = logging.getLogger("edge_effdet.serve")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

TENSOR_SUFFIX = "-tensor"
"""The model of this name takes the engine's own input and gives its own outputs."""

MOST_REQUESTS = 512
"""Requests at once, those that only send their body included."""

_LONG_JSON = 65_536
"""Bytes of a body from which on it is read in a thread, since reading it would keep other requests waiting."""

_BODIES = 4
"""Largest bodies whose bytes may lie in memory at once, by their number."""


def make_app(service: Service) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
    """The service as an ASGI application."""
    endpoints = _Endpoints(service)
    model, infer = "/v2/models/{name}", endpoints.infer
    routes = [
        Route("/detect", endpoints.detect, methods=["POST"]),
        Route("/session", endpoints.open_session, methods=["POST"]),
        Route("/engine", endpoints.engine),
        Route("/metrics", endpoints.metrics),
        Route("/v2", endpoints.server),
        Route("/v2/health/live", endpoints.live),
        Route("/v2/health/ready", endpoints.ready),
        *(
            route
            for path in (model, f"{model}/versions/1")
            for route in (
                Route(path, endpoints.model),
                Route(f"{path}/ready", endpoints.model_ready),
                Route(f"{path}/infer", infer, methods=["POST"]),
            )
        ),
        *page_routes.routes(service),
        *live_routes.routes(service),
    ]
    app = Starlette(routes=routes)
    app.router.redirect_slashes = False
    # Alone: Starlette's outermost layer would answer what nobody expected with a text of its own, and a client that has left too.
    app.middleware_stack = ExceptionMiddleware(
        app.router, handlers={HTTPException: endpoints.answer_http, EdgeEffDetError: endpoints.answer_error}
    )
    return _Outermost(app, service)


class _Outermost:
    """Guards, counts and logs each request, and answers where nothing else did."""

    def __init__(self, app: Starlette, service: Service) -> None:
        self._app, self._service = app, service
        self._paths = {getattr(route, "path", "") for route in app.routes}
        self._inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        service, begun, status = self._service, time.perf_counter(), 0
        method, path, client = scope["method"], scope["path"], (scope.get("client") or ("", 0))[0]

        async def noting(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        self._inside += 1
        try:
            service.guard.check(method, path, dict(scope["headers"]), client)
            if self._inside > MOST_REQUESTS:
                raise Refusal(
                    503, "requests", f"More than {MOST_REQUESTS} requests are open; try again.", {"Retry-After": "1"}
                )
            if method == "POST" and path != "/session" and service.batcher.full:
                # Here, since under load most requests end so, and what they cost is taken from the engine.
                raise service.batcher.refusal()
            await self._app(scope, receive, noting)
        except Refusal as refusal:
            service.metrics.refused.labels(refusal.reason).inc()
            await error_answer(refusal.status, str(refusal), refusal.headers)(scope, receive, noting)
        except Overloaded as overloaded:
            service.metrics.refused.labels("queue").inc()
            await error_answer(503, str(overloaded), {"Retry-After": str(overloaded.retry_after)})(
                scope, receive, noting
            )
        except ClientDisconnect:
            logger.debug("the client of %s left before its body was whole", ascii(path[:200]))
        except Exception:
            logger.exception("%s %s failed", method, ascii(path[:200]))
            if status:
                raise
            await error_answer(500, "The service failed at this request; its log has more.")(scope, receive, noting)
        finally:
            self._inside -= 1
            # Of any other path there could be a counter each, without an end.
            route = path if path in self._paths else "model" if path.startswith("/v2/models/") else "other"
            # 499 is the number of nginx for a client that left before the answer.
            service.note_request(method, path, route, status or 499, time.perf_counter() - begun, client)


class _Endpoints:
    """What answers each route."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._bytes = 0

    async def detect(self, request: Request) -> Response:
        """One picture to its detections."""
        options = self._options(request.query_params, _QUERY)
        async with self._body(request) as body:
            if not body:
                raise UsageError(
                    "The body is empty; send the content of an image file, as by curl --data-binary @picture.jpg."
                )
            if request.headers.get("content-type", "").startswith("multipart/"):
                raise Refusal(
                    415,
                    "type",
                    "The body is a form; send the content of the image file itself, as by curl --data-binary @picture.jpg.",
                )
            begun = time.perf_counter()
            (answer,) = await self._service.batcher.detect([body], options)
        if isinstance(answer, EdgeEffDetError):
            raise answer
        assert answer.detections is not None
        found = detections_to_json("", answer.detections, self._service.engine.spec)
        seconds = {**answer.seconds, "total": time.perf_counter() - begun}
        return json_answer(
            {
                "image": {"height": answer.size[0], "width": answer.size[1]},
                "detections": found["detections"],
                "milliseconds": {stage: round(1000 * value, 3) for stage, value in seconds.items()},
            }
        )

    async def infer(self, request: Request) -> Response:
        """A request of the Open Inference Protocol."""
        service, name = self._service, request.path_params["name"]
        tensor = self._is_tensor(name)
        async with self._body(request) as body:
            length = request.headers.get(HEADER_LENGTH)
            long = (int(length) if length is not None and length.isdecimal() else len(body)) > _LONG_JSON
            asked = (
                await run_in_threadpool(parse_infer_request, body, length)
                if long
                else parse_infer_request(body, length)
            )
            if tensor:
                outputs = _stack(await service.batcher.run(self._tensors(asked.inputs)))
            else:
                options = self._options(asked.parameters, "the parameters")
                answers = await service.batcher.detect(self._pictures(asked.inputs), options)
                outputs = pack_detections([each.detections for each in _all(answers) if each.detections is not None])
        content, headers = write_infer_response(asked, name, outputs)
        return Response(content, headers=dict(headers))

    async def model(self, request: Request) -> Response:
        """The metadata of a model: its tensors."""
        name = request.path_params["name"]
        service = self._service
        height, width = service.engine.spec.image_size
        if self._is_tensor(name):
            inputs = [("images", "UINT8", [-1, 3, height, width])]
            outputs = [
                (each.name, {"f": "FP32", "i": "INT32"}[each.dtype.kind], [-1, *each.shape[1:]])
                for each in service.detector.outputs
            ]
        else:
            inputs = [("IMAGE", "BYTES", [-1, 1])]
            outputs = [
                ("BOXES", "FP32", [-1, -1, 4]), ("SCORES", "FP32", [-1, -1]), ("CLASS_IDS", "INT32", [-1, -1]), ("COUNTS", "INT32", [-1, 1]),
            ]  # fmt: skip
        tensors = (
            [{"name": each, "datatype": datatype, "shape": shape} for each, datatype, shape in group]
            for group in (inputs, outputs)
        )
        inside, outside = tensors
        platform = f"edge_effdet_{service.engine.backend}"
        return json_answer(
            {"name": name, "versions": ["1"], "platform": platform, "inputs": inside, "outputs": outside}
        )

    async def model_ready(self, request: Request) -> Response:
        self._is_tensor(request.path_params["name"])
        return _health(self._service.is_ready())

    async def server(self, request: Request) -> Response:
        return json_answer(
            {"name": "edge_effdet", "version": metadata.version("edge-effdet"), "extensions": ["binary_tensor_data"]}
        )

    async def live(self, request: Request) -> Response:
        return _health(self._service.is_live())

    async def ready(self, request: Request) -> Response:
        return _health(self._service.is_ready())

    async def engine(self, request: Request) -> Response:
        return json_answer(describe_engine(self._service))

    async def metrics(self, request: Request) -> Response:
        return Response(await run_in_threadpool(self._service.metrics.text), media_type=CONTENT_TYPE)

    async def open_session(self, request: Request) -> Response:
        """Take the token from the page, and give the browser a cookie with it, which images need: they are asked for without other headers."""
        async with self._body(request, 4096) as body:
            token = body.decode("utf-8", "replace").strip()
        guard = self._service.guard
        if guard.token is None:
            raise HTTPException(404)
        if not guard.is_token(token):
            raise Refusal(
                401, "token", "This is not the token of the service; look into the file that it was started with."
            )
        answer = Response(status_code=204)
        answer.set_cookie(
            guard.cookie, token, httponly=True, samesite="strict", secure=request.scope["scheme"] == "https"
        )
        return answer

    def _options(self, given: Mapping[str, Any], what: str) -> DetectOptions:
        """The options of a request, which may change some of the service's. Clients of the protocol send parameters of its own along."""
        changed: dict[str, Any] = {}
        for name, value in given.items():
            if name not in _CHANGEABLE:
                if name in _OF_PROTOCOL and what != _QUERY:
                    continue
                raise UsageError(f"There is no {name[:80]!r} to set by {what}; there are {', '.join(_CHANGEABLE)}.")
            try:
                changed[name] = _CHANGEABLE[name](value)
            except (TypeError, ValueError, OverflowError) as error:
                raise UsageError(f"`{name}` {str(value)[:80]!r} is no such number; give one.") from error
        return replace(self._service.detector.options, **changed)

    @asynccontextmanager
    async def _body(self, request: Request, most: int = 0) -> AsyncIterator[bytes]:
        """The body of a request, whose bytes count as in memory until the block is over.

        Raises:
            Overloaded: the line is full, which is told before the body is read, or the bodies of others fill the memory that there is for them.
            Refusal: the body is too large, or does not arrive.
        """
        service, batcher = self._service, self._service.batcher
        limit = most or int(service.limits.max_body_mib * 2**20)
        if request.headers.get("content-encoding", "identity") != "identity":
            raise Refusal(
                415,
                "type",
                "The body is compressed, which is not taken, since pictures are compressed already; send it as it is.",
            )
        told = request.headers.get("content-length", "")
        if told.isdecimal() and int(told) > limit:
            raise _too_large(limit)
        taken, chunks = 0, []

        async def read() -> None:
            nonlocal taken
            async for chunk in request.stream():
                taken += len(chunk)
                self._bytes += len(chunk)
                if taken > limit:
                    raise _too_large(limit)
                if self._bytes > _BODIES * service.limits.max_body_mib * 2**20:
                    raise batcher.refusal()
                chunks.append(chunk)

        try:
            try:
                await asyncio.wait_for(read(), service.limits.body_seconds)
            except asyncio.TimeoutError:
                raise Refusal(
                    408,
                    "body",
                    f"The body did not arrive within {service.limits.body_seconds:g} s; send it faster, or a smaller picture.",
                    {"Connection": "close"},
                ) from None
            body = b"".join(chunks)
            chunks.clear()
            yield body
        finally:
            self._bytes -= taken

    def _is_tensor(self, name: str) -> bool:
        """Whether a model is the engine with its own tensors. Raises Refusal where there is no such model."""
        own = self._service.name
        if name not in (own, own + TENSOR_SUFFIX):
            raise Refusal(404, "model", f"There is no model {name[:80]!r}; there are {own} and {own}{TENSOR_SUFFIX}.")
        return name != own

    def _pictures(self, inputs: Mapping[str, np.ndarray]) -> list[bytes]:
        given = _only(inputs, "IMAGE")
        if (
            given.dtype != object
            or given.ndim not in (1, 2)
            or (given.ndim == 2 and given.shape[1] != 1)
            or not given.size
        ):
            raise UsageError("The input IMAGE is BYTES of the shape [B, 1], each element the content of an image file.")
        self._refuse_many(given.size)
        return given.ravel().tolist()

    def _tensors(self, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        given, size = _only(inputs, "images"), self._service.engine.spec.image_size
        if given.dtype != np.uint8 or given.ndim != 4 or given.shape[1:] != (3, *size) or not len(given):
            raise UsageError(f"The input images is UINT8 of the shape [B, 3, {size[0]}, {size[1]}], RGB from 0 to 255.")
        self._refuse_many(len(given))
        return given

    def _refuse_many(self, count: int) -> None:
        most = self._service.batcher.capacity
        if count > most:
            raise Refusal(
                413,
                "size",
                f"A request of {count} pictures is more than the {most} that the service takes on at once; send fewer.",
            )

    async def answer_http(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        path = ascii(request.scope["path"][:200])[1:-1]
        texts = {
            404: f"There is nothing at {path}; /docs lists what there is.",
            405: f"{path} does not take {request.method[:20]}; /docs says what it takes.",
        }
        return error_answer(error.status_code, texts.get(error.status_code, error.detail), error.headers)

    async def answer_error(self, request: Request, error: Exception) -> Response:
        if isinstance(error, NotEnoughMemory):
            return error_answer(503, str(error), {"Retry-After": "1"})
        if isinstance(error, DataError):
            self._service.metrics.unreadable.inc()
        status = (
            400 if isinstance(error, UsageError | DataError) else 501 if isinstance(error, MissingDependency) else 500
        )
        if status == 500:
            logger.error("%s: %s", ascii(request.scope["path"][:200]), error)
        return error_answer(status, str(error))


def describe_engine(service: Service) -> dict[str, Any]:
    """What runs and what is known of it, without the golden pictures."""
    engine, detector = service.engine, service.detector
    record = to_json(replace(engine.require_record(), golden=None))
    kept = (
        "backend",
        "backend_version",
        "precision",
        "target",
        "proof",
        "accuracy",
        "calibration",
        "gate",
        "latency",
        "parents",
        "built_at",
    )
    return {
        "name": service.name,
        "engine": engine.path.name,
        "sha256": engine.sha256,
        "classes": list(engine.spec.class_names),
        "image_size": list(engine.spec.image_size),
        "score_threshold": detector.options.score_threshold,
        "max_detections": detector.options.max_detections,
        "nms_kind": detector.options.nms_kind,
        "most_pictures": service.batcher.capacity,
        **{name: record[name] for name in kept},
    }


_QUERY = "a query"


def _whole(value: Any) -> int:
    if isinstance(value, bool | float):
        raise ValueError
    return int(value)


_CHANGEABLE: Mapping[str, Callable[[Any], Any]] = {"score_threshold": float, "max_detections": _whole}
"""The options that a request may change."""

_OF_PROTOCOL = frozenset({"binary_data_output", "sequence_id", "sequence_start", "sequence_end", "priority", "timeout"})


def _health(well: bool) -> Response:
    return Response(status_code=200 if well else 503)


def _too_large(limit: int) -> Refusal:
    # The connection stays open, and the rest of the body is read and dropped: a client that is still sending would not see an answer before a
    # connection that is closed.
    return Refusal(413, "size", f"The body is larger than {limit / 2**20:.3g} MiB; send a smaller picture.")


def _only(inputs: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    if list(inputs) != [name]:
        raise UsageError(
            f"The model has one input, {name}, and the request gives {', '.join(each[:40] for each in list(inputs)[:8])}."
        )
    return inputs[name]


def _all(answers: Sequence[Answer | EdgeEffDetError]) -> list[Answer]:
    """The answers to all pictures of a request. Raises the error of the first that has none, with its number."""
    found = []
    for number, each in enumerate(answers):
        if isinstance(each, BaseException):
            if len(answers) > 1 and isinstance(each, DataError):
                raise DataError(f"Picture {number} of the request: {each}")
            raise each
        found.append(each)
    return found


def _stack(answers: Sequence[Answer | EdgeEffDetError]) -> dict[str, np.ndarray]:
    outputs = [each.outputs or {} for each in _all(answers)]
    return {name: np.stack([each[name] for each in outputs]) for name in outputs[0]}
