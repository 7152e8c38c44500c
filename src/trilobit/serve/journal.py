"""What is kept of each HTTP request: a count, a name in its answer, a line where that is asked for.

Never anything of its text.
"""

from __future__ import annotations

import json
import logging
import secrets
import time
from typing import Any

from prometheus_client import Counter
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trilobit.serve.queue import ASKING

_log = logging.getLogger("trilobit.requests")
ANSWERS = "trilobit.answers"  # in a scope: those of the request


class Journal:
    """Counts requests, names them (`x-request-id`), and writes JSON lines."""

    def __init__(self, app: ASGIApp, *, requests: Counter, lines: bool) -> None:
        self._app, self._requests, self._lines = app, requests, lines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and note what became of it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        name = f"req_{secrets.token_hex(12)}"
        status = 499  # as nginx has it: the client was gone before an answer
        scope[ANSWERS] = []
        started_s = time.perf_counter()

        async def named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", name.encode())]
            await send(message)

        try:
            await self._app(scope, receive, named)
        finally:
            route = scope["path"]
            if route not in ASKING:  # never a path of the client's
                route = getattr(scope.get("route"), "path", "none")
            self._requests.labels(route, str(status)).inc()
            if self._lines:
                seconds = time.perf_counter() - started_s
                _log.info(json.dumps(_line(scope, name, route, status, seconds)))


def _line(scope: Scope, name: str, route: str, status: int, seconds: float) -> dict[str, Any]:
    usages = [usage for answer in scope[ANSWERS] for usage in answer.usages]
    return {
        "time": round(time.time(), 3),
        "request": name,
        "method": scope["method"],
        "route": route,
        "status": status,
        "seconds": round(seconds, 6),
        "models": [answer.model for answer in scope[ANSWERS]],
        "prompt_tokens": sum(one.prompt_tokens for one in usages),
        "cached_tokens": sum(one.cached_tokens for one in usages),
        "output_tokens": sum(one.output_tokens for one in usages),
    }
