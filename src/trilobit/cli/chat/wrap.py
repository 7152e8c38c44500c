"""Lines of words for a terminal, from pieces of text as they come.

What a terminal shows is clusters: a letter with its accents, an emoji of seven characters, a flag.
Each takes no, one or two columns, and none is ever cut.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

from wcwidth import iter_graphemes, wcswidth

Write = Callable[[str, str], None]

_TAB = 8  # columns from stop to stop
# Characters of a cluster, which may go on: real ones have a dozen, and what never ends is no text.
_LONGEST_CLUSTER = 64


def columns(text: str, column: int = 0) -> int:
    """Where a text of one line ends that begins in a column."""
    if text.isascii() and text.isprintable():
        return column + len(text)
    for cluster in iter_graphemes(text):
        column += _TAB - column % _TAB if cluster == "\t" else max(0, wcswidth(cluster))
    return column


class Wrap:
    """Begins a new line before a word that does not fit into the last one.

    width: columns there are, asked anew for every word: windows change. Words wider than that are
    left to the terminal. write: gets what to show now, and its style.
    indent: columns left free in the lines begun here.
    """

    def __init__(self, width: Callable[[], int], write: Write) -> None:
        self._ask, self._write = width, write
        self._width = width()
        self._column = 0
        self._spaces = ""  # behind the last word, not shown yet
        self._word: list[tuple[str, str]] = []  # clusters and their styles, not shown yet
        self._word_columns = 0
        self._overlong = False  # the word's beginning has filled a line
        self._tail, self._style = "", ""  # the last cluster, which may go on
        self.indent = 0

    def add(self, text: str, style: str = "") -> None:
        """Take what comes next; a word that may go on is held back."""
        if style != self._style:
            self._take(self._tail)
            self._tail, self._style = "", style
        clusters = [*iter_graphemes(self._tail + text)]
        self._tail = ""
        if clusters and clusters[-1] != "\n" and len(clusters[-1]) < _LONGEST_CLUSTER:
            self._tail = clusters.pop()
        for cluster in clusters:
            self._take(cluster)
        if self._tail in (" ", "\t"):  # whatever it becomes, it is not of the word before it
            self._place()

    def verbatim(self, text: str, style: str = "") -> None:
        """Show what stays in its lines, such as code, at once."""
        self.finish()
        self._write(text, style)
        line = text.rpartition("\n")[2]
        # Of what is wider than the window, only where the last line ends would count.
        self._column = columns(line, self._column if line == text else 0)

    def finish(self) -> None:
        """Show what was held back."""
        self._take(self._tail)
        self._tail = ""
        self._place()
        if self._spaces and columns(self._spaces, self._column) <= self._width:
            self._show_spaces()
        self._spaces = ""

    def _take(self, cluster: str) -> None:
        if cluster == "\n":
            self._end_line()
        elif cluster in (" ", "\t"):
            self._place()
            self._overlong = False
            self._spaces += cluster
        elif cluster:
            wide = columns(cluster)
            self._word.append((cluster, self._style))
            self._word_columns += wide
            # Scripts without spaces break anywhere; so does what fills a line by itself.
            if wide > 1 or self._word_columns >= self._width or self._overlong:
                self._place(ends=wide > 1)

    def _end_line(self) -> None:
        self.finish()
        self._write("\n", "")
        self._column, self._overlong = 0, False

    def _place(self, *, ends: bool = True) -> None:
        """Show the word. ends: a line may break behind it."""
        if not self._word:
            return
        self._width = room = self._ask()
        begin = columns(self._spaces, self._column)
        fits = begin + self._word_columns <= room
        if fits or self._column <= min(self.indent, room // 2):
            self._show_spaces()
        elif not self._overlong or self._word_columns > 1:
            indent = min(self.indent, room // 2)
            self._write("\n" + " " * indent, "")
            self._column = indent
        for style, run in itertools.groupby(self._word, key=lambda item: item[1]):
            self._write("".join(cluster for cluster, _ in run), style)
        # A word wider than the line: the terminal goes on in the next one.
        end = self._column + self._word_columns
        self._column = end if end <= room else (end - 1) % room + 1
        self._spaces, self._word, self._word_columns = "", [], 0
        self._overlong = not ends

    def _show_spaces(self) -> None:
        if self._spaces:
            self._write(self._spaces, "")
            self._column = columns(self._spaces, self._column)
            self._spaces = ""
