"""What bounds a request before a route sees it, and what ends with it.

Where all places are taken, what asks for one is refused before its body is read. A body is read
whole, within its size and time, before anything else is done. From then on the request has its
place, and lives as long as its client listens: when he goes, everything that works for it is
cancelled, and what it opened (`exits`) is closed.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack, ExitStack

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from trilobit.serve.errors import ApiError, response_of
from trilobit.serve.queue import ASKING, Queue

_EXITS = "trilobit.exits"
# Behind a refusal of a body that is too much in any way, nothing more of it is taken.
_CLOSE = {"Connection": "close"}


def exits(request: Request) -> AsyncExitStack:
    """What is closed when a request is over, however it ends."""
    stack = request.scope[_EXITS]
    assert isinstance(stack, AsyncExitStack)
    return stack


class Bodies:
    """Reads bodies, and runs what answers them while somebody listens.

    queue: of those who ask a model. body_bytes: of one. bodies_bytes: of all that are here: what
    many senders can make us keep.
    """

    def __init__(
        self, app: ASGIApp, *, queue: Queue, body_bytes: int, bodies_bytes: int, sender_s: float
    ) -> None:
        self._app, self._queue = app, queue
        self._body_bytes, self._sender_s = body_bytes, sender_s
        self._bodies_bytes = bodies_bytes
        self._held = 0  # bytes of all bodies
        self._turn = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        asks = scope["method"] == "POST" and scope["path"] in ASKING
        with ExitStack() as held:
            try:
                if asks:
                    self._queue.check()
                self._check_length(Headers(scope=scope))
                body = await self._read_in_time(receive, held)
                if asks and body is not None:
                    held.enter_context(self._queue.place())
            except ApiError as error:
                await response_of(error, scope["path"])(scope, receive, send)
                return
            if body is not None:
                await self._run(scope, body, receive, send)

    def _check_length(self, headers: Headers) -> None:
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > self._body_bytes:
            raise self._too_large()

    async def _read_in_time(self, receive: Receive, held: ExitStack) -> bytes | None:
        try:
            async with asyncio.timeout(self._sender_s):
                return await self._read(receive, held)
        except TimeoutError:
            late = f"the request did not arrive within {self._sender_s:g} s"
            raise ApiError(408, late, headers=_CLOSE) from None

    async def _read(self, receive: Receive, held: ExitStack) -> bytes | None:
        """The whole body; None when its sender went away."""
        mine = _Held(self)
        held.callback(mine.release)
        body = bytearray()  # a byte at a time would be a list of millions
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            if len(body) + len(part) > self._body_bytes:
                raise self._too_large()
            mine.add(len(part))
            body += part
            if not message.get("more_body"):
                return bytes(body)

    def _too_large(self) -> ApiError:
        words = f"the body is too large; this server takes {self._body_bytes:,} bytes"
        return ApiError(413, words, headers=_CLOSE)

    async def _run(self, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
        sent = False

        async def replayed() -> Message:
            nonlocal sent
            if not sent:
                sent = True
                return {"type": "http.request", "body": body, "more_body": False}
            await asyncio.Event().wait()  # whether he still listens is watched below
            raise AssertionError

        async with AsyncExitStack() as stack:
            scope[_EXITS] = stack
            await self._turn.acquire()
            answering = asyncio.ensure_future(self._app(scope, replayed, send))
            listening = asyncio.ensure_future(_gone(receive))
            try:
                try:  # One begins in a round of the loop: those who are refused wait for no crowd.
                    await asyncio.sleep(0)
                finally:
                    self._turn.release()
                await asyncio.wait({answering, listening}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                listening.cancel()
                if not answering.done():
                    answering.cancel()
                await asyncio.wait({answering})
            if not answering.cancelled():
                answering.result()


class _Held:
    """Bytes of one body, which count while its request lives."""

    def __init__(self, bodies: Bodies) -> None:
        self._bodies, self._bytes = bodies, 0

    def add(self, count: int) -> None:
        if self._bodies._held + count > self._bodies._bodies_bytes:
            raise ApiError(
                503,
                "too many bodies at once; ask again later",
                headers={"Retry-After": "5", **_CLOSE},
            )
        self._bodies._held += count
        self._bytes += count

    def release(self) -> None:
        self._bodies._held -= self._bytes
        self._bytes = 0


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
