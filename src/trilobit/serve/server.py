"""A running server: an address taken first, then requests until a signal, then a drain."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from types import FrameType
from typing import Any, Protocol

import uvicorn
from starlette.applications import Starlette

from trilobit.errors import RequestError
from trilobit.serve.connection import Connection
from trilobit.serve.errors import log_fault
from trilobit.serve.settings import Settings

_REMEDIES = {
    errno.EADDRINUSE: "stop what listens there, or take another --port",
    errno.EADDRNOTAVAIL: "take an address of this machine as --host, or leave it out",
    errno.EACCES: "the system keeps that one for itself: take a --port above 1023",
}
_BACKLOG = 1024
_MOST_CONNECTIONS = 4096
_FILES = 64  # descriptors that are no connections
_HEADER_BYTES = 32 << 10
_IDLE_S = 75  # a kept connection; longer than proxies keep theirs, so that they close first
_LAST_WORDS_S = 5  # for errors to reach their readers


class Served(Protocol):
    """What an app has as `state.service`."""

    settings: Settings

    def begin(self) -> None:
        """Make ready; what cannot be opened is told here."""

    def end_all(self) -> None:
        """Have every answer end now, with words."""


def bind(host: str, port: int) -> socket.socket:
    """Take an address; RequestError where that cannot be."""
    try:
        [(family, kind, proto, _, address), *_] = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except OSError as error:
        raise RequestError(f"--host {host}: no such address ({error.strerror})") from None
    sock = socket.socket(family, kind, proto)
    try:
        if sys.platform != "win32":  # there it would let two servers have the same port
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
    except OSError as error:
        sock.close()
        remedy = _REMEDIES.get(error.errno or 0, "take another --port")
        raise RequestError(f"{host} port {port}: {error.strerror}; {remedy}") from None
    return sock


def address_of(sock: socket.socket, *, tls: bool = False) -> str:
    """What a browser asks for."""
    host, port = sock.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if tls else 'http'}://{shown}:{port}"


def check_tls(certificate: str, key: str) -> None:
    """RequestError where the two cannot serve."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, password=_no_one)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or "unreadable"
        raise RequestError(
            f"{certificate}, {key}: no certificate with its key ({reason}); give both as PEM, "
            "without a password"
        ) from None


def _no_one() -> str:
    raise ValueError("the key has a password")


def run(
    app: Starlette,
    sock: socket.socket,
    *,
    ready: Callable[[], None],
    tls: tuple[str, str] | None = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C; then take nothing more, and let what runs end for a while.

    ready: called when requests are answered. tls: files of the certificate and its key. A second
    signal ends it at once.
    """
    service: Served = app.state.service
    settings = service.settings
    config = uvicorn.Config(
        app,
        http=partial(  # type: ignore[arg-type]  # called as a class is
            Connection,
            header_s=settings.sender_s,
            reader_s=settings.reader_s,
            most=_connections(),
        ),
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=_BACKLOG,
        h11_max_incomplete_event_size=_HEADER_BYTES,
        timeout_keep_alive=_IDLE_S,
        timeout_graceful_shutdown=math.ceil(settings.drain_s) + _LAST_WORDS_S,
        ssl_certfile=tls[0] if tls else None,
        ssl_keyfile=tls[1] if tls else None,
    )
    # It would log errors with the words of requests in them; ours are logged by `errors`.
    logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
    if settings.json_logs:
        logging.getLogger("trilobit.requests").setLevel(logging.INFO)
    service.begin()
    _Server(config, service, ready).run(sockets=[sock])


def _connections() -> int:
    """How many there may be: each takes a descriptor, of which some are for files."""
    if sys.platform == "win32":
        return _MOST_CONNECTIONS
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_CONNECTIONS + _FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(ValueError, OSError):
            most = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            soft = most
    if soft == resource.RLIM_INFINITY:
        return _MOST_CONNECTIONS
    return max(1, min(_MOST_CONNECTIONS, soft - _FILES))


class _Server(uvicorn.Server):
    """As uvicorn's, but a drain that was asked for is no death by a signal: it ends well."""

    def __init__(self, config: uvicorn.Config, service: Served, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._service, self._ready = service, ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin, and say so."""
        asyncio.get_running_loop().set_exception_handler(_log_fault)
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Let what runs end; what takes too long ends with an error that its reader is told."""
        loop = asyncio.get_running_loop()
        loop.call_later(self._service.settings.drain_s, self._service.end_all)
        await super().shutdown(sockets)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Hear signals while it serves, where that can be: on the main thread."""
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain; at the second signal, end."""
        self.force_exit = self.should_exit
        self.should_exit = True


def _log_fault(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    error = context.get("exception")
    if isinstance(error, Exception):
        log_fault(error)
