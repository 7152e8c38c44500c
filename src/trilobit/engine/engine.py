"""The step loop: scheduler, blocks and backend, from queued sequences to new tokens.

For one thread at a time, but for `inbox`. What interrupts a step half-way (Ctrl-C, an exhausted
memory) cannot leave it in a wrong state: the tokens of a sequence are the truth, and everything
else is made anew from them before the next step.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from numpy.typing import NDArray

from trilobit.engine.backend import Backend
from trilobit.engine.batch import Batch
from trilobit.engine.blocks import BlockPool, Store
from trilobit.engine.event import TokenLogprob
from trilobit.engine.pace import Pace
from trilobit.engine.reading import rows_at_once, token_logprobs
from trilobit.engine.scheduler import Scheduler
from trilobit.engine.sequence import Sequence
from trilobit.engine.speculation.drafts import Drafter
from trilobit.errors import FormatError


class Engine:
    """A backend and the sequences that run on it.

    sequences: running at once, at most. speculation: try guesses of the next tokens where they are
    expected to pay; changes no token. budget_s: what a step may take while texts are being written;
    None: any time. store: of blocks, beyond the backend's.

    inbox: sequences to look at before the next step, new ones and such that were abandoned; any
    thread, signal handler or finaliser may append. news: sequences with something new to read, for
    whoever runs the steps.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        sequences: int,
        speculation: bool = False,
        budget_s: float | None = None,
        store: Store | None = None,
    ) -> None:
        self.backend, self._store = backend, store
        self.inbox: deque[Sequence] = deque()
        self.news: deque[Sequence] = deque()
        self.steps = 0  # so far
        self._sequences, self._speculation = sequences, speculation
        self._pace = None if budget_s is None else Pace(budget_s)
        # All that are not over, in the order of their arrival.
        self._live: dict[Sequence, None] = {}
        self._cut_short = False
        self._start_empty()

    @property
    def free_blocks(self) -> int:
        """Blocks that no sequence holds."""
        return self.scheduler.pool.available

    @property
    def has_work(self) -> bool:
        """Whether a step would do something."""
        return bool(self._live or self.inbox)

    def step(self) -> bool:
        """Run one batch and hand out its tokens; False when there was nothing to run.

        What it raises, other than an interrupt, has ended every sequence with the same error.
        """
        try:
            with self._whole():
                self._take_in()
                started = time.perf_counter()
                batch = self._batch()
                if batch is None:
                    return False
                self.backend.forward(batch)
                chosen = self._chosen(batch)
                self._finish(batch, chosen, started)
                self.steps += 1
                return True
        except Exception as error:
            self.fail(error)
            raise

    def take_in(self) -> None:
        """Queue what is new in the inbox, and free what abandoned sequences hold."""
        with self._whole():
            self._take_in()

    def fail(self, error: Exception) -> None:
        """End every sequence with an error; what they hold is freed before the next step."""
        for sequence in [*self._live, *self.inbox]:
            if not sequence.over:
                sequence.error = error
            self.news.append(sequence)
        self._cut_short = True

    def close(self) -> None:
        """Finish what is kept elsewhere; no step comes any more."""
        if self._store is not None:
            self._store.close()

    # ---- a step -------------------------------------------------------------------------------

    def _batch(self) -> Batch | None:
        chunks = self.scheduler.schedule()
        return Batch(chunks, self._drafts(chunks)) if chunks else None

    def _drafts(self, chunks: dict[Sequence, int]) -> dict[Sequence, list[int]]:
        """Guesses of what follows, with room for their keys and values."""
        if not self._drafter:
            return {}
        drafts = self._drafter.draft(chunks, self.backend.batch_tokens - sum(chunks.values()))
        for sequence, draft in drafts.items():
            tokens = len(sequence.tokens)
            del draft[self.scheduler.lend(sequence, tokens + len(draft)) - tokens :]
        return drafts

    def _chosen(self, batch: Batch) -> list[list[int] | Exception]:
        """The next tokens, and what readings want, of the batch that was computed."""
        samplers = [one.sampler for one in batch.asking]
        drafts = batch.drafts_of_asking()
        allowed, failed = self._allowed(batch.asking, drafts)
        chosen = self.backend.choose(samplers, drafts, allowed)
        for number, error in failed.items():
            chosen[number] = error
        for sequence, start, first, count in batch.readings:
            try:
                self._read(sequence, start, first, count)
            except FormatError as error:  # numbers that are none end what they belong to
                sequence.error = error
        return chosen

    def _read(self, sequence: Sequence, start: int, first: int, count: int) -> None:
        assert sequence.reading is not None
        if sequence.wants == "states":
            sequence.reading.take(start, self.backend.states(first, count))
            return
        some = rows_at_once(self.backend.vocab_size)
        for done in range(0, count, some):
            rows = self.backend.logits(first + done, min(some, count - done))
            sequence.reading.take(start + done, rows)

    def _allowed(
        self, asking: list[Sequence], drafts: list[list[int]]
    ) -> tuple[list[NDArray[np.uint32] | None], dict[int, Exception]]:
        """What grammars leave to choose from; and which of them fail, and why."""
        if not any(one.is_bound for one in asking):
            return [], {}
        allowed: list[NDArray[np.uint32] | None] = [None] * len(asking)
        failed: dict[int, Exception] = {}
        for number, (sequence, draft) in enumerate(zip(asking, drafts, strict=True)):
            if sequence.grammar is not None:
                try:
                    allowed[number] = sequence.grammar.allowed(draft)
                except Exception as error:  # ends this sequence only
                    failed[number] = error
        return allowed, failed

    def _finish(self, batch: Batch, chosen: list[list[int] | Exception], started: float) -> None:
        logprobs = self._logprobs(batch, chosen)
        seconds = time.perf_counter() - started
        if self._drafter:
            self._drafter.observe(batch.drafts, seconds)
        self.scheduler.finish(batch, chosen, seconds=seconds, logprobs=logprobs)
        for sequence in batch.asking:
            self.news.append(sequence)
            if sequence.followers:
                self._queue_followers(sequence)
        for sequence in batch.chunks:
            if sequence.over:
                self._retire(sequence)
        self.backend.settle(idle=not self._live)

    def _logprobs(
        self, batch: Batch, chosen: list[list[int] | Exception]
    ) -> dict[Sequence, list[TokenLogprob]] | None:
        """Of the chosen tokens, where they are wanted: a pass over the head for those rows only."""
        if all(one.request.params.logprobs is None for one in batch.asking):
            return None
        wanted: dict[Sequence, list[TokenLogprob]] = {}
        row = 0
        for sequence, tokens in zip(batch.asking, chosen, strict=True):
            count = sequence.request.params.logprobs
            if count is not None and not isinstance(tokens, Exception):
                rows = self.backend.logits(row, len(tokens))
                wanted[sequence] = token_logprobs(rows, tokens, count)
            row += 1 + len(batch.drafts.get(sequence, ()))
        return wanted

    # ---- who is here --------------------------------------------------------------------------

    def _take_in(self) -> None:
        while self.inbox:
            sequence = self.inbox[0]  # it leaves when all is done: an interrupt must not lose it
            if sequence.over:
                self._retire(sequence)
            elif sequence not in self._live:
                for one in (sequence, *sequence.followers):
                    self._live[one] = None
                self._queue(sequence)
            self.inbox.popleft()

    def _queue(self, sequence: Sequence) -> None:
        try:
            if sequence.sampler is None and sequence.reading is None:
                sequence.sampler = self.backend.sampler(sequence.request)
                for token_id in sequence.tokens[sequence.prompt_tokens :]:
                    sequence.sampler.accept(token_id)
        except Exception as error:  # what one request asks for ends that one only
            sequence.error = error
            self._retire(sequence)
            return
        self.scheduler.add(sequence)

    def _queue_followers(self, sequence: Sequence) -> None:
        """Queue those that waited for this one's prompt: they find it in the cache."""
        while sequence.followers:
            follower = sequence.followers[0]
            if not follower.over:
                self._live[follower] = None
                self._queue(follower)
            sequence.followers.pop(0)

    def _retire(self, sequence: Sequence) -> None:
        """Take out a sequence that is over."""
        if sequence in self._live:  # else its blocks, if any, were of a cache that is gone
            self.scheduler.remove(sequence)
        sequence.let_go()
        if self._drafter:
            self._drafter.forget(sequence)
        if sequence.finish_reason is None and sequence.error is None:
            sequence.abort()
        self._queue_followers(sequence)
        self.news.append(sequence)
        self._live.pop(sequence, None)

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """A change of state that is finished, or else made up for before the next one."""
        if self._cut_short:
            self._start_over()
        self._cut_short = True
        yield
        self._cut_short = False

    def _start_over(self) -> None:
        self._start_empty()
        for sequence in list(self._live):
            sequence.followers = []
            if sequence.over:
                if sequence.finish_reason is None and sequence.error is None:
                    sequence.abort()
                self.news.append(sequence)
                del self._live[sequence]
        for sequence in list(self._live):
            sequence.restart()
            sequence.sampler = None
            if sequence.over:  # its last token had come, and what it means was cut short
                self._retire(sequence)
            else:
                self._queue(sequence)

    def _start_empty(self) -> None:
        self.scheduler = Scheduler(
            BlockPool(self.backend.blocks),
            batch_tokens=self.backend.batch_tokens,
            sequences=self._sequences,
            pace=self._pace,
            store=self._store,
        )
        self._drafter = Drafter() if self._speculation else None
