"""Stop strings: where an output ends, whatever pieces its text comes in."""

from __future__ import annotations

from collections.abc import Sequence as Items

from trilobit.text.pieces import overlap


class StopStrings:
    """Passes text on and ends it before the stop string that is complete first.

    Shows no part of a stop string, and gives the same whatever pieces the text comes in.
    """

    def __init__(self, stops: Items[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found: str | None = None  # the stop string that ended the text

    @property
    def stopped(self) -> bool:
        """Whether a stop string has ended the text."""
        return self.found is not None

    def add(self, text: str) -> str:
        """The part of the text so far that is certain to be output, and was not given before."""
        self._held += text
        found = [
            (at + len(stop), at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0
        ]
        if found:
            _, cut, self.found = min(found)
            out, self._held = self._held[:cut], ""
            return out
        keep = max((overlap(self._held, stop) for stop in self._stops), default=0)
        cut = len(self._held) - keep
        out, self._held = self._held[:cut], self._held[cut:]
        return out

    def finish(self) -> str:
        """What was held back in vain."""
        out, self._held = self._held, ""
        return out
