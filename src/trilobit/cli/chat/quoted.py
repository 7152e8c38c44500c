"""Messages of several lines: what stands between two lines of three quotes."""

from __future__ import annotations

_QUOTES = '"""'


def is_open(text: str) -> bool:
    """Whether a message begins with three quotes and does not end with them yet."""
    begun = text.lstrip()
    return begun.startswith(_QUOTES) and unquoted(text) is None


def unquoted(text: str) -> str | None:
    """What stands between the quotes; None where a message is not between quotes."""
    inner = text.strip()
    if (
        len(inner) < 2 * len(_QUOTES)
        or not inner.startswith(_QUOTES)
        or not inner.endswith(_QUOTES)
    ):
        return None
    return inner[len(_QUOTES) : -len(_QUOTES)].strip("\n")
