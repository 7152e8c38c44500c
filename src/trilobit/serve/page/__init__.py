"""The chat page at `/`: files of this folder, served from memory under the strictest policy.

They hold nothing of anybody, so no key is asked for them; the page itself asks its reader, and what
is written there stays in the browser. Addresses are relative: a proxy may put all under a prefix.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_FOLDER = Path(__file__).parent
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
# Nothing from elsewhere, nothing inline, no text turned into markup but by the sanitiser's own
# policy: what a model writes cannot run, load or send anything, whatever it is.
_POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types dompurify",
    )
)
_HEADERS = {
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    # Kept, and asked for again each time: names do not change with the version.
    "Cache-Control": "no-cache",
}


def _files() -> dict[str, Path]:
    """Address -> file."""
    files = {
        f"/page/{path.relative_to(_FOLDER).as_posix()}": path
        for path in sorted(_FOLDER.rglob("*"))
        if path.suffix in _TYPES and path.name != "index.html"
    }
    return {"/": _FOLDER / "index.html", **files}


PATHS: frozenset[str] = frozenset(_files())


def add_page(app: Starlette) -> None:
    """Give an app the page: `GET /` and what it is made of, all read now."""
    app.router.routes.extend(_route(address, path) for address, path in _files().items())


def _route(address: str, path: Path) -> Route:
    body = path.read_bytes()
    tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = _HEADERS | {"ETag": tag, "Content-Type": _TYPES[path.suffix]}

    async def send(request: Request) -> Response:
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(body, headers=headers)

    return Route(address, send, methods=["GET"], include_in_schema=False)
