"""`Stream`: the output of one request, piece by piece as its sequence makes it."""

from __future__ import annotations

from collections.abc import Iterator

from trilobit.engine.event import Completion, Event, TokenLogprob, Usage
from trilobit.engine.sequence import Sequence
from trilobit.engine.worker import Worker


class Stream:
    """Text of one request as it comes: iterate over it. `completion` tells what came of it.

    `events` gives token ids too, and is the way for a model without a tokenizer, whose text is
    empty. Leaving it early, or `close`, ends the request.
    """

    def __init__(self, sequence: Sequence, worker: Worker) -> None:
        self._sequence, self._worker = sequence, worker
        self._taken = 0  # characters

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        sequence = self._sequence
        self._worker.run_until(lambda: len(sequence.text) > self._taken or sequence.over)
        piece = sequence.text[self._taken :]
        if piece:
            self._taken += len(piece)
            return piece
        if sequence.error is not None:
            raise sequence.error
        raise StopIteration

    def events(self) -> Iterator[Event]:
        """What comes from here on, as events: text, token ids, and why it ended."""
        sequence, reader = self._sequence, EventReader(self._sequence, taken=self._taken)
        while not reader.ended:
            self._worker.run_until(lambda: reader.has_more)
            if sequence.error is not None:
                raise sequence.error
            event = reader.take()
            self._taken += len(event.text)
            yield event

    def close(self) -> None:
        """End the request if it is not over; what has come is kept in `completion`.

        Never waits, so a signal handler may call it.
        """
        if not self._sequence.over:
            self._worker.abandon([self._sequence])

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_worker"):  # not one whose making was interrupted
            self.close()

    @property
    def completion(self) -> Completion:
        """What has come so far."""
        return self._sequence.completion()

    @property
    def prompt_tokens_done(self) -> int:
        """Tokens of the prompt that are computed by now, or were in the cache."""
        return self._sequence.prompt_tokens_done


class EventReader:
    """Takes what is new of a sequence, from any thread."""

    def __init__(self, sequence: Sequence, *, taken: int = 0) -> None:
        self._sequence = sequence
        self._characters, self._tokens = taken, sequence.prompt_tokens
        self.ended = False

    @property
    def has_more(self) -> bool:
        """Whether `take` would have something to tell."""
        sequence = self._sequence
        return (
            sequence.over
            or len(sequence.text) > self._characters
            or len(sequence.tokens) > self._tokens
        )

    def take(self) -> Event:
        """All that is new; the last event says why the output ended."""
        sequence = self._sequence
        self.ended = sequence.over  # asked first: then nothing can come behind what is read here
        text = sequence.text[self._characters :]
        ids = tuple(sequence.tokens[self._tokens :])
        logprobs: tuple[TokenLogprob, ...] | None = None
        if sequence.request.params.logprobs is not None:
            first = self._tokens - sequence.prompt_tokens
            logprobs = tuple(sequence.logprobs[first : first + len(ids)])
        self._characters += len(text)
        self._tokens += len(ids)
        return Event(
            text=text,
            token_ids=ids,
            logprobs=logprobs,
            finish_reason=(sequence.finish_reason or "aborted") if self.ended else None,
            usage=Usage(
                prompt_tokens=sequence.prompt_tokens,
                cached_tokens=sequence.cached_tokens or 0,
                output_tokens=self._tokens - sequence.prompt_tokens,
            ),
        )
