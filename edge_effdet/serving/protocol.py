"""Requests and answers of the Open Inference Protocol, version 2, over HTTP: JSON, and the extension for binary tensors.

The protocol is KServe's (https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol), and the extension is that of Triton
Inference Server: the body begins with the JSON, whose length the header ``Inference-Header-Content-Length`` tells, and the tensors follow.
"""

from __future__ import annotations

import base64
import binascii
import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edge_effdet.artifacts import Detections, json_text
from edge_effdet.errors import UsageError

HEADER_LENGTH = "Inference-Header-Content-Length"

DTYPES: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    **{f"UINT{bits}": np.dtype(f"<u{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"INT{bits}": np.dtype(f"<i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"FP{bits}": np.dtype(f"<f{bits // 8}") for bits in (16, 32, 64)},
}
"""The protocol's names of the types that have a fixed size; BYTES stands beside them."""

MOST_ELEMENTS = 4096
"""Elements of a BYTES tensor."""

_MOST_VALUES = 4_000_000
"""Commas and brackets of the JSON, each of which may be an object in memory of many times its length."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class InferRequest:
    """A request to infer.

    Attributes:
        id: what the client calls it, given back in the answer; None where it gave nothing.
        inputs: by name; an array of a type in ``DTYPES``, or for BYTES an array of ``bytes`` objects, of the shape that was told.
        outputs: the outputs that are wanted, and whether each as binary data; empty for all.
        binary: whether outputs that ``outputs`` does not name are wanted as binary data.
        parameters: of the request.
    """

    id: str | None
    inputs: Mapping[str, np.ndarray]
    outputs: Mapping[str, bool]
    binary: bool
    parameters: Mapping[str, Any]


def parse_infer_request(body: bytes, header_length: str | None) -> InferRequest:
    """Read the body of a request.

    Args:
        body: all of it.
        header_length: the header ``HEADER_LENGTH``; None where the body is JSON alone.

    Raises:
        UsageError: the body is not such a request.
    """
    end = len(body)
    if header_length is not None:
        if not header_length.isdecimal() or not 0 < int(header_length) <= len(body):
            raise UsageError(
                f"The header {HEADER_LENGTH} says {header_length[:20]!r} and the body has {len(body)} bytes; give the length of the JSON in front."
            )
        end = int(header_length)
    if sum(body.count(each, 0, end) for each in (b",", b"[", b"{")) > _MOST_VALUES:
        raise UsageError("The JSON has more values than are taken; send large tensors as binary data.")
    try:
        raw = json.loads(body[:end])
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"The body is not JSON ({type(error).__name__}); send an object with `inputs`, and tell the length of the JSON in {HEADER_LENGTH} where binary "
            "tensors follow."
        ) from error
    if not isinstance(raw, dict):
        raise UsageError("The body is JSON but no object; send an object with `inputs`.")
    entries = _objects(raw, "inputs")
    if not entries:
        raise UsageError("The request has no `inputs`; give a list of tensors.")
    inputs: dict[str, np.ndarray] = {}
    start = end
    for entry in entries:
        name = entry.get("name")
        if not isinstance(name, str) or name in inputs:
            raise UsageError("Each of `inputs` needs a name of its own; give name, shape, datatype and data.")
        size = _parameters(entry).get("binary_data_size")
        if size is None:
            inputs[name] = _from_json(name, entry)
            continue
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(body) - start:
            raise UsageError(
                f"The input {name} tells a binary_data_size that the body does not have after the tensors before it; give its length in bytes."
            )
        inputs[name] = _from_binary(name, entry, body[start : start + size])
        start += size
    if start != len(body):
        raise UsageError(
            f"The body has {len(body) - start} bytes more than its tensors; give binary_data_size of each."
        )
    outputs: dict[str, bool] = {}
    parameters = _parameters(raw)
    binary = parameters.get("binary_data_output") is True
    for entry in _objects(raw, "outputs"):
        name = entry.get("name")
        if not isinstance(name, str):
            raise UsageError("Each of `outputs` needs a name.")
        outputs[name] = _parameters(entry).get("binary_data", binary) is True
    given = raw.get("id")
    return InferRequest(given if isinstance(given, str) else None, inputs, outputs, binary, parameters)


def write_infer_response(
    request: InferRequest, model: str, outputs: Mapping[str, np.ndarray]
) -> tuple[bytes, Mapping[str, str]]:
    """The answer to a request.

    Args:
        request: says which outputs are wanted and how.
        model: the model's name.
        outputs: all outputs, of types in ``DTYPES``.

    Returns:
        The body and its headers.

    Raises:
        UsageError: an output is wanted that there is not.
    """
    unknown = [name for name in request.outputs if name not in outputs]
    if unknown:
        raise UsageError(f"The model has no output {unknown[0][:80]!r}; it has {', '.join(outputs)}.")
    described, blobs = [], []
    for name in request.outputs or outputs:
        array = np.ascontiguousarray(outputs[name])
        entry: dict[str, Any] = {"name": name, "datatype": _NAMES[array.dtype], "shape": list(array.shape)}
        if request.outputs.get(name, request.binary):
            blobs.append(array.tobytes())
            entry["parameters"] = {"binary_data_size": len(blobs[-1])}
        else:
            entry["data"] = array.ravel().tolist()
        described.append(entry)
    answer: dict[str, Any] = {"model_name": model, "model_version": "1", "outputs": described}
    if request.id is not None:
        answer["id"] = request.id
    head = json_text(answer, ascii_only=True).encode()
    if not blobs:
        return head, {"Content-Type": "application/json"}
    return b"".join([head, *blobs]), {"Content-Type": "application/octet-stream", HEADER_LENGTH: str(len(head))}


def pack_detections(found: Sequence[Detections]) -> dict[str, np.ndarray]:
    """Detections of the pictures of one request as tensors.

    Returns:
        ``BOXES`` float32 [B, N, 4], xyxy in pixels of each original; ``SCORES`` float32 [B, N]; ``CLASS_IDS`` int32 [B, N]; ``COUNTS`` int32 [B, 1].
        N is the largest count; after a picture's own detections follow boxes and scores of 0 with the class id -1.
    """
    most = max((len(each.scores) for each in found), default=0)
    boxes = np.zeros((len(found), most, 4), np.float32)
    scores = np.zeros((len(found), most), np.float32)
    class_ids = np.full((len(found), most), -1, np.int32)
    for row, each in enumerate(found):
        count = len(each.scores)
        boxes[row, :count], scores[row, :count], class_ids[row, :count] = each.boxes, each.scores, each.class_ids
    counts = np.array([[len(each.scores)] for each in found], np.int32)
    return {"BOXES": boxes, "SCORES": scores, "CLASS_IDS": class_ids, "COUNTS": counts}


def _objects(raw: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    found = raw.get(name, [])
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise UsageError(f"`{name}` is not a list of objects; give one object for each tensor.")
    return found


def _parameters(raw: Mapping[str, Any]) -> dict[str, Any]:
    found = raw.get("parameters") or {}
    if not isinstance(found, dict):
        raise UsageError("The parameters are no object; give names and values.")
    return found


def _shape(name: str, entry: Mapping[str, Any]) -> tuple[int, ...]:
    shape = entry.get("shape")
    if not isinstance(shape, list) or not all(
        isinstance(each, int) and not isinstance(each, bool) and 0 <= each < 2**31 for each in shape
    ):
        raise UsageError(f"The input {name[:80]} has no shape; give a list of whole numbers.")
    if len(shape) > 8:
        raise UsageError(f"The input {name[:80]} has {len(shape)} axes, and more than 8 are refused.")
    return tuple(shape)


def _datatype(name: str, entry: Mapping[str, Any]) -> str:
    datatype = entry.get("datatype")
    if not isinstance(datatype, str) or (datatype != "BYTES" and datatype not in DTYPES):
        raise UsageError(
            f"The input {name[:80]} has no datatype of the protocol; give one of BYTES, {', '.join(DTYPES)}."
        )
    return datatype


def _from_json(name: str, entry: Mapping[str, Any]) -> np.ndarray:
    shape, datatype = _shape(name, entry), _datatype(name, entry)
    data = entry.get("data")
    if not isinstance(data, list):
        raise UsageError(f"The input {name[:80]} has no data; give a list, or binary_data_size.")
    if datatype == "BYTES":
        return _as_objects(name, [_from_base64(name, each) for each in _flat(data)], shape)
    dtype = DTYPES[datatype]
    try:
        array = np.asarray(data)
        # An empty list has no type of its own.
        if array.size and array.dtype.kind not in {"b": "b", "f": "iuf"}.get(dtype.kind, "iu"):
            raise ValueError(f"its values are of the type {array.dtype}")
        if dtype.kind in "iu" and array.size:
            info = np.iinfo(dtype)
            if array.min() < info.min or array.max() > info.max:
                raise ValueError("a value does not fit")
        array = array.astype(dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise UsageError(
            f"The data of the input {name[:80]} are no {datatype} tensor ({error}); send numbers."
        ) from error
    return _reshaped(name, array, shape)


def _from_binary(name: str, entry: Mapping[str, Any], blob: bytes) -> np.ndarray:
    shape, datatype = _shape(name, entry), _datatype(name, entry)
    if "data" in entry:
        raise UsageError(f"The input {name[:80]} has both data and binary_data_size; give one.")
    if datatype != "BYTES":
        dtype = DTYPES[datatype]
        if len(blob) % dtype.itemsize:
            raise UsageError(f"The input {name[:80]} has {len(blob)} bytes, which is no number of {datatype} values.")
        return _reshaped(name, np.frombuffer(blob, dtype), shape)
    # Each element is its length as four bytes, little endian, and then its content.
    elements, start = [], 0
    while start < len(blob):
        if len(elements) == MOST_ELEMENTS:
            raise UsageError(f"The input {name[:80]} has more than {MOST_ELEMENTS} elements; send fewer.")
        if start + 4 > len(blob):
            raise UsageError(
                f"The input {name[:80]} ends inside the length of an element; write four bytes in front of each."
            )
        (length,) = struct.unpack_from("<I", blob, start)
        start += 4
        if length > len(blob) - start:
            raise UsageError(
                f"An element of the input {name[:80]} tells more bytes than follow; write its length as four bytes, little endian."
            )
        elements.append(blob[start : start + length])
        start += length
    return _as_objects(name, elements, shape)


def _flat(data: Any) -> list[Any]:
    """The elements of nested lists, in their order."""
    found: list[Any] = []
    rest = [iter(data)]
    while rest:
        for each in rest[-1]:
            if isinstance(each, list):
                rest.append(iter(each))
                break
            found.append(each)
        else:
            rest.pop()
    return found


def _from_base64(name: str, text: Any) -> bytes:
    try:
        if not isinstance(text, str):
            raise ValueError
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UsageError(
            f"An element of the input {name[:80]} is not base64, in which bytes stand in JSON; encode it, or send it as binary data."
        ) from error


def _as_objects(name: str, elements: Sequence[bytes], shape: tuple[int, ...]) -> np.ndarray:
    array = np.empty(len(elements), object)
    array[:] = elements
    return _reshaped(name, array, shape)


def _reshaped(name: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    if array.size != math.prod(shape):
        raise UsageError(
            f"The input {name[:80]} has {array.size} values and not {math.prod(shape)}, as its shape {list(shape)} says."
        )
    return array.reshape(shape)
