"""Signals (Ctrl-C, `kill`) that mean something else for a while."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def on_signal(number: signal.Signals, action: Callable[[], None]) -> Iterator[None]:
    """Let a signal do this, and nothing else, as long as the context lasts."""
    before = signal.signal(number, lambda *_: action())
    try:
        yield
    finally:
        signal.signal(number, before)
