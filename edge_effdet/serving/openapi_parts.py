"""The parts of the OpenAPI document that its operations refer to: parameters, answers that are errors, and the types of JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_effdet.serving.server import Service


def describe_parameters(service: Service) -> dict[str, Any]:
    """The parameters of queries, by the names that ``reference`` takes."""
    options = service.detector.options
    return {
        "score_threshold": {
            "name": "score_threshold",
            "in": "query",
            "description": "Lower scores are left out.",
            "schema": {"type": "number", "minimum": 0, "maximum": 1, "default": options.score_threshold},
        },
        "max_detections": {
            "name": "max_detections",
            "in": "query",
            "description": "At most so many, those with the highest scores.",
            "schema": {"type": "integer", "minimum": 1, "default": options.max_detections},
        },
        "again": {
            "name": "again",
            "in": "query",
            "description": "Any value: a browser does not ask a second time for the address of an image that it has had.",
            "schema": {"type": "string"},
        },
        "class": {
            "name": "class",
            "in": "query",
            "description": "A class that is shown; once for each. Without it all are shown, and an empty name shows none.",
            "style": "form",
            "explode": True,
            "schema": {"type": "array", "items": {"type": "string", "enum": ["", *service.engine.spec.class_names]}},
        },
    }


def describe_responses(service: Service) -> dict[str, Any]:
    """The answers that are errors, with the limits of the service."""
    wait = {
        "Retry-After": {"description": "Seconds after which to try again.", "schema": {"type": "integer", "minimum": 1}}
    }
    limits = service.limits
    described: dict[str, tuple[str, str, dict[str, Any]]] = {
        "400": (
            "The request makes no sense, or the picture cannot be decoded.",
            "The body is empty; send the content of an image file, as by curl --data-binary @picture.jpg.",
            {},
        ),
        "401": (
            "The token is missing or wrong.",
            "This service wants its token; send it as Authorization: Bearer, or enter it in the page.",
            {},
        ),
        "404": ("There is no such thing here: no source, no token, no model.", "There is nothing at /live.", {}),
        "408": (
            f"The body did not arrive within {limits.body_seconds:g} s.",
            f"The body did not arrive within {limits.body_seconds:g} s; send it faster, or a smaller picture.",
            {},
        ),
        "413": (
            f"The body has more than {limits.max_body_mib:g} MiB, or the picture more than {limits.max_megapixels:g} million pixels.",
            f"The body is larger than {limits.max_body_mib:g} MiB; send a smaller picture.",
            {},
        ),
        "415": (
            "The body is a form and not a picture.",
            "The body is a form; send the content of the image file itself, as by curl --data-binary @picture.jpg.",
            {},
        ),
        "429": (
            "This client sends more requests a second than it may.",
            "You sent more than 10 requests a second; try again in 1 s.",
            wait,
        ),
        "501": (
            "The picture needs a package that is not installed where the service runs.",
            "pydicom is not installed, which is needed to read DICOM: run pip install 'edge-effdet[dicom]'.",
            {},
        ),
        "503": (
            "The service has as much to do as it takes on.",
            "The service has as much to do as it takes on; try again in 1 s.",
            wait,
        ),
    }
    return {
        _response_name(status): {
            "description": text,
            **({"headers": headers} if headers else {}),
            "content": {"application/json": {"schema": reference("schemas", "Error"), "example": {"error": example}}},
        }
        for status, (text, example, headers) in described.items()
    }


def describe_security(service: Service) -> dict[str, Any]:
    """How a client shows the token."""
    return {
        "bearer": {"type": "http", "scheme": "bearer", "description": "The token of the service."},
        "cookie": {
            "type": "apiKey",
            "in": "cookie",
            "name": service.guard.cookie,
            "description": "Set by POST /session.",
        },
    }


def describe_schemas(service: Service) -> dict[str, Any]:
    """The types of JSON."""
    number, text, whole = {"type": "number"}, {"type": "string"}, {"type": "integer"}
    maybe = {"type": ["number", "null"]}
    size = _object({"height": whole, "width": whole})
    tensor = _object({"name": text, "datatype": text, "shape": _list(whole)})
    record = {"type": ["object", "null"]}
    names = list(service.engine.spec.class_names)
    return {
        "Error": _object({"error": {**text, "description": "One sentence: what happened, and what to do."}}),
        "Detection": _object(
            {
                "box": {
                    **_list(number),
                    "minItems": 4,
                    "maxItems": 4,
                    "description": "x_min, y_min, x_max, y_max in pixels of the picture.",
                },
                "score": {**number, "minimum": 0, "maximum": 1},
                "class": {**text, "enum": names} if len(set(names)) == len(names) else text,
                "class_id": {**whole, "minimum": 0, "description": "Counts the classes of /engine from 0."},
                "category_id": {**whole, "description": "The class as the data set numbers it."},
                "track_id": {
                    **whole,
                    "description": "The same for an object from frame to frame, where the service was started to track.",
                },
            },
            optional=("track_id",),
        ),
        "Found": _object(
            {
                "image": {**size, "description": "Of the upright picture."},
                "detections": _list(reference("schemas", "Detection")),
                "milliseconds": _object(dict.fromkeys(("queue", "decode", "infer", "suppress", "total"), number)),
            }
        ),
        "Live": _object(
            {
                "source": {**text, "description": "What is watched, without a password."},
                "state": {**text, "enum": ["starting", "running", "waiting", "failed", "stopped"]},
                "problem": {**text, "description": "A sentence; empty where there is none."},
                "rate": {**number, "description": "Frames a second, over the last seconds."},
                "latency_ms": {**maybe, "description": "Median from the arrival of a frame to its boxes."},
                "behind_ms": {
                    **maybe,
                    "description": "Median from the arrival of a frame until it has gone to a viewer.",
                },
                "behind_ms_p90": {**maybe, "description": "Nine of ten frames have gone to a viewer sooner."},
                "dropped": {**whole, "description": "Frames that were too old when their turn came."},
                "skipped": {**whole, "description": "Pictures that could not be decoded."},
                "reopened": {**whole, "description": "How often the source was opened again."},
                "number": {**whole, "description": "Of the newest frame, from 1; 0 before the first."},
                "age_ms": {**maybe, "description": "Since the newest frame arrived."},
                "viewers": whole,
                "most_viewers": whole,
                "frame": {"type": ["string", "null"], "description": "The name of the newest frame."},
                "image": {"anyOf": [size, {"type": "null"}]},
                "detections": _list(reference("schemas", "Detection")),
            }
        ),
        "Engine": {
            **_object(
                {
                    "name": {**text, "description": "Of the model in the protocol."},
                    "engine": {**text, "description": "The name of the file."},
                    "sha256": {**text, "pattern": "^[0-9a-f]{64}$"},
                    "classes": _list(text),
                    "image_size": {
                        **_list(whole),
                        "minItems": 2,
                        "maxItems": 2,
                        "description": "Height and width of the engine's input.",
                    },
                    "score_threshold": number,
                    "max_detections": whole,
                    "nms_kind": {**text, "description": "What becomes of boxes that overlap."},
                    "backend": text,
                    "precision": {**text, "enum": ["fp32", "fp16", "int8"]},
                    "proof": {**record, "description": "In which precision the convolutions run."},
                    "accuracy": {**record, "description": "AP before and after, 0 to 1."},
                    "calibration": record,
                    "gate": record,
                    "built_at": text,
                }
            ),
            "description": "More of it is described in docs/engine-record.schema.json of the project.",
        },
        "Server": _object({"name": text, "version": text, "extensions": _list(text)}),
        "Model": _object(
            {
                "name": text,
                "versions": _list(text),
                "platform": text,
                "inputs": _list(reference("schemas", "TensorMetadata")),
                "outputs": _list(reference("schemas", "TensorMetadata")),
            }
        ),
        "TensorMetadata": tensor,
        "Tensor": _object(
            {
                **tensor["properties"],
                "parameters": {
                    "type": "object",
                    "description": "binary_data_size, where the data follow as bytes.",
                },
                "data": {"type": "array", "description": "Numbers, or base64 for BYTES."},
            },
            optional=("parameters", "data"),
        ),
        "InferRequest": _object(
            {
                "id": text,
                "parameters": {"type": "object"},
                "inputs": _list(reference("schemas", "Tensor")),
                "outputs": _list(_object({"name": text, "parameters": {"type": "object"}}, optional=("parameters",))),
            },
            optional=("id", "parameters", "outputs"),
        ),
        "InferResponse": _object(
            {
                "model_name": text,
                "model_version": text,
                "id": text,
                "outputs": _list(reference("schemas", "Tensor")),
            },
            optional=("id",),
        ),
    }


def example_found(service: Service) -> dict[str, Any]:
    """What ``/detect`` may answer."""
    spec = service.engine.spec
    return {
        "image": {"height": 480, "width": 640},
        "detections": [
            {
                "box": [71.27, 104.9, 183.02, 216.44],
                "score": 0.8712,
                "class": spec.class_names[0],
                "class_id": 0,
                "category_id": spec.category_ids[0],
            }
        ],
        "milliseconds": {"queue": 0.21, "decode": 3.94, "infer": 21.05, "suppress": 0.42, "total": 26.31},
    }


def error_answers(*statuses: str) -> dict[str, Any]:
    """Answers of an operation that are errors, by status."""
    return {status: reference("responses", _response_name(status)) for status in statuses}


def _response_name(status: str) -> str:
    return {
        "400": "BadRequest",
        "401": "TokenWanted",
        "404": "NothingHere",
        "408": "TooSlow",
        "413": "TooLarge",
        "415": "WrongType",
        "429": "TooManyRequests",
        "501": "PackageMissing",
        "503": "Busy",
    }[status]


def reference(kind: str, name: str) -> dict[str, Any]:
    """A reference to a part: ``kind`` is schemas, responses or parameters."""
    return {"$ref": f"#/components/{kind}/{name}"}


def _object(properties: Mapping[str, Any], optional: Sequence[str] = ()) -> dict[str, Any]:
    return {
        "type": "object",
        "required": [name for name in properties if name not in optional],
        "properties": dict(properties),
    }


def _list(items: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": dict(items)}
