"""What an ONNX file says of itself, read without onnx, which a device lacks: whether it keeps weights in other files, and its metadata.

The hash of an engine covers one file. ONNX lets a tensor name another file that holds its values (external data), which nobody would check,
so such an engine is refused. The field numbers are those of onnx.proto; the wire format is that of Protocol Buffers.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from edge_effdet.artifacts import Engine
from edge_effdet.artifacts.reading import to_json
from edge_effdet.errors import EngineError

_METADATA = 14
"""The metadata of ModelProto, whose entries have a key (1) and a value (2)."""

_EXTERNAL_DATA, _DATA_LOCATION, _EXTERNAL = 13, 14, 1
"""Of TensorProto: where its values are in another file, where its values are at all, and the value that means another file."""

_PARTS = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "tensor": {},
}
"""For each kind of message the fields below which tensors stand, and the kind of each."""

_KEY = b"location"
"""Each tensor with external data has an entry of this key; a file without the word has no such tensor."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def require_own_content(engine: Engine) -> None:
    """See that an engine that is an ONNX file holds all of its weights and is of the model that its record says.

    It takes about a hundredth of what the session takes to load.

    Raises:
        EngineError: it is not ONNX, keeps tensors in another file, or its own metadata contradict the record.
    """
    path = engine.path
    try:
        content = path.read_bytes()
        if not content:
            raise ValueError("it is empty")
        metadata = _read_metadata(memoryview(content))
        # To search for the word takes a hundredth of what the walk through all tensors does.
        if _KEY in content and _has_external_data(memoryview(content)):
            raise EngineError(
                f"{path} keeps weights in another file, which its hash does not cover; save the graph with all of its weights inside, and build "
                "the engine from that."
            )
    except (OSError, ValueError) as error:
        raise EngineError(
            f"{path} is not a whole ONNX file ({error}); copy it again or build the engine again."
        ) from error
    _require_same_model(engine, metadata)


def _require_same_model(engine: Engine, metadata: dict[str, str]) -> None:
    """Raise EngineError where the graph says another model than the record. A graph of another program says nothing."""
    told = metadata.get("edge_effdet.spec")
    precision = metadata.get("edge_effdet.precision")
    differing: list[str] = []
    try:
        if told is not None:
            ours, theirs = to_json(engine.spec), json.loads(told)
            differing += [name for name in ours if not isinstance(theirs, dict) or theirs.get(name) != ours[name]]
        if precision is not None and json.loads(precision) != engine.precision:
            differing.append("precision")
    except (ValueError, RecursionError) as error:
        raise EngineError(
            f"{engine.path} holds a damaged description of its model ({error}); build the engine again."
        ) from error
    if differing:
        raise EngineError(
            f"{engine.path} and its JSON describe different models (they differ in {', '.join(differing)}), so they do not belong together or "
            "the JSON was edited; copy both files again or rebuild the engine."
        )


def _read_metadata(content: memoryview) -> dict[str, str]:
    """The metadata of a model. Raises ValueError where the content is no message."""
    found: dict[str, str] = {}
    for number, value in _fields(content):
        if number == _METADATA and isinstance(value, memoryview):
            entry = {key: bytes(text).decode() for key, text in _fields(value) if isinstance(text, memoryview)}
            found[entry.get(1, "")] = entry.get(2, "")
    return found


def _has_external_data(content: memoryview) -> bool:
    """Whether a tensor anywhere in a model has its values in another file. Raises ValueError where the content is no message."""
    # A list in place of recursion: how deep graphs stand in each other is up to the file.
    waiting = [("model", content)]
    while waiting:
        kind, message = waiting.pop()
        parts = _PARTS[kind]
        for number, value in _fields(message):
            if kind == "tensor" and (number == _EXTERNAL_DATA or (number == _DATA_LOCATION and value == _EXTERNAL)):
                return True
            if number in parts and isinstance(value, memoryview):
                waiting.append((parts[number], value))
    return False


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview | None]]:
    """Number and value of each field: a number, a part of the message, or None for one of fixed size.

    Raises:
        ValueError: this is no message, or it ends early.
    """
    place, end = 0, len(message)
    while place < end:
        key, place = _read_varint(message, place)
        number, kind = key >> 3, key & 7
        value: int | memoryview | None = None
        if kind == _VARINT:
            value, place = _read_varint(message, place)
        elif kind == _BYTES:
            length, place = _read_varint(message, place)
            value = message[place : place + length]
            place += length
        elif kind in (_FIXED32, _FIXED64):
            place += 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"a field of the unknown kind {kind}")
        if place > end:
            raise ValueError("it ends early")
        yield number, value


def _read_varint(message: memoryview, place: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if place >= len(message) or shift > 63:
            raise ValueError("it ends early" if shift <= 63 else "a number of more than 64 bits")
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
        shift += 7
