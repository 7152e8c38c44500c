"""Markdown within a line: what is bold, italic, struck out or code, as soon as that is sure."""

from __future__ import annotations

import re

from trilobit.cli.chat.wrap import Write

BOLD, CODE, ITALIC, STRUCK = "1", "36", "3", "9"

# Characters between marks: what is longer is taken for text, so that no mark holds a reply back.
_LONGEST = 400
_MARK = re.compile(r"[*_`~\\]")
# A mark opens before a character and closes behind one. Between letters and digits, one star or
# any underscores mean themselves (2*3*4, snake_case), and so do those of `__init__`.
_LETTER = r"0-9A-Za-z"
_SPANS = (
    (re.compile(r"(`+)(?!`)(?P<inner>.+?)(?<!`)\1(?!`)"), CODE),
    (re.compile(r"\*{3}(?=[^\s*])(?P<inner>.+?)(?<=\S)\*{3}(?!\*)"), f"{BOLD};{ITALIC}"),
    (re.compile(r"\*\*(?=[^\s*])(?P<inner>.+?)(?<=\S)\*\*(?!\*)"), BOLD),
    (re.compile(rf"\*(?=[^\s*])(?P<inner>.+?)(?<=[^\s*])\*(?![*{_LETTER}])"), ITALIC),
    (re.compile(r"__(?![a-z0-9_]+__)(?=[^\s_])(?P<inner>.+?)(?<=[^\s_])__(?!\w)"), BOLD),
    (re.compile(r"_(?=[^\s_])(?P<inner>.+?)(?<=[^\s_])_(?!\w)"), ITALIC),
    (re.compile(r"~~(?=[^\s~])(?P<inner>.+?)(?<=[^\s~])~~(?!~)"), STRUCK),
)
_ESCAPE = re.compile(r"\\(?P<inner>[*_`~#])")  # not \( and \[, which begin formulas


def painted(text: str, style: str) -> str:
    """A harmless text with the commands of a terminal that give it its style."""
    return f"\x1b[{style}m{text}\x1b[0m" if style and text else text


class Spans:
    """Gives the text of a line to `write`, marks turned into styles. style: of the whole line."""

    def __init__(self, write: Write, style: str = "") -> None:
        self._write, self._style = write, style
        self._text = ""  # from a mark on that may open a span
        self._before = ""  # the word so far, in front of it

    def add(self, text: str) -> None:
        """Take what comes next; what stands behind an open mark is held back."""
        self._text += text
        self._show(whole=False)

    def finish(self) -> None:
        """The line ends: a mark that is open is text."""
        self._show(whole=True)

    def _show(self, *, whole: bool) -> None:
        at = 0
        while mark := _MARK.search(self._text, at):
            self._say(self._text[at : mark.start()])
            at = mark.start()
            rest = self._text[at : at + _LONGEST]
            waits = not whole and len(rest) < _LONGEST
            found = None if self._is_address() else _span(rest, self._before[-1:])
            if waits and (found.end() == len(rest) if found else self._may_open(rest)):
                self._text = self._text[at:]
                return
            if found is None:
                end = len(rest) - len(rest.lstrip(rest[0]))
                self._say(rest[:end])
            else:
                end = found.end()
                self._say_span(found)
            at += end
        self._say(self._text[at:])
        self._text = ""

    def _say_span(self, found: re.Match[str]) -> None:
        inner = found["inner"]
        if found.re is _ESCAPE:
            self._say(inner)
            return
        style = next(style for pattern, style in _SPANS if pattern is found.re)
        together = f"{self._style};{style}" if self._style else style
        if style == CODE:
            if inner[0] == inner[-1] == " " and inner.strip():
                inner = inner[1:-1]
            self._write(inner, together)
        else:
            within = Spans(self._write, together)
            within.add(inner)
            within.finish()
        self._before = found[0][-1]

    def _say(self, text: str) -> None:
        if text:
            self._write(text, self._style)
            words = (self._before + text).rsplit(None, 1)
            self._before = "" if text[-1].isspace() else words[-1][-_LONGEST:]

    def _is_address(self) -> bool:
        """Whether the word is an address, whose signs are its own."""
        return "://" in self._before or "](" in self._before

    def _may_open(self, rest: str) -> bool:
        sign = rest[0]
        behind = rest.lstrip(sign)
        if self._is_address() or sign == "\\":
            return sign == "\\" and not behind
        return not behind or not behind[0].isspace() or sign == "`"


def _span(rest: str, before: str) -> re.Match[str] | None:
    """The span that begins a text. before: the character in front of it, if it is of the word."""
    if rest[0] == "\\":
        return _ESCAPE.match(rest)
    alone = rest[0] == "*" and rest[1:2] != "*"
    if re.match(rf"[{_LETTER}]" if alone else r"\w", before) and (alone or rest[0] == "_"):
        return None
    return next(filter(None, (pattern.match(rest) for pattern, _ in _SPANS)), None)
