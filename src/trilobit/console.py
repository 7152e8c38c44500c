"""What is told on a terminal: text that may not command it, and bars for what takes long."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from trilobit.progress import Progress, Unit

if TYPE_CHECKING:
    from rich.progress import Progress as Drawing

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


def has_terminal() -> bool:
    """Whether somebody sees what goes to stderr, and it can be drawn on."""
    is_terminal = getattr(sys.stderr, "isatty", None)  # None and what programs put there have none
    return is_terminal is not None and is_terminal() and os.environ.get("TERM") != "dumb"


class Bars:
    """Draws on the terminal what it is told (a `Watch`), while it is open; elsewhere nothing.

    One bar at a time, gone when its thing is done, so that logs and pipes stay clean.
    """

    def __init__(self) -> None:
        self._what: str | None = None
        self._drawing: Drawing | None = None

    def __enter__(self) -> Bars:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def __call__(self, progress: Progress) -> None:
        """Show how far it is."""
        if not has_terminal():
            return
        if progress.what != self._what:
            self._stop()
            self._what = progress.what
            self._drawing = _drawing(progress.unit)
            self._drawing.add_task(one_line(progress.what), total=progress.total)
            self._drawing.start()
        if self._drawing is not None:
            words = one_line(f"{progress.what} {progress.note}".rstrip())
            task = self._drawing.task_ids[0]
            self._drawing.update(task, completed=progress.done, description=words)
            if progress.done >= progress.total:
                self._stop()

    def _stop(self) -> None:
        if self._drawing is not None:
            self._drawing.stop()
            self._drawing = None


def _drawing(unit: Unit) -> Drawing:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        ProgressColumn,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Drawing

    columns: list[ProgressColumn] = [TextColumn("{task.description}", markup=False), BarColumn()]
    if unit == "bytes":
        columns += [DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()]
    else:
        columns += [TaskProgressColumn()]
    return Drawing(*columns, console=Console(stderr=True), transient=True)
