"""What commands say: results on stdout, notes on stderr, neither of which a terminal obeys."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

import click

from trilobit.console import one_line, printable

NO_MEMORY = "not enough memory; close other programs or take a smaller model"


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
