"""What the routes of one server share: its settings, its models, the places in its queue."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import Request

from trilobit.serve.host import Host
from trilobit.serve.pulse import Pulse
from trilobit.serve.queue import Queue
from trilobit.serve.settings import Settings


class Service:
    """One server's own; `service_of` gives it to a route."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.host = Host(settings.models, settings.engine)
        self.queue = Queue(settings.engine.max_sequences + settings.queue)
        self.pulse = Pulse()
        self.started = int(time.time())

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Open the first model, so that what is wrong shows now; close all at the end."""
        idle = asyncio.ensure_future(self._close_idle())
        try:
            async with self.host.llm(None):
                pass
            yield
        finally:
            idle.cancel()
            await self.host.close()

    async def _close_idle(self) -> None:
        idle_s = self.settings.idle_unload_s
        while idle_s is not None:
            await asyncio.sleep(min(idle_s / 4, 5.0))
            await self.host.close_idle(idle_s)


def service_of(request: Request) -> Service:
    """The service that a request came to."""
    service = request.app.state.service
    assert isinstance(service, Service)
    return service
