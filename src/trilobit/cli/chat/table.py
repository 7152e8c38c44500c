"""A table of Markdown, drawn in the columns that there are."""

from __future__ import annotations

import io
import re
import sys
from typing import TYPE_CHECKING

from trilobit.cli.chat.spans import BOLD, Spans, painted

if TYPE_CHECKING:
    from rich.text import Text

_NARROWEST = 6  # columns of a terminal for one of the table, that can still be read
_BETWEEN = re.compile(r"(?<!\\)\|")
_BREAK = re.compile(r"<br ?/?>", re.IGNORECASE)


def draw(rows: list[str], width: int) -> str | None:
    """The lines of a table: a head, a row of dashes, others. None where they would not fit.

    Nothing of a cell is lost: what HTML would hide is shown.
    """
    head, dashes, *others = map(_cells, rows)
    count = max(len(head), *map(len, [dashes, *others]))
    if count * _NARROWEST > width:
        return None
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    table = Table(box=SIMPLE, show_edge=False, pad_edge=False)
    for number in range(count):
        dash = dashes[number] if number < len(dashes) else ""
        ends = dash.startswith(":"), dash.endswith(":")
        table.add_column(
            _text(head[number], BOLD) if number < len(head) else "",
            justify="center" if all(ends) else "right" if ends[1] else "left",
            overflow="fold",
        )
    for row in others:
        table.add_row(*map(_text, row))
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"  # which may lack lines
    page = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="replace", newline="\n")
    console = Console(file=page, width=width, force_terminal=True, color_system="standard")
    console.print(table)
    page.seek(0)
    return page.read().rstrip("\n")


def _cells(row: str) -> list[str]:
    line = row.strip().removeprefix("|")
    cells = _BETWEEN.split(line)
    if len(cells) > 1 and not cells[-1]:
        cells.pop()
    return [_BREAK.sub("\n", cell.strip().replace("\\|", "|")) for cell in cells]


def _text(cell: str, style: str = "") -> Text:
    from rich.text import Text

    parts: list[str] = []
    spans = Spans(lambda text, own: parts.append(painted(text, own)), style)
    spans.add(cell)
    spans.finish()
    return Text.from_ansi("".join(parts))
