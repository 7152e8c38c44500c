"""What keys and values are kept as, for every command that runs a model."""

from __future__ import annotations

import click

kv_option = click.option(
    "--kv-dtype",
    type=click.Choice(("f16", "f32", "i8")),
    default="f16",
    show_default=True,
    help="What the cache keeps keys and values as; i8 is half of f16, and faster when it is long.",
)
