"""`trilobit rm`: give the disk back what a model took."""

from __future__ import annotations

import sys

import click

from trilobit.cli.command import Command
from trilobit.cli.options import model_argument


@click.command(
    "rm",
    cls=Command,
    examples=[
        ("trilobit rm bitnet-2b", "Asks about the download."),
        ("trilobit rm --all bitnet-2b", "All of it."),
    ],
)
@model_argument(here=True)
@click.option("--all", "everything", is_flag=True, help="Delete its download too.")
@click.option("--packed", "packed_only", is_flag=True, help="Keep its download, do not ask.")
def command(model: str, everything: bool, packed_only: bool) -> None:
    """Delete the packed file that was made of MODEL.

    The download lies in the cache of huggingface_hub, where other programs may use it: it is
    deleted with --all, or when you say so. A file or checkpoint of your own is never deleted.
    """
    if everything and packed_only:
        raise click.UsageError("give --all or --packed, not both")
    from trilobit.cli.terminal import say
    from trilobit.cli.units import size
    from trilobit.hub.shelf import find, remove, remove_download

    held = find(model)
    freed = remove(held)
    if freed:
        say(f"{held.name}: packed file deleted, {size(freed)} freed")
    if not held.download_bytes or packed_only:
        return
    if not everything and sys.stdin is not None and sys.stdin.isatty() and sys.stdout.isatty():
        everything = click.confirm(
            f"Delete its download too ({size(held.download_bytes)}, shared with other programs)?"
        )
    if everything:
        say(f"{held.name}: download deleted, {size(remove_download(held))} freed")
    else:
        say(
            f"its download stays ({size(held.download_bytes)}); "
            f"`trilobit rm --all {held.name}` deletes it"
        )
