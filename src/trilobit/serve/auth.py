"""Who may come in: the address that is asked, the page that asks, and the key.

A page of another server could have a browser ask this one, by its own name that leads here (DNS
rebinding) or from its own place: so only known hosts and origins are answered.
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable
from hashlib import sha256
from ipaddress import ip_address

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from trilobit.serve.errors import ApiError, response_of

# Answered without a key: whether the server lives, and the page's own files, which hold nothing.
OPEN = frozenset({"/health", "/"})
OPEN_BELOW = ("/page/",)


class Origins:
    """Refuses what is addressed to a name that is not this server's, or comes from elsewhere."""

    def __init__(
        self, app: ASGIApp, *, hosts: frozenset[str] | None, origins: Iterable[str]
    ) -> None:
        self._app, self._hosts = app, hosts
        self._origins = frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what may come in."""
        error = self._refusal(Headers(scope=scope)) if scope["type"] == "http" else None
        if error is None:
            await self._app(scope, receive, send)
        else:
            await response_of(error, scope["path"])(scope, receive, send)

    def _refusal(self, headers: Headers) -> ApiError | None:
        host = headers.get("host", "")
        if self._hosts is not None and not _is_known(_name(host), self._hosts):
            return ApiError(
                403, f"{host[:80]!r} is not a name of this server; start it with --allow-host"
            )
        origin = headers.get("origin")
        if origin is None or origin in self._origins:
            return None
        if origin.partition("://")[2] == host:
            return None
        return ApiError(
            403, f"pages of {origin[:80]!r} may not ask this server; start it with --cors"
        )


class Keys:
    """Asks for a key, in either form of header."""

    def __init__(self, app: ASGIApp, *, keys: Iterable[str]) -> None:
        self._app = app
        self._digests = [_digest(key) for key in keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on what has a key, or needs none."""
        if scope["type"] != "http" or self._may(scope):
            await self._app(scope, receive, send)
            return
        error = ApiError(
            401,
            "this server needs a key: `Authorization: Bearer KEY` or `x-api-key: KEY`",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
        await response_of(error, scope["path"])(scope, receive, send)

    def _may(self, scope: Scope) -> bool:
        path = scope["path"]
        if not self._digests or path in OPEN or path.startswith(OPEN_BELOW):
            return True
        headers = Headers(scope=scope)
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        given = [headers.get("x-api-key", "")]
        if scheme.lower() == "bearer":
            given.append(bearer.strip())
        found = False
        for key in given:
            digest = _digest(key)
            for known in self._digests:  # all of them, so that the time tells nothing
                found |= hmac.compare_digest(digest, known)
        return found


def _digest(key: str) -> bytes:
    return sha256(key.encode("utf-8", "surrogateescape")).digest()


def _name(host: str) -> str:
    """The name or address in `Host`, without a port."""
    if host.startswith("["):
        return host[1:].partition("]")[0].lower()
    return host.partition(":")[0].lower().rstrip(".")


def _is_known(name: str, hosts: frozenset[str]) -> bool:
    if name in hosts or name == "localhost" or name.endswith(".localhost"):
        return True
    try:  # nobody can have an address lead elsewhere
        ip_address(name)
    except ValueError:
        return False
    return True
