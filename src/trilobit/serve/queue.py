"""Places for what runs and what waits. Who finds none is told when to come again, at once."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager

from trilobit.serve.errors import ApiError

_LONGEST_S = 60


class Queue:
    """places: choices of requests that may be here at a time."""

    def __init__(self, places: int) -> None:
        self.places = places
        self.taken = 0
        self._typical_s = 1.0  # that a place is held

    @contextmanager
    def place(self, count: int) -> Iterator[None]:
        """Hold places; ApiError where there are too few."""
        if count > self.places:
            raise ApiError(
                400, f"n is {count}; this server has {self.places} places in all", param="n"
            )
        if self.taken + count > self.places:
            wait_s = min(_LONGEST_S, max(1, math.ceil(self._typical_s)))
            raise ApiError(
                429,
                f"all {self.places} places are taken; ask again in {wait_s} s",
                code="queue_full",
                headers={"Retry-After": str(wait_s)},
            )
        self.taken += count
        started = time.monotonic()
        try:
            yield
        finally:
            self.taken -= count
            self._typical_s += (time.monotonic() - started - self._typical_s) / 16
