"""The page for people and the description of the service: files of this package, which ask for nothing from elsewhere."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib import resources
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from edge_effdet.artifacts import json_text
from edge_effdet.serving.openapi import openapi_document

if TYPE_CHECKING:
    from edge_effdet.serving.server import Service

MEDIA_TYPES: Mapping[str, str] = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

POLICY = "; ".join(
    (
        "default-src 'self'",
        "img-src 'self' blob: data:",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        # Text of others cannot become markup: Chromium refuses innerHTML and the like.
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
"""The Content-Security-Policy of the pages: no script and no style but their own files."""

HEADERS: Mapping[str, str] = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    # A browser asks each time, and is answered with 304 while the file is the same.
    "Cache-Control": "no-cache",
}

_WATCHES = (b'data-live="no"', b'data-live="yes"')
"""How the page is told that there is a source: it would otherwise have to try, and an answer of 404 is an error in a browser's console."""


def routes(service: Service) -> list[Route]:
    """The routes ``/``, ``/page/{file}``, ``/docs`` and ``/openapi.json``."""
    files = {
        item.name: item.read_bytes()
        for item in (resources.files("edge_effdet.serving") / "page").iterdir()
        if item.name.endswith(tuple(MEDIA_TYPES))
    }
    page, docs = files.pop("index.html"), files.pop("docs.html")
    if service.live is not None:
        page = page.replace(*_WATCHES)
    description = json_text(openapi_document(service), ascii_only=True).encode()
    html = MEDIA_TYPES[".html"]
    return [
        Route("/", _StaticFile(page, html).answer),
        Route("/docs", _StaticFile(docs, html).answer),
        Route("/openapi.json", _StaticFile(description, "application/json").answer),
        *(
            Route(f"/page/{name}", _StaticFile(content, MEDIA_TYPES[name[name.rindex(".") :]]).answer)
            for name, content in sorted(files.items())
        ),
    ]


class _StaticFile:
    """A file that is answered as it is, and only where the browser does not have it already."""

    def __init__(self, content: bytes, media_type: str) -> None:
        self._content, self._media_type = content, media_type
        self._tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'

    async def answer(self, request: Request) -> Response:
        headers = {**HEADERS, "ETag": self._tag}
        if self._tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(self._content, headers=headers, media_type=self._media_type)
