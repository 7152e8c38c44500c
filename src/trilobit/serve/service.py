"""What the routes of one server share: its settings, its models, the places in its queue."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Protocol

from starlette.requests import Request

from trilobit.serve.errors import ApiError
from trilobit.serve.host import Host
from trilobit.serve.metrics import Metrics
from trilobit.serve.pulse import Pulse
from trilobit.serve.queue import Queue
from trilobit.serve.record import Record
from trilobit.serve.settings import Settings

_LOOKS = 4  # at idle models, in the time after which one is closed


class Running(Protocol):
    """What can be ended with an error that its reader is told."""

    def end(self, error: ApiError) -> None:
        """End it."""


class Service:
    """One server's own; `service_of` gives it to a route."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.host = Host(settings.models, settings.engine, settings.memory_bytes)
        self.queue = Queue(settings.engine.max_sequences + settings.queue)
        self.metrics = Metrics(self.host, self.queue)
        self.pulse = Pulse()
        log = settings.request_log
        self.record = None if log is None else Record(log)
        self.started = int(time.time())
        self._answers: set[Running] = set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """While requests come; all models are closed at the end."""
        idle = asyncio.ensure_future(self._close_idle())
        try:
            yield
        finally:
            idle.cancel()
            await self.host.close()
            if self.record is not None:
                self.record.close()

    @contextmanager
    def answering(self, answer: Running) -> Iterator[None]:
        """An answer that is being read: it has its time, and ends with the server."""
        late = ApiError(503, f"the answer took longer than {self.settings.request_s:g} s")
        timer = asyncio.get_running_loop().call_later(self.settings.request_s, answer.end, late)
        self._answers.add(answer)
        try:
            yield
        finally:
            timer.cancel()
            self._answers.discard(answer)
            answer.end(ApiError(503, "the request is over"))

    def begin(self) -> None:
        """Open what is open from the start."""
        self.host.open_first()

    def end_all(self) -> None:
        """Have every answer end now, with words."""
        for answer in list(self._answers):
            answer.end(ApiError(503, "the server is shutting down; ask again later"))

    async def _close_idle(self) -> None:
        idle_s = self.settings.idle_unload_s
        while idle_s is not None:
            await asyncio.sleep(idle_s / _LOOKS)
            await self.host.close_idle(idle_s)


def service_of(request: Request) -> Service:
    """The service that a request came to."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service
