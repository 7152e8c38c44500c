"""One address for several servers, which may be on many machines: `trilobit front`.

A conversation goes where its beginning is known (`replicas`). Who cannot be reached, or has no
place, is passed over. What a server has begun no other is asked for: when it dies, its streams end
with an error in the API's own shape, and those of the others go on.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager

import httpx
from prometheus_client import CollectorRegistry, Counter, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from trilobit.serve.app import HANDLERS, guards
from trilobit.serve.body import Json, encoded
from trilobit.serve.errors import ApiError, body_of
from trilobit.serve.limits import exits
from trilobit.serve.queue import ASKING, Queue
from trilobit.serve.replicas import Replica, Replicas, beginning
from trilobit.serve.servers import Servers
from trilobit.serve.settings import Settings
from trilobit.serve.sse import event

# Of one connection, not of what is sent; and what is only true of the address that was asked.
_OWN = frozenset(
    "connection keep-alive te trailer transfer-encoding upgrade host origin content-length "
    "accept-encoding date server x-request-id".split()
)
_KEYS = frozenset({"authorization", "x-api-key"})
# Streams by type -> what ends an event of theirs: half of one is not passed on
_STREAMS = {"text/event-stream": b"\n\n", "application/x-ndjson": b"\n"}
_PLACES = 65_536  # the servers have queues of their own
_CONNECT_S = 3.0
_GONE = "the server that was answering is gone; ask again"


class Front:
    """What the routes of a front share. servers: that it starts itself."""

    def __init__(self, settings: Settings, urls: list[str], servers: Servers | None) -> None:
        self.settings, self.servers = settings, servers
        self.queue = Queue(_PLACES)
        self.client = httpx.AsyncClient(
            timeout=httpx.Timeout(None, connect=_CONNECT_S),
            limits=httpx.Limits(max_connections=None, keepalive_expiry=30),
            trust_env=False,
        )
        self.replicas = Replicas(urls, self.client)
        self.registry = CollectorRegistry()
        self.registry.register(_Servers(self.replicas))
        words = "HTTP requests by route and status"
        self.requests = Counter(
            "trilobit_front_requests", words, ("route", "status"), registry=self.registry
        )
        self.passing: set[asyncio.Task[None]] = set()

    def begin(self) -> None:
        """Start servers, if they are its own."""
        if self.servers is not None:
            self.servers.begin(self.replicas)

    def end_all(self) -> None:
        """Have every stream end now, with words."""
        for task in self.passing:
            task.cancel()

    @asynccontextmanager
    async def running(self, _: Starlette) -> AsyncIterator[None]:
        """While requests come."""
        working = [asyncio.ensure_future(self.replicas.watch())]
        if self.servers is not None:
            working.append(asyncio.ensure_future(self.servers.keep()))
            if hasattr(signal, "SIGHUP"):
                loop = asyncio.get_running_loop()
                loop.add_signal_handler(signal.SIGHUP, self.servers.renew)
        try:
            yield
        finally:
            for work in working:
                work.cancel()
            if self.servers is not None:
                await self.servers.close()
            await self.client.aclose()


def create_front(settings: Settings, urls: list[str], servers: Servers | None = None) -> Starlette:
    """An app that passes on what it is asked.

    urls: of servers that run, without a path. servers: those that it starts itself.
    """
    front = Front(settings, urls, servers)
    app = Starlette(
        routes=[
            Route("/health", _health),
            Route("/metrics", _metrics),
            Route("/{path:path}", _forward, methods=["GET", "POST", "HEAD", "DELETE", "PUT"]),
        ],
        middleware=guards(settings, front.queue, front.requests),
        exception_handlers=HANDLERS,
        lifespan=front.running,
    )
    app.state.service = front
    return app


async def _health(request: Request) -> Response:
    """200 while one server lives."""
    told = {one.url: one.is_alive for one in request.app.state.service.replicas.all}
    return Json({"servers": told}, status_code=200 if any(told.values()) else 503)


async def _metrics(request: Request) -> Response:
    registry = request.app.state.service.registry
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


async def _forward(request: Request) -> Response:
    front = request.app.state.service
    body = await request.body()
    asks = request.url.path in ASKING
    busy: Response | None = None
    for replica in front.replicas.order(beginning(body) if asks else None):
        if replica not in front.replicas.all:  # any more
            continue
        async with AsyncExitStack() as held:
            held.enter_context(replica.busy())
            try:
                answer = await _asked(front.client, replica, request, body)
            except httpx.ConnectError:  # nothing was begun
                replica.is_alive = False
                continue
            held.push_async_callback(answer.aclose)
            if answer.headers.get("content-type", "").partition(";")[0] in _STREAMS:
                exits(request).push_async_exit(held.pop_all())
                return _Passed(front, replica, answer)
            busy = await _whole(replica, answer)
            if answer.status_code != httpx.codes.TOO_MANY_REQUESTS:
                return busy
    if busy is not None:
        return busy
    raise ApiError(503, "no server can be reached; ask again later", headers={"Retry-After": "5"})


async def _asked(
    client: httpx.AsyncClient, replica: Replica, request: Request, body: bytes
) -> httpx.Response:
    query = f"?{request.url.query}" if request.url.query else ""
    left_out = _OWN if replica.key is None else _OWN | _KEYS
    headers = [(key, value) for key, value in request.headers.raw if key.decode() not in left_out]
    if replica.key is not None:
        headers.append((b"x-api-key", replica.key.encode()))
    path = request.scope.get("raw_path", b"").decode("ascii") or request.url.path
    sent = client.build_request(
        request.method,
        f"{replica.url}{path}{query}",
        headers=headers,
        content=body,
    )
    try:
        return await client.send(sent, stream=True)
    except httpx.ConnectTimeout as error:
        raise httpx.ConnectError(str(error)) from None
    except httpx.ConnectError:
        raise
    except httpx.TransportError:
        replica.is_alive = False  # until it is seen to be
        raise ApiError(503, _GONE) from None


async def _whole(replica: Replica, answer: httpx.Response) -> Response:
    try:
        body = b"".join([part async for part in answer.aiter_raw()])
    except httpx.TransportError:
        replica.is_alive = False
        raise ApiError(503, _GONE) from None
    return Response(body, answer.status_code, headers=_headers(answer))


def _headers(answer: httpx.Response) -> dict[str, str]:
    return {key: value for key, value in answer.headers.items() if key not in _OWN}


class _Passed(Response):
    """A stream of another server, event by event."""

    def __init__(self, front: Front, replica: Replica, answer: httpx.Response) -> None:
        self._front, self._replica, self._answer = front, replica, answer
        self._end = _STREAMS[answer.headers["content-type"].partition(";")[0]]
        self._events = 0
        self.status_code, self.background, self.body = answer.status_code, None, b""
        self.init_headers(_headers(answer))
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on all of it; the last event of one that is cut is an error."""
        start = {"type": "http.response.start", "status": self.status_code}
        await send(start | {"headers": self.raw_headers})
        passing = asyncio.ensure_future(self._pass(send))
        self._front.passing.add(passing)
        try:
            await asyncio.wait({passing})
            if passing.cancelled():
                raise ApiError(503, "the server is shutting down; ask again later")
            passing.result()
        except httpx.TransportError:
            self._replica.is_alive = False
            await _give(send, self._told(ApiError(503, _GONE), scope["path"]))
        except ApiError as error:
            await _give(send, self._told(error, scope["path"]))
        finally:
            self._front.passing.discard(passing)
            if not passing.done():  # he who listened is gone
                passing.cancel()
                await asyncio.wait({passing})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _pass(self, send: Send) -> None:
        held = b""
        async for part in self._answer.aiter_raw():
            whole, mark, held = (held + part).rpartition(self._end)
            if mark:
                self._events += whole.count(b"event: ")
                await _give(send, whole + mark)

    def _told(self, error: ApiError, path: str) -> bytes:
        told = body_of(error, path)
        if self._end == b"\n":
            return encoded(told) + b"\n"
        if path == "/v1/responses":
            fault = {"code": "server_error", "message": error.message, "param": None}
            told = {"type": "error", "sequence_number": self._events} | fault
        return event(told, told.get("type"))


async def _give(send: Send, part: bytes) -> None:
    await send({"type": "http.response.body", "body": part, "more_body": True})


class _Servers(Collector):
    """What the front knows of the servers, read when it is asked for."""

    def __init__(self, replicas: Replicas) -> None:
        self._replicas = replicas

    def collect(self) -> Iterator[Metric]:
        """One family of metrics after the other."""
        alive = GaugeMetricFamily("trilobit_front_alive", "Whether it answers", labels=["server"])
        running = GaugeMetricFamily("trilobit_front_running", "Its requests", labels=["server"])
        for one in self._replicas.all:
            alive.add_metric([one.url], int(one.is_alive))
            running.add_metric([one.url], one.running)
        yield from (alive, running)
