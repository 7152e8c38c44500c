"""`trilobit train report`: curves of runs side by side, as one page."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from trilobit.cli.command import Command
from trilobit.cli.path import FilePath


@click.command(
    "report",
    cls=Command,
    examples=[
        ("trilobit train report runs/stories runs/stories-float", "Side by side, in report.html."),
    ],
)
@click.argument("runs", metavar="RUN...", nargs=-1, required=True, type=FilePath())
@click.option(
    "--out",
    metavar="FILE",
    default="report.html",
    show_default=True,
    type=FilePath(),
    help="The page; what is there is replaced.",
)
def command(runs: tuple[Path, ...], out: Path) -> None:
    """Show the curves of one or several RUNs, folders of `trilobit train`, as one HTML page."""
    from trilobit.errors import FormatError, OutputError
    from trilobit.formats.whole_file import WholeFile
    from trilobit.train.report import is_page, page

    if out.is_file() and not is_page(out):
        raise OutputError(f"{out}: holds no page; --out replaces pages only, name another file")

    def left_out(error: FormatError) -> None:
        print(f"left out: {error}", file=sys.stderr)

    data = page(runs, left_out).encode("utf-8", "replace")
    with WholeFile(out, data, len(data)):
        pass
    print(f"report: {out}", file=sys.stderr)
