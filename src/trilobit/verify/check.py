"""One thing that was checked, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Check:
    """A row of the result."""

    name: str
    passed: bool | None  # None: could not be checked
    found: str  # in words, with numbers
