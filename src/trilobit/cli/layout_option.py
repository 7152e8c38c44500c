"""The layout of a model's ternary weights in memory, for every command that runs a model."""

from __future__ import annotations

import click

layout_option = click.option(
    "--layout",
    type=click.Choice(("2-bit", "1.6-bit", "auto")),
    help="How weights lie in memory; auto takes the faster one. Default: as in the file. What "
    "comes out is the same.",
)
