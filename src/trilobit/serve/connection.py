"""One connection: what it may take to say what it wants, and to take what it gets.

uvicorn waits for ever for both. A header has a deadline, and so has a reader who takes nothing:
then the connection is cut, which ends its request. (A body's deadline is in `limits`.)
"""

from __future__ import annotations

import asyncio
import json
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from trilobit.serve.errors import ApiError, body_of


class Connection(H11Protocol):
    """As uvicorn's, with deadlines; errors of HTTP itself have the API's shape.

    header_s: for a header to arrive. reader_s: in which a reader must take something. most:
    connections at once.
    """

    def __init__(
        self, *args: Any, header_s: float, reader_s: float, most: int, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._header_s, self._reader_s, self._most = header_s, reader_s, most
        self._deadline: asyncio.TimerHandle | None = None  # of a header
        self._patience: asyncio.TimerHandle | None = None  # with a reader

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin, if there is room for one more."""
        super().connection_made(transport)
        if len(self.connections) > self._most:
            self._refuse(ApiError(503, "too many connections; come again later"))
        else:
            self._expect_header()

    def data_received(self, data: bytes) -> None:
        """Take what came; between requests, a header is expected from its first byte on."""
        if self._deadline is None and self._between_requests():
            self._expect_header()
        refused = self._is_answered()  # and this is of a body that nobody reads
        super().data_received(data)
        if self._is_answered():
            return
        if refused and self._between_requests():
            self._forget()
            if self.conn.trailing_data[0]:
                self._expect_header()
        elif not self._between_requests():
            self._forget()

    def connection_lost(self, exc: Exception | None) -> None:
        """End what runs for it."""
        self._forget()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The reader is behind: it has a while to catch up."""
        super().pause_writing()
        self._patience = self.loop.call_later(self._reader_s, self.transport.abort)

    def resume_writing(self) -> None:
        """It caught up."""
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
        super().resume_writing()

    def on_response_complete(self) -> None:
        """Go on with the next request, whose header may have begun to come already."""
        super().on_response_complete()
        begun = self._between_requests() and self.conn.trailing_data[0]
        if self._deadline is None and (begun or self._is_answered()):
            self._expect_header()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is not HTTP, or has too large a header."""
        self._refuse(ApiError(400, "this is no HTTP request, or its header is too large"))

    def _between_requests(self) -> bool:
        return self.conn.their_state is h11.IDLE

    def _is_answered(self) -> bool:
        """Whether there is an answer to a request that is not all here yet."""
        return self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY

    def _expect_header(self) -> None:
        self._deadline = self.loop.call_later(self._header_s, self._late)

    def _late(self) -> None:
        self._refuse(ApiError(408, f"the header did not arrive within {self._header_s:g} s"))

    def _forget(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _refuse(self, error: ApiError) -> None:
        """Answer without the app, and close."""
        self._forget()
        if self.transport.is_closing():
            return
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps(body_of(error, "/")).encode()
            headers = [
                (b"content-type", b"application/json"),
                (b"content-length", str(len(body)).encode()),
                (b"connection", b"close"),
            ]
            parts: list[Any] = [
                h11.Response(status_code=error.status, headers=headers, reason=b""),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ]
            for part in parts:
                self.transport.write(self.conn.send(part) or b"")
        self.transport.close()
