"""Amounts as people read them: decimal units, three digits."""

from __future__ import annotations


def size(count: int) -> str:
    """Bytes: `1.18 GB`, `92.8 kB`, `512 bytes`."""
    return _scaled(count, {"TB": 1e12, "GB": 1e9, "MB": 1e6, "kB": 1e3}) or f"{count} bytes"


def amount(count: int) -> str:
    """A number of things: `2.41 billion`, `5.2 million`, `92,160`."""
    return _scaled(count, {"trillion": 1e12, "billion": 1e9, "million": 1e6}) or f"{count:,}"


def count(number: int, noun: str) -> str:
    """So many of a thing: `1 token`, `20 tokens`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _scaled(count: int, units: dict[str, float]) -> str | None:
    for unit, power in units.items():
        if count >= 0.9995 * power:  # what rounds up to the unit
            return f"{count / power:.3g} {unit}"
    return None
