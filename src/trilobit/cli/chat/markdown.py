"""Markdown on a terminal, as it comes: words of a paragraph one by one, a table when it is whole.

Of each line, as much is held back as it takes to know what it is. What a terminal has no better
form for stays as the model wrote it: the marks of lists and quotes, links, rules, formulas.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from trilobit.cli.chat.spans import BOLD, CODE, Spans
from trilobit.cli.chat.table import draw
from trilobit.cli.chat.wrap import Wrap, columns

_DIM, _TITLE = "2", "1;4"

_LONGEST_MARK = 80  # characters of a line that may still be anything
_LONGEST_FENCE = 200
_LONGEST_TABLE = 20_000
_CODE_INDENT = 4  # columns

_UNDECIDED = re.compile(r"[\s#>*+\-_=~`|.)\d]*")
_FENCE = re.compile(r"\s*(`{3,}(?=[^`]*$)|~{3,})")
_HEADING = re.compile(r" {0,3}(#{1,6})\s+(?=\S)")
_RULE = re.compile(r" {0,3}(?:(?:-\s*){3,}|(?:\*\s*){3,}|(?:_\s*){3,})")
_ITEM = re.compile(r"\s*(?:[-*+]|\d{1,9}[.)])\s+(?=\S)")
_QUOTE = re.compile(r" {0,3}(?:>\s?)+")
_DELIMITER = re.compile(r"\s*\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*")


class Markdown:
    """Gives text to `wrap`, with styles in place of marks.

    styled: else all marks stay, and only code and the indents of lists are heeded.
    width: columns there are.
    """

    def __init__(self, wrap: Wrap, *, styled: bool, width: Callable[[], int]) -> None:
        self._wrap, self._styled, self._width = wrap, styled, width
        self._held = ""  # of a line that may still be anything
        self._line: Callable[[str], None] | None = None  # takes the rest of one that is known
        self._spans: Spans | None = None  # of that line
        self._fence = ""  # that ends the code
        self._table: list[str] = []
        self._in_list = False

    def add(self, text: str) -> None:
        """Take what comes next."""
        for part in re.findall(r"[^\n]+|\n", text):
            if part == "\n":
                self._end_line()
            elif self._line is not None:
                self._line(part)
            else:
                self._held += part
                if not self._is_undecided():
                    self._decide(ended=False)

    def finish(self) -> None:
        """Show what was held back."""
        if self._held:
            self._decide(ended=True)
        self._end_text()
        self._show_table(ended=False)
        self._wrap.finish()

    # ---- what a line is -----------------------------------------------------------------------

    def _is_undecided(self) -> bool:
        line = self._held
        begun = line.lstrip()
        if self._fence:
            return len(line) < _LONGEST_FENCE and set(begun) <= {self._fence[0]}
        if self._styled and begun.startswith("|"):
            return len(line) < _LONGEST_TABLE
        if begun.startswith(("```", "~~~")):
            return len(line) < _LONGEST_FENCE
        return len(line) < _LONGEST_MARK and _UNDECIDED.fullmatch(line) is not None

    def _decide(self, *, ended: bool) -> None:
        line, self._held = self._held, ""
        if self._fence:
            self._go_on_with_code(line, ended)
        elif self._styled and ended and line.lstrip().startswith("|"):
            self._add_row(line)
        else:
            self._show_table(ended=True)
            self._begin(line, ended)

    def _go_on_with_code(self, line: str, ended: bool) -> None:
        mark = line.strip()
        if ended and mark.startswith(self._fence) and set(mark) == {self._fence[0]}:
            self._fence = ""
            self._verbatim(line, _DIM)
        else:
            self._verbatim(line, CODE)

    def _begin(self, line: str, ended: bool) -> None:
        indent = len(line) - len(line.lstrip())
        wide = columns(line[:indent])
        self._in_list = self._in_list and (wide > 0 or not line)
        fence = _FENCE.match(line) if ended else None
        if fence is not None:
            self._fence = fence[1]
            self._verbatim(line, _DIM)
        elif ended and _RULE.fullmatch(line):
            self._verbatim(line, _DIM)
        elif self._styled and (heading := _HEADING.match(line)):
            self._text(line[heading.end() :], _TITLE if heading[1] == "#" else BOLD)
        elif item := _ITEM.match(line):
            self._in_list = True
            self._marked(line, item.end())
        elif quote := _QUOTE.match(line):
            self._marked(line, quote.end())
        elif wide >= _CODE_INDENT and not self._in_list:
            self._verbatim(line, CODE)
        elif self._in_list:
            self._marked(line, indent)
        else:
            self._text(line)

    # ---- how it is shown ----------------------------------------------------------------------

    def _verbatim(self, line: str, style: str) -> None:
        style = style if self._styled else ""
        self._line = lambda text: self._wrap.verbatim(text, style)
        self._line(line)

    def _marked(self, line: str, end: int) -> None:
        """Text behind a mark or spaces, under which its other lines begin."""
        self._wrap.add(line[:end])
        self._wrap.indent = columns(line[:end])
        self._text(line[end:])

    def _text(self, text: str, style: str = "") -> None:
        if self._styled:
            self._spans = Spans(self._wrap.add, style)
            self._line = self._spans.add
        else:
            self._line = self._wrap.add
        self._line(text)

    def _end_text(self) -> None:
        if self._spans is not None:
            self._spans.finish()
        self._spans = self._line = None

    def _end_line(self) -> None:
        if self._line is None:
            self._decide(ended=True)
            if self._line is None:  # a row, which waits for the others
                return
        self._end_text()
        self._wrap.add("\n")
        self._wrap.indent = 0

    # ---- tables -------------------------------------------------------------------------------

    def _add_row(self, line: str) -> None:
        second = len(self._table) == 1
        size = sum(map(len, self._table))
        if (second and not _DELIMITER.fullmatch(line)) or size > _LONGEST_TABLE:
            self._show_table(ended=True)
        self._table.append(line)

    def _show_table(self, *, ended: bool) -> None:
        """Show the rows that wait. ended: the last of them has come whole."""
        rows, self._table = self._table, []
        if len(rows) > 1 and (drawn := draw(rows, self._width())):
            self._wrap.verbatim(drawn)
            rows = []
            if ended:
                self._wrap.add("\n")
        for row in rows:
            self._text(row)
            self._end_text()
            if ended or row is not rows[-1]:
                self._wrap.add("\n")
