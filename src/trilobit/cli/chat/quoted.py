"""Messages of several lines: what stands between two lines of three quotes."""

from __future__ import annotations

_QUOTES = '"""'


def is_open(text: str) -> bool:
    """Whether a message begins with three quotes, and no others have come yet."""
    begun = text.lstrip()
    return begun.startswith(_QUOTES) and _QUOTES not in begun[len(_QUOTES) :]


def is_closed(line: str) -> bool:
    """Whether a line ends an open message."""
    return line.rstrip().endswith(_QUOTES)


def unquoted(text: str) -> str | None:
    """What stands between the quotes; None where a message is not between quotes."""
    inner, size = text.strip(), len(_QUOTES)
    if len(inner) < 2 * size or not (inner.startswith(_QUOTES) and inner.endswith(_QUOTES)):
        return None
    return inner[size:-size].strip("\n")
