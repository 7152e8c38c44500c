"""A port that stays one's own between being chosen and being listened at."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def kept_port() -> Iterator[int]:
    """Of loopback; the system gives it to nobody else meanwhile.

    Whoever asks for this one, with SO_REUSEADDR as servers do, may listen there again and again.
    """
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))  # and does not listen
        yield held.getsockname()[1]
