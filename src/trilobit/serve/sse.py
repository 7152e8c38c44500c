"""Server-sent events: a stream of data lines, with comments that keep a quiet one alive."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from trilobit.serve.body import encoded
from trilobit.serve.errors import ApiError, api_error, body_of, log_fault

DONE = b"data: [DONE]\n\n"  # the last event of OpenAI's streams
# What OpenAPI says of a route that streams where it is asked to.
STREAMED: dict[int | str, dict[str, Any]] = {
    200: {"content": {"application/json": {}, "text/event-stream": {}}}
}
_COMMENT = b": still working\n\n"
_HEADERS = {
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # a proxy shall pass every event on at once
}


def event(data: Any, name: str | None = None) -> bytes:
    """One event. name: of its type, in dialects that have such."""
    text = encoded(data)
    line = b"data: " + text + b"\n\n"
    return line if name is None else b"event: " + name.encode() + b"\n" + line


class Events(Response):
    """Sends parts as they come; an error on the way is told as the last event.

    parts: bytes, whole events each. keep_alive_s: pause after which `alive` goes out, a comment by
    default. failed: makes the last event of an error; by default as OpenAI's API has it.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        parts: AsyncIterator[bytes],
        *,
        keep_alive_s: float,
        alive: bytes = _COMMENT,
        failed: Callable[[ApiError], bytes] | None = None,
        media_type: str | None = None,
    ) -> None:
        self._parts, self._keep_alive_s, self._failed = parts, keep_alive_s, failed
        self._alive = alive
        self.status_code, self.background = 200, None
        self.body = b""
        self.media_type = media_type or self.media_type
        self.init_headers(_HEADERS)
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all of it. Who calls ends the request, and with it what the parts are made of."""

        async def give(part: bytes, *, more: bool = True) -> None:
            self._sent = asyncio.get_running_loop().time()
            await send({"type": "http.response.body", "body": part, "more_body": more})

        await send(
            {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
        )
        self._sent = asyncio.get_running_loop().time()
        alive = asyncio.ensure_future(self._keep_alive(give))
        try:
            async for part in self._parts:
                await give(part)
        except Exception as error:
            log_fault(error)
            await give(self._told(api_error(error), scope["path"]))
        finally:
            alive.cancel()
            if isinstance(self._parts, AsyncGenerator):  # now, not when it is collected
                await self._parts.aclose()
        await give(b"", more=False)

    async def _keep_alive(self, give: Callable[[bytes], Awaitable[None]]) -> None:
        """Send a sign of life wherever nothing was sent for a while."""
        while True:
            quiet_s = asyncio.get_running_loop().time() - self._sent
            if quiet_s < self._keep_alive_s:
                await asyncio.sleep(self._keep_alive_s - quiet_s)
            else:
                await give(self._alive)

    def _told(self, error: ApiError, path: str) -> bytes:
        return event(body_of(error, path)) if self._failed is None else self._failed(error)
