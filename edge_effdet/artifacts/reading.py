"""JSON to frozen dataclasses and back, by their annotations. The device has no library for it."""

from __future__ import annotations

import collections.abc
import dataclasses
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

T = TypeVar("T")


def from_json(kind: type[T], raw: Any, where: str = "") -> T:
    """Read what ``to_json`` made of a dataclass, after a trip through JSON.

    Args:
        kind: the dataclass. Its fields are numbers, text, booleans, tuples, mappings with text as keys, dataclasses of such, and None.
        raw: what ``json.loads`` gave.
        where: the place of ``raw`` in the file, for messages.

    Raises:
        ValueError: a field is missing, unknown or of another type; the message names it.
    """
    if not isinstance(raw, Mapping):
        raise ValueError(f"{where or 'the file'} is {_told(raw)} and not an object")
    hints = typing.get_type_hints(kind)
    names = [item.name for item in dataclasses.fields(kind)]  # type: ignore[arg-type]
    for name in raw:
        if name not in names:
            raise ValueError(f"{_joined(where, str(name))} is not a field that this version knows")
    # One with a default may not be missing either: ``to_json`` writes every field.
    for name in names:
        if name not in raw:
            raise ValueError(f"{_joined(where, name)} is missing")
    return kind(**{name: _value(hints[name], raw[name], _joined(where, name)) for name in names})


def to_json(value: Any) -> Any:
    """A dataclass as ``json.dumps`` takes it: objects, lists, numbers, text, booleans and None."""
    if dataclasses.is_dataclass(value):
        return {item.name: to_json(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_json(each) for key, each in value.items()}
    if isinstance(value, tuple | list):
        return [to_json(each) for each in value]
    return value


def _value(hint: Any, raw: Any, where: str) -> Any:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return raw
    if origin in (types.UnionType, typing.Union):
        (wanted,) = (each for each in inner if each is not type(None))
        return None if raw is None else _value(wanted, raw, where)
    if origin is tuple and isinstance(raw, list):
        wanted = inner[:1] * len(raw) if inner[-1] is Ellipsis else inner
        if len(wanted) != len(raw):
            raise ValueError(f"{where} has {len(raw)} values and not {len(wanted)}")
        return tuple(
            _value(each, one, f"{where}[{index}]") for index, (each, one) in enumerate(zip(wanted, raw, strict=True))
        )
    if origin is collections.abc.Mapping and isinstance(raw, Mapping):
        return {str(key): _value(inner[1], each, _joined(where, str(key))) for key, each in raw.items()}
    if dataclasses.is_dataclass(hint):
        return from_json(hint, raw, where)  # type: ignore[arg-type]
    # JSON writes 1.0 and 1 as it likes, and for Python True is a number.
    if hint is float and type(raw) in (int, float):
        return float(raw)
    if type(raw) is hint:
        return raw
    raise ValueError(f"{where} is {_told(raw)} and not {getattr(origin or hint, '__name__', hint)}")


def _told(raw: Any) -> str:
    return "null" if raw is None else f"{raw!r:.40} ({type(raw).__name__})"


def _joined(where: str, name: str) -> str:
    return f"{where}.{name}" if where else name
