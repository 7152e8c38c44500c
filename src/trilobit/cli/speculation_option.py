"""The switch of speculation, for every command that generates."""

from __future__ import annotations

import click

speculation_option = click.option(
    "--speculation/--no-speculation",
    default=None,
    help="Guess ahead where the text repeats itself; the text is the same, and comes sooner. "
    "Default: with models beyond 64 MB.",
)
