"""`trilobit list`: the models that are here, and the names of those that could be."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click

from trilobit.cli.command import Command


@click.command(
    "list",
    cls=Command,
    examples=[
        ("trilobit list", "What is here, and how large."),
        ("trilobit list --names", "Published models, and what they need."),
    ],
)
@click.option("--names", is_flag=True, help="Show the models that have a short name.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(names: bool, as_json: bool) -> None:
    """Show every model that is here: its size, what is kept of its download, and its state.

    --names shows those with a short name instead, here or not: SIZE is that of the packed file, RAM
    what running it takes with 2,048 tokens, about. A question mark is what we do not know.
    """
    if names:
        _names(as_json)
        return
    from trilobit.cli.units import size
    from trilobit.console import one_line
    from trilobit.hub.shelf import shelf

    held = shelf()
    if as_json:
        print(json.dumps([item.as_dict() for item in held]))
        return
    rows = [("NAME", "PACKED", "DOWNLOAD", "SOURCE", "STATE")]
    for item in held:
        download = size(item.download_bytes) if item.download_bytes else "-"
        source = f"{item.source} at {item.commit[:7]}" if item.commit else item.source
        cells = (item.name, size(item.size_bytes), download, source, item.state)
        name, packed, down, source, state = map(one_line, cells)
        rows.append((name, packed, down, source, state))
    _print(rows)


def _names(as_json: bool) -> None:
    from trilobit.cli.published import HEADER, named_models

    if as_json:
        print(json.dumps([model.as_dict() for model in named_models()]))
    else:
        _print([HEADER, *(model.row() for model in named_models())])


def _print(rows: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print(
            "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        )
