"""Places for what runs and what waits. Who finds none is told when to come again, at once.

A request has a place from when its body is there (`limits.Bodies`); before, it is only looked
whether there is one, so that nobody keeps places by sending slowly.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from trilobit.serve.errors import ApiError

# What takes places, by POST. Who finds none there is told so before anything is read of him.
ASKING = frozenset(
    {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/embeddings",
        "/v1/messages",
        "/v1/responses",
        "/api/chat",
        "/api/embed",
        "/api/generate",
    }
)
_LONGEST_S = 60


class Queue:
    """places: choices of requests that may be here at a time."""

    def __init__(self, places: int) -> None:
        self.places = places
        self.taken = 0
        self._typical_s = 1.0  # that a place is held

    def check(self, count: int = 1) -> None:
        """ApiError where there are fewer places."""
        if self.taken + count > self.places:
            wait_s = min(_LONGEST_S, max(1, math.ceil(self._typical_s)))
            raise ApiError(
                429,
                f"all {self.places} places are taken; ask again in {wait_s} s",
                code="queue_full",
                headers={"Retry-After": str(wait_s)},
            )

    @contextmanager
    def place(self, count: int = 1) -> Iterator[None]:
        """Hold places; ApiError where there are too few."""
        self.check(count)
        self.taken += count
        started = time.monotonic()
        try:
            yield
        finally:
            self.taken -= count
            self._typical_s += (time.monotonic() - started - self._typical_s) / 16
