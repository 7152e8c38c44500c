"""A reply as it is shown: on a terminal in lines of words, with styles; elsewhere as it is.

What a model says may not command a terminal, so control characters become pictures before
anything else looks at them: the only commands in what is written are the styles put there here.
"""

from __future__ import annotations

import itertools
import os
import shutil
import sys

from trilobit.cli.chat.markdown import Markdown
from trilobit.cli.chat.spans import painted
from trilobit.cli.chat.wrap import Wrap
from trilobit.console import printable


class Reply:
    """Shows one reply. plain: as the model writes it, on a terminal too."""

    def __init__(self, *, plain: bool) -> None:
        self._is_terminal = sys.stdout is not None and sys.stdout.isatty()
        self._shown: list[tuple[str, str]] = []  # styles and texts
        self._markdown: Markdown | None = None
        if self._is_terminal and not plain:
            wrap = Wrap(_width, self._write)
            self._markdown = Markdown(wrap, styled=has_styles(), width=_width)

    def add(self, text: str) -> None:
        """Show what comes next; of what is not sure yet, a little is held back."""
        if self._is_terminal:
            text = printable(text)
        if self._markdown is None:
            self._write(text, "")
        else:
            self._markdown.add(text)
        self._flush()

    def finish(self) -> None:
        """Show what was held back."""
        if self._markdown is not None:
            self._markdown.finish()
        self._flush()

    def _write(self, text: str, style: str) -> None:
        self._shown.append((style, text))

    def _flush(self) -> None:
        runs = itertools.groupby(self._shown, key=lambda item: item[0])
        text = "".join(painted("".join(text for _, text in run), style) for style, run in runs)
        self._shown.clear()
        if text:
            print(text, end="", flush=True)


def has_styles() -> bool:
    """Whether a terminal can and may show styles."""
    return os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")


def _width() -> int:
    return max(1, shutil.get_terminal_size().columns)
