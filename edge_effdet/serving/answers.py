"""Answers in JSON, and those of errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from edge_effdet.artifacts import json_text

PRIVATE = {
    "Cache-Control": "no-store",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""Headers of what no proxy and no browser may keep, take for something else than it is, or show in another site's page."""


def json_answer(data: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """An object as the body of an answer."""
    return Response(json_text(data, ascii_only=True), status, {**PRIVATE, **(headers or {})}, "application/json")


def error_answer(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> Response:
    """``{"error": sentence}``."""
    return json_answer({"error": sentence}, status, headers)
