"""Who runs the steps of an engine: whoever waits for one, or a thread when nobody waits.

A caller that waits runs the steps himself, for everybody: handing each of them to another thread
would cost a small model a good part of its 0.2 ms. Those that wait beside him sleep until what
they wait for is there, or until he leaves and the first in line goes on. Sequences with a sink are
waited for by a daemon thread, which stands in the same line while there are any.

Nothing here takes a lock that a signal handler or a finaliser could meet half taken: the line is a
list, whose first caller has the turn; everything that others may do at any time is one append.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Callable, Iterable
from contextlib import suppress
from weakref import WeakSet

from trilobit.engine.engine import Engine
from trilobit.engine.sequence import Sequence
from trilobit.errors import EngineError, RequestError, TrilobitError

_LOG = logging.getLogger("trilobit")

# Who is woken comes at once. Ctrl-C can land in the few lines that wake the next one, though: then
# those in line look for themselves.
_LOOK_AGAIN_S = 0.25


class _Caller:
    """Somebody in line."""

    def __init__(self, done: Callable[[], bool]) -> None:
        self.done = done
        self._bell = threading.Lock()  # rung by releasing it: a semaphore of one, without a lock
        self._bell.acquire()

    def wait(self) -> None:
        """Sleep until `wake`, or for a while."""
        self._bell.acquire(timeout=_LOOK_AGAIN_S)

    def wake(self) -> None:
        """Have `wait` return, now or when it is next called."""
        with suppress(RuntimeError):  # rung already
            self._bell.release()


class Worker:
    """The line in front of one engine, and the thread that stands in it for sinks."""

    def __init__(self, engine: Engine) -> None:
        self._engine: Engine | None = engine
        self._fault: str | None = None  # what it died of
        self._starting = threading.Lock()
        self._reset()
        _all.add(self)

    def _reset(self) -> None:
        self._line: list[_Caller] = []  # the first has the turn
        self._at_work: _Caller | None = None
        self._last: int | None = None  # the thread whose turn lasts to the end of the process
        self._thread: threading.Thread | None = None
        self._heard: dict[Sequence, None] = {}  # those with sinks that are not over

    @property
    def engine(self) -> Engine:
        """The engine; RequestError after `close`."""
        if self._fault is not None:
            raise EngineError(self._fault)
        if self._engine is None:
            raise RequestError("the model was closed; open it again")
        return self._engine

    @property
    def is_closed(self) -> bool:
        """Whether nothing runs here any more."""
        return self._engine is None

    def submit(self, sequences: Iterable[Sequence]) -> None:
        """Queue sequences. Never waits; those with a sink are run by a thread."""
        engine = self.engine
        heard = False
        for sequence in sequences:
            if sequence.sink is not None:
                for one in (sequence, *sequence.followers):
                    self._heard[one] = None
                heard = True
            engine.inbox.append(sequence)
        if heard:
            self._start()
        if self._engine is None:  # closed meanwhile, by another thread
            self._end_all(engine, _closed())

    def abandon(self, sequences: Iterable[Sequence]) -> None:
        """End sequences that are not over. Never waits, so signal handlers and finalisers may."""
        engine = self._engine
        if engine is None:
            return
        for sequence in sequences:
            sequence.abandoned = True
            engine.inbox.append(sequence)
        self._sweep()

    def run_until(self, done: Callable[[], bool]) -> None:
        """Run steps until something is so, or let another caller run them."""
        me = _Caller(done)
        try:
            self._line.append(me)
            while not done():
                if self._has_turn(me):
                    self._step(me)
                else:
                    me.wait()
        finally:
            # Nothing of Python's is called before: Ctrl-C cannot come in between, and leave behind
            # a caller that never goes on.
            try:  # noqa: SIM105
                self._line.remove(me)
            except ValueError:  # a forked child, which has begun a line of its own
                pass
            self._wake_first()
            self._sweep()

    def run(self, sequences: Iterable[Sequence]) -> None:
        """Run sequences to their ends."""
        left = [*sequences][::-1]

        def done() -> bool:
            while left and left[-1].over:
                left.pop()
            return not left

        self.run_until(done)

    def close(self) -> None:
        """End all that runs, with an error, and let go of the engine."""
        self._end(_closed())

    def _end(self, error: TrilobitError) -> None:
        engine = self._engine
        if engine is None:
            return
        self._engine = None  # nothing more comes in
        me = _Caller(lambda: False)
        try:
            self._line.append(me)
            while not self._has_turn(me):
                me.wait()
            self._end_all(engine, error)
            engine.close()
        finally:
            self._line.remove(me)
            self._wake_first()

    # ---- the line -----------------------------------------------------------------------------

    def _has_turn(self, me: _Caller) -> bool:
        if self._last is not None:
            return self._last == threading.get_ident()
        return self._line[0] is me

    def _wake_first(self) -> None:
        for other in self._line[:1]:
            other.wake()

    def _step(self, me: _Caller) -> None:
        """Run a step, tell sinks, and wake those who have what they waited for."""
        worked = True
        try:
            # First this, then another look: `_close_at_exit` does it the other way round, so that
            # one of the two sees the other.
            self._at_work = me
            if not self._has_turn(me):
                return
            engine = self.engine
            worked = engine.step()
        except Exception:
            # Every sequence has the error, and its caller raises it.
            if not me.done():
                raise
        finally:
            self._at_work = None
        self._tell(self._engine)
        for other in self._line[1:]:
            if other.done():
                other.wake()
        assert worked or me.done(), "a caller waits for what nobody computes"

    def _sweep(self) -> None:
        """Take in what was abandoned, now or, if another caller has the turn, in his next step."""
        engine = self._engine
        # Who has the turn looks here once more after leaving.
        while engine is not None and engine.inbox and not self._line:
            me = _Caller(lambda: True)
            try:
                self._line.append(me)
                if self._line[0] is not me or self._last is not None or self._at_work is not None:
                    return
                engine.take_in()
                self._tell(engine)
            finally:
                self._line.remove(me)
                self._wake_first()

    def _tell(self, engine: Engine | None) -> None:
        while engine is not None and engine.news:
            sequence = engine.news[0]  # it leaves when its owner knows: see `Engine._take_in`
            if sequence.sink is not None:
                try:
                    sequence.sink(sequence)
                except Exception:  # its owner is gone, with an event loop that was closed
                    if not sequence.over:
                        sequence.abandoned = True
                        engine.inbox.append(sequence)
                if sequence.over:
                    self._heard.pop(sequence, None)
            engine.news.popleft()

    def _end_all(self, engine: Engine, error: TrilobitError) -> None:
        engine.fail(error)
        with suppress(Exception):
            engine.take_in()
        self._tell(engine)
        for other in self._line:
            other.wake()

    # ---- the thread ---------------------------------------------------------------------------

    def _start(self) -> None:
        with self._starting:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._serve, name="trilobit", daemon=True)
                self._thread.start()

    def _serve(self) -> None:
        """Run steps while somebody listens."""
        while True:
            # What a step raises, its sequences tell.
            try:
                with suppress(Exception):
                    self.run_until(lambda: not self._heard)
            except BaseException as error:  # it is being killed, and those who wait shall know
                self._fault = (
                    f"the thread that runs the model was killed ({type(error).__name__}); start "
                    "the program again"
                )
                _LOG.critical(self._fault)
                self._end(EngineError(self._fault))
                return
            with self._starting:
                if not self._heard:
                    self._thread = None
                    return

    # ---- the end of the process, and its children ---------------------------------------------

    def _close_at_exit(self) -> None:
        me = _Caller(lambda: False)
        self._line.insert(0, me)
        while self._at_work is not None and self._at_work is not me:
            me._bell.acquire(timeout=0.001)
        self._last = threading.get_ident()

    def _lose_listeners(self) -> None:
        """Drop what is for event loops, which a forked child has no threads for."""
        for sequence in self._heard:
            sequence.sink, sequence.abandoned = None, True
            if self._engine is not None:
                self._engine.inbox.append(sequence)


def _closed() -> RequestError:
    return RequestError("the model was closed while it ran; open it again")


_all: WeakSet[Worker] = WeakSet()


@atexit.register
def _close_all() -> None:
    # A daemon thread that comes back from native code into a dying interpreter is killed in a way
    # that C++ does not survive. So the last turn is the main thread's, for good.
    for worker in list(_all):
        worker._close_at_exit()


def _reset_all() -> None:
    # A forked child has none of the threads that stood in line.
    for worker in list(_all):
        worker._lose_listeners()
        worker._starting = threading.Lock()
        worker._reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_all)
