"""Who may use the engine: one thread at a time, in the order of asking.

A plain lock would do for safety, not for fairness: a thread that runs step after step takes it
again before any other wakes up. Here everybody who waits gets a turn before it.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from weakref import WeakSet


def _never() -> bool:
    return False


class Turns:
    """The line in front of one engine."""

    _changed: threading.Condition
    _line: list[object]  # the first has the turn
    _closed_by: int | None

    def __init__(self) -> None:
        self._reset()
        _all.add(self)

    @contextmanager
    def turn(self, unless: Callable[[], bool] = _never) -> Iterator[bool]:
        """Wait for a turn and hold it. False, and no turn, once `unless` holds before it comes."""
        if self._closed_by == threading.get_ident():
            yield True
            return
        me = object()
        try:
            with self._changed:
                self._line.append(me)
                self._changed.wait_for(lambda: self._line[0] is me or unless())
            yield self._line[0] is me
        finally:
            self._leave(me)

    @contextmanager
    def turn_now(self) -> Iterator[bool]:
        """Hold a turn if nobody else has one; else False. Never waits: signal handlers may call."""
        me = object()
        try:
            with self._changed:
                mine = not self._line
                if mine:
                    self._line.append(me)
            yield mine
        finally:
            self._leave(me)

    def _leave(self, me: object) -> None:
        with self._changed:
            if me in self._line:
                self._line.remove(me)
            self._changed.notify_all()

    def _close(self) -> None:
        with self.turn():
            self._closed_by = threading.get_ident()
            self._line.insert(0, self)  # never to leave

    def _reset(self) -> None:
        # Reentrant, because a signal handler or a finaliser may ask while its thread is in here.
        self._changed = threading.Condition(threading.RLock())
        self._line = []
        self._closed_by = None


_all: WeakSet[Turns] = WeakSet()


@atexit.register
def _close_all() -> None:
    # A daemon thread that comes back from native code into a dying interpreter is killed in a way
    # that C++ does not survive. So the last turn is the main thread's, for good.
    for turns in list(_all):
        turns._close()


def _reset_all() -> None:
    # A forked child has none of the threads that stood in line.
    for turns in list(_all):
        turns._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_all)
