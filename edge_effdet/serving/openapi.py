"""The description of the service in the form of OpenAPI 3.1 (https://spec.openapis.org/oas/v3.1.0), for programs and for the page ``/docs``."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from importlib import metadata
from typing import TYPE_CHECKING, Any

from edge_effdet.serving.live import LOWEST_SCORE
from edge_effdet.serving.live_routes import MOST_VIEWERS
from edge_effdet.serving.openapi_parts import (
    describe_parameters,
    describe_responses,
    describe_schemas,
    describe_security,
    error_answers,
    example_found,
    reference,
)

if TYPE_CHECKING:
    from edge_effdet.serving.server import Service

BASE = "http://127.0.0.1:8080"
"""The address in the examples, for which the page ``/docs`` puts its own."""


def openapi_document(service: Service) -> dict[str, Any]:
    """What the service answers, as an OpenAPI document.

    Args:
        service: gives the model's name, its classes, the limits, and whether a token is asked for.

    Returns:
        The document. An operation's ``x-codeSamples`` holds an example for a terminal, with ``BASE`` as the address.
    """
    token = service.options.token_file is not None
    open_to_all: dict[str, Any] = {"security": []} if token else {}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"edge-effdet: {service.name}",
            "version": metadata.version("edge-effdet"),
            "description": _introduction(service, token),
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": "/"}],
        "tags": [
            {"name": "Pictures", "description": "One picture in, its boxes out."},
            {"name": "Live", "description": "The source that the service watches, where it was started with one."},
            {
                "name": "Protocol",
                "description": "The Open Inference Protocol, version 2, for clients of KServe and of Triton.",
            },
            {"name": "Service", "description": "What runs, how it goes, and who is let in."},
        ],
        **({"security": [{"bearer": []}, {"cookie": []}]} if token else {}),
        "paths": {
            "/detect": {"post": _detect(service)},
            "/live.mjpeg": {"get": _live_pictures(service)},
            "/live.json": {"get": _live_state(service)},
            **_protocol(service, open_to_all),
            "/engine": {"get": _engine()},
            "/metrics": {"get": _metrics()},
            "/session": {"post": {**_session(), **open_to_all}},
            "/openapi.json": {"get": {**_own_description(), **open_to_all}},
        },
        "components": {
            "schemas": describe_schemas(service),
            "responses": describe_responses(service),
            "parameters": describe_parameters(service),
            **({"securitySchemes": describe_security(service)} if token else {}),
        },
    }


def _introduction(service: Service, token: bool) -> str:
    text = (
        f"Finds objects in pictures with the engine {service.engine.path.name}. An error is a JSON object with one sentence under error. "
        "Besides the answers that stand at each path, every path may answer 403 to a page of another site, 405 to another method, 421 where the service is "
        "called by a name that it does not go by, and 500 where it failed."
    )
    if token:
        text += " This service asks for its token: send it as Authorization: Bearer, or post it to /session, which sets a cookie."
    return text


def _detect(service: Service) -> dict[str, Any]:
    return {
        "tags": ["Pictures"],
        "operationId": "detect",
        "summary": "Find objects in a picture",
        "description": (
            "The body is the content of one image file: JPEG, PNG, WebP, TIFF and what else the service reads. It is turned upright by its EXIF orientation, "
            "and boxes are in pixels of the upright picture."
        ),
        "parameters": [reference("parameters", "score_threshold"), reference("parameters", "max_detections")],
        "requestBody": {
            "required": True,
            "content": {
                name: {"schema": {}}
                for name in ("application/octet-stream", "image/jpeg", "image/png", "image/webp", "image/tiff")
            },
        },
        "responses": {
            "200": {
                "description": "What was found, the highest score first.",
                "content": {
                    "application/json": {"schema": reference("schemas", "Found"), "example": example_found(service)}
                },
            },
            **error_answers("400", "401", "408", "413", "415", "429", "501", "503"),
        },
        **_sample(f"curl --data-binary @picture.jpg '{BASE}/detect?score_threshold=0.3'"),
    }


def _live_pictures(service: Service) -> dict[str, Any]:
    name = service.engine.spec.class_names[0]
    return {
        "tags": ["Live"],
        "operationId": "watch",
        "summary": "Watch the source with its boxes",
        "description": (
            "A stream of JPEG pictures, multipart/x-mixed-replace, as an img element shows it. Boxes are drawn as each viewer wants them. Who takes pictures more "
            f"slowly than they come gets fewer, and always the newest. At most {MOST_VIEWERS} viewers watch at once. Detections with a score below {LOWEST_SCORE} are "
            "not kept."
        ),
        "parameters": [*(reference("parameters", name) for name in ("score_threshold", "class", "again"))],
        "responses": {
            "200": {
                "description": "Pictures until the client leaves or the service ends.",
                "content": {"multipart/x-mixed-replace": {"schema": {}}},
            },
            **error_answers("400", "401", "404", "503"),
        },
        **_sample(
            f"curl --get --no-buffer --output live.mjpeg --max-time 10 '{BASE}/live.mjpeg' \\\n"
            f"  --data score_threshold=0.5 --data-urlencode {shlex.quote(f'class={name}')}"
        ),
    }


def _live_state(service: Service) -> dict[str, Any]:
    return {
        "tags": ["Live"],
        "operationId": "live",
        "summary": "How the live view goes, and what the newest frame shows",
        "parameters": [reference("parameters", "score_threshold"), reference("parameters", "class")],
        "responses": {
            "200": {
                "description": "The state now.",
                "content": {"application/json": {"schema": reference("schemas", "Live")}},
            },
            **error_answers("400", "401", "404"),
        },
        **_sample(f"curl '{BASE}/live.json?score_threshold=0.5'"),
    }


def _engine() -> dict[str, Any]:
    return {
        "tags": ["Service"],
        "operationId": "engine",
        "summary": "Which engine runs, and its proof",
        "description": "The record that was written when the engine was built: precision and its proof, accuracy before and after, calibration, gate.",
        "responses": {
            "200": {
                "description": "The engine.",
                "content": {"application/json": {"schema": reference("schemas", "Engine")}},
            },
            **error_answers("401"),
        },
        **_sample(f"curl '{BASE}/engine'"),
    }


def _metrics() -> dict[str, Any]:
    return {
        "tags": ["Service"],
        "operationId": "metrics",
        "summary": "Counters for Prometheus",
        "responses": {
            "200": {
                "description": "Prometheus' text format, version 0.0.4.",
                "content": {"text/plain": {"schema": {"type": "string"}}},
            },
            **error_answers("401"),
        },
        **_sample(f"curl '{BASE}/metrics'"),
    }


def _session() -> dict[str, Any]:
    return {
        "tags": ["Service"],
        "operationId": "session",
        "summary": "Let a browser in",
        "description": "The body is the token. The answer sets a cookie that scripts cannot read, which the page then sends with its pictures.",
        "requestBody": {"required": True, "content": {"text/plain": {"schema": {"type": "string", "maxLength": 4096}}}},
        "responses": {"204": {"description": "The cookie is set."}, **error_answers("401", "404", "408", "413", "429")},
        **_sample(f"curl --data-binary @token.txt --cookie-jar cookies.txt '{BASE}/session'"),
    }


def _own_description() -> dict[str, Any]:
    return {
        "tags": ["Service"],
        "operationId": "openapi",
        "summary": "This description",
        "responses": {
            "200": {
                "description": "An OpenAPI document.",
                "content": {"application/json": {"schema": {"type": "object"}}},
            }
        },
        **_sample(f"curl '{BASE}/openapi.json'"),
    }


def _protocol(service: Service, open_to_all: Mapping[str, Any]) -> dict[str, Any]:
    model = f"/v2/models/{service.name}"
    return {
        "/v2": {
            "get": {
                "tags": ["Protocol"],
                "operationId": "server",
                "summary": "The metadata of the server",
                "responses": {
                    "200": {
                        "description": "Name, version and extensions.",
                        "content": {"application/json": {"schema": reference("schemas", "Server")}},
                    },
                    **error_answers("401"),
                },
                **_sample(f"curl '{BASE}/v2'"),
            }
        },
        "/v2/health/live": {
            "get": {**_health("/v2/health/live", "healthLive", "Whether the service works"), **open_to_all}
        },
        "/v2/health/ready": {
            "get": {
                **_health("/v2/health/ready", "healthReady", "Whether the service takes on pictures"),
                **open_to_all,
            }
        },
        model: {
            "get": {
                "tags": ["Protocol"],
                "operationId": "model",
                "summary": "The metadata of the model: its tensors",
                "description": f"The model {service.name}-tensor takes the engine's own input tensor and gives its own outputs, before suppression.",
                "responses": {
                    "200": {
                        "description": "Inputs and outputs.",
                        "content": {"application/json": {"schema": reference("schemas", "Model")}},
                    },
                    **error_answers("401"),
                },
                **_sample(f"curl '{BASE}{model}'"),
            }
        },
        f"{model}/ready": {
            "get": _health(f"{model}/ready", "modelReady", "Whether the model takes on pictures", error_answers("401"))
        },
        f"{model}/infer": {"post": _infer(f"{model}/infer")},
    }


def _health(path: str, operation: str, summary: str, errors: Mapping[str, Any] | None = None) -> dict[str, Any]:
    return {
        "tags": ["Protocol"],
        "operationId": operation,
        "summary": summary,
        "responses": {"200": {"description": "Yes."}, "503": {"description": "No."}, **(errors or {})},
        **_sample(f"curl --fail '{BASE}{path}'"),
    }


def _infer(path: str) -> dict[str, Any]:
    request = {
        "inputs": [{"name": "IMAGE", "datatype": "BYTES", "shape": [1, 1], "data": ["/9j/4AAQSkZJRg=="]}],
        "outputs": [{"name": "BOXES"}, {"name": "COUNTS"}],
    }
    return {
        "tags": ["Protocol"],
        "operationId": "infer",
        "summary": "Find objects in one or several pictures",
        "description": (
            "In JSON a picture is the base64 of an image file. With the extension for binary tensors the body begins with the JSON, whose length the header "
            "Inference-Header-Content-Length tells, and each picture follows as four bytes of its length, little endian, and its content. One picture that "
            "cannot be decoded fails its whole request. Set score_threshold and max_detections in parameters."
        ),
        "parameters": [
            {
                "name": "Inference-Header-Content-Length",
                "in": "header",
                "required": False,
                "description": "Bytes of the JSON in front of binary tensors.",
                "schema": {"type": "integer", "minimum": 1},
            }
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": reference("schemas", "InferRequest"), "example": request},
                "application/octet-stream": {"schema": {}},
            },
        },
        "responses": {
            "200": {
                "description": (
                    "BOXES FP32 [B, N, 4], xyxy in pixels of each original; SCORES FP32 [B, N]; CLASS_IDS INT32 [B, N]; COUNTS INT32 [B, 1]. N is the largest count of the "
                    "request; behind a picture's own detections stand boxes and scores of 0 with the class id -1."
                ),
                "content": {
                    "application/json": {"schema": reference("schemas", "InferResponse")},
                    "application/octet-stream": {"schema": {}},
                },
            },
            **error_answers("400", "401", "408", "413", "429", "501", "503"),
        },
        **_sample(
            "base64 --wrap=0 picture.jpg \\\n"
            '  | jq --raw-input \'{inputs: [{name: "IMAGE", datatype: "BYTES", shape: [1, 1], data: [.]}]}\' \\\n'
            f"  | curl --header 'Content-Type: application/json' --data @- '{BASE}{path}'"
        ),
    }


def _sample(command: str) -> dict[str, Any]:
    return {"x-codeSamples": [{"lang": "Shell", "source": command}]}
