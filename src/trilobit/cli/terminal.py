"""Text on a terminal: nothing that a model, a file or an error says may command it."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

import click

# Unicode's pictures of the control characters; ESC is seen as ␛. The second set (C1), which some
# terminals obey too, has no pictures.
_PICTURES = {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\n\t"}
_PICTURES |= {0x7F: 0x2421} | dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


def printable(text: str) -> str:
    """The text with every control character but newline and tab replaced by a picture of it."""
    return text.translate(_PICTURES)


def one_line(text: str) -> str:
    """The text, printable, in one line."""
    return printable(" ".join(text.split()))


def say(text: str) -> None:
    """Print what was found, for people: file names and errors of others may be in it."""
    print(printable(text), flush=True)


def note(text: str, *, dim: bool = True) -> None:
    """Say something beside the output: one line on stderr, dim where the terminal can."""
    color = False if os.environ.get("TERM") == "dumb" or os.environ.get("NO_COLOR") else None
    if sys.stdout is not None:  # what was written before comes before
        sys.stdout.flush()
    with suppress(OSError):  # nobody hears it, which must not change what is done
        click.secho(one_line(text), dim=dim, err=True, color=color)
