"""A running server: an address taken first, then requests until a signal, then a drain."""

from __future__ import annotations

import signal
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

import uvicorn
from fastapi import FastAPI

from trilobit.errors import RequestError
from trilobit.serve.connection import Connection

_BACKLOG = 1024


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
        remedy = "stop what listens there, or take another --port"
        if isinstance(error, PermissionError):
            remedy = "ports below 1024 are the system's: take another --port"
        raise RequestError(f"{host} port {port}: {error.strerror}; {remedy}") from None
    return sock


def address_of(sock: socket.socket, *, tls: bool = False) -> str:
    """What a browser asks for."""
    host, port = sock.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if tls else 'http'}://{shown}:{port}"


def run(
    app: FastAPI,
    sock: socket.socket,
    *,
    ready: Callable[[], None],
    drain_s: float,
    tls: tuple[str, str] | None = None,
) -> None:
    """Serve until SIGTERM or Ctrl-C; then take nothing more, and let what runs end for a while.

    ready: called when requests are answered. A second signal ends it at once.
    """
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=_BACKLOG,
        timeout_graceful_shutdown=max(1, round(drain_s)),
        ssl_certfile=tls[0] if tls else None,
        ssl_keyfile=tls[1] if tls else None,
    )
    _Server(config, ready).run(sockets=[sock])


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._ready = ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn's, but a drain that was asked for is no death by a signal: it exits with 0."""
        before = {
            number: signal.signal(number, self.handle_exit)
            for number in (signal.SIGINT, signal.SIGTERM)
        }
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Drain; at the second signal, end."""
        self.force_exit = self.should_exit
        self.should_exit = True
