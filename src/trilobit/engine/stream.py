"""`Stream`: the text of one request, piece by piece as its sequence makes it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from .sequence import Completion, Sequence


class Stream:
    """Text of one request as it comes: iterate over it. `completion` tells what came of it.

    Leaving it early, or `close`, ends the request. run_until: run steps until something is so.
    abandon: end sequences; never waits.
    """

    def __init__(
        self,
        sequence: Sequence,
        *,
        run_until: Callable[[Callable[[], bool]], None],
        abandon: Callable[[list[Sequence]], None],
    ) -> None:
        self._sequence, self._run_until, self._abandon = sequence, run_until, abandon
        self._taken = 0  # characters

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        sequence = self._sequence
        self._run_until(lambda: len(sequence.text) > self._taken or sequence.over)
        piece = sequence.text[self._taken :]
        if piece:
            self._taken += len(piece)
            return piece
        if sequence.error is not None:
            raise sequence.error
        raise StopIteration

    def close(self) -> None:
        """End the request if it is not over; what has come is kept in `completion`.

        Never waits, so a signal handler may call it.
        """
        if not self._sequence.over:
            self._abandon([self._sequence])

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    @property
    def completion(self) -> Completion:
        """What has come so far."""
        return self._sequence.completion()
