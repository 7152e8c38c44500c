"""How far something is that takes long: one type, from whoever works to whoever watches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

Unit = Literal["steps", "bytes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """`done` of `total` of one thing, told again and again until they are equal.

    what: in words, such as "Packing org/name". unit: what is counted: bytes, or steps of any kind.
    note: what else is known by now, such as a value that is being measured.
    """

    what: str
    done: int
    total: int
    unit: Unit = "steps"
    note: str = ""


Watch = Callable[[Progress], None]
Steps = Callable[[int, int], None]  # done, total


def steps(watch: Watch | None, what: str) -> Steps | None:
    """What tells `watch` how many steps of `what` are done; None if nobody watches."""
    if watch is None:
        return None
    return lambda done, total: watch(Progress(what=what, done=done, total=total))


class Transfer:
    """Counts the bytes of one thing, and tells `watch` after each piece."""

    def __init__(self, watch: Watch | None, what: str, size_bytes: int) -> None:
        self._watch, self._what, self._size_bytes = watch, what, size_bytes
        self._done = 0

    def advance(self, size_bytes: int) -> None:
        """So many bytes more are done."""
        self._done += size_bytes
        if self._watch is not None:
            self._watch(
                Progress(what=self._what, done=self._done, total=self._size_bytes, unit="bytes")
            )


def named(watch: Watch | None, what: str) -> Watch | None:
    """`watch`, told of everything by another name."""
    if watch is None:
        return None
    return lambda progress: watch(replace(progress, what=what))
