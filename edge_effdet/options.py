"""Fields of option dataclasses. A stage's options are such a dataclass; the command line makes its flags from them (``cli``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING, field, fields
from pathlib import Path
from typing import Any, overload

from edge_effdet.errors import UsageError


def option(default: Any = MISSING, *, help: str, choices: Sequence[str] | None = None) -> Any:  # noqa: A002
    """A dataclass field with its help, which ``cli.add_options`` turns into a flag."""
    return field(default=default, metadata={"help": help, "choices": choices})


@overload
def as_path(given: Path | str) -> Path: ...


@overload
def as_path(given: Path | str | None) -> Path | None: ...


def as_path(given: Path | str | None) -> Path | None:
    """A path that a caller may give as text. Raises UsageError for an empty one, which would be the present folder."""
    if given == "":
        raise UsageError("A path is empty, as of a variable that is not set; write . for the present folder.")
    return None if given is None else Path(given)


def check_choices(options: Any) -> None:
    """Refuse a value that is not among the choices of its field; on the command line the parser does so.

    Args:
        options: a dataclass whose fields ``option`` made.

    Raises:
        UsageError: names the field and its choices.
    """
    for item in fields(options):
        choices, value = item.metadata.get("choices"), getattr(options, item.name)
        if choices and value not in (*choices, item.default):
            raise UsageError(f"There is no `{item.name}` {value!r}; the choices are {', '.join(choices)}.")
