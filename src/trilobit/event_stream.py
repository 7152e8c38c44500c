"""`EventStream`: the output of one request, for tasks; and who wakes the tasks of an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from weakref import ref

from trilobit.engine.event import Completion, Event
from trilobit.engine.sequence import Sequence
from trilobit.engine.worker import Worker
from trilobit.stream import EventReader


class EventStream:
    """The output of one request as it comes: `async for event in stream`.

    `completion` tells what has come so far. Closing or dropping it ends the request.
    """

    def __init__(self, sequence: Sequence, worker: Worker, mailbox: Mailbox) -> None:
        self._sequence, self._worker, self._mailbox = sequence, worker, mailbox
        self._reader = EventReader(sequence)
        mailbox.open(sequence)

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        if self._reader.ended:
            raise StopAsyncIteration
        try:
            while not self._reader.has_more:
                await self._mailbox.news_of(self._sequence)
        except asyncio.CancelledError:
            self.end()
            raise
        if self._sequence.error is not None:
            self._reader.ended = True
            raise self._sequence.error
        return self._reader.take()

    def end(self) -> None:
        """End the request if it is not over; who reads it elsewhere gets what has come."""
        if not self._sequence.over:
            self._worker.abandon([self._sequence])
        self._mailbox.close(self._sequence)

    async def aclose(self) -> None:
        """End the request if it is not over."""
        self.end()
        self._reader.ended = True

    async def __aenter__(self) -> EventStream:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if hasattr(self, "_reader"):  # not one whose making was interrupted
            self.end()

    @property
    def completion(self) -> Completion:
        """What has come so far."""
        return self._sequence.completion()

    @property
    def prompt_tokens_done(self) -> int:
        """Tokens of the prompt that are computed by now, or were in the cache."""
        return self._sequence.prompt_tokens_done


class Mailbox:
    """Wakes the tasks of one event loop when their sequences have news.

    `put` is called on the thread that runs the engine, everything else in the loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = ref(loop)  # which is the key to this, and should not live by it
        self._new: dict[Sequence, None] = {}
        self._called = False  # `_deliver` will come
        self._bells: dict[Sequence, asyncio.Event] = {}

    def open(self, sequence: Sequence) -> None:
        """Let a sequence ring here."""
        sequence.sink = self.put
        self._bells[sequence] = asyncio.Event()

    def close(self, sequence: Sequence) -> None:
        """Its owner listens no more."""
        bell = self._bells.pop(sequence, None)
        if bell is not None:
            bell.set()  # for whoever waits in another task

    async def news_of(self, sequence: Sequence) -> None:
        """Wait until something has come since the last call."""
        bell = self._bells[sequence]
        await bell.wait()
        bell.clear()

    def put(self, sequence: Sequence) -> None:
        """Something is new of a sequence."""
        self._new[sequence] = None
        if not self._called:
            self._called = True
            try:
                loop = self._loop()
                if loop is None:
                    raise RuntimeError("the event loop is gone")
                loop.call_soon_threadsafe(self._deliver)
            except RuntimeError:  # it was closed: every sequence of it shall hear that
                self._called = False
                raise

    def _deliver(self) -> None:
        self._called = False  # first: what comes from here on calls again
        while self._new:
            sequence, _ = self._new.popitem()
            if sequence.over:
                self.close(sequence)
            elif sequence in self._bells:
                self._bells[sequence].set()
