"""Lines of words for a terminal, from pieces of text as they come."""

from __future__ import annotations

from collections.abc import Callable

from prompt_toolkit.utils import get_cwidth

_FENCE = "```"


class Wrap:
    """Begins a new line before a word that does not fit into the last one.

    width: columns there are, asked anew for every word: windows change. Words wider than that are
    left to the terminal. Code between fences stays as it is.
    """

    def __init__(self, width: Callable[[], int]) -> None:
        self._width = width
        self._column = 0
        self._spaces = ""
        self._word = ""
        self._line = ""  # what came of it so far
        self._is_code = False

    def add(self, text: str) -> str:
        """What to show now; a word that may go on is held back."""
        return "".join(self._add(character) for character in text)

    def finish(self) -> str:
        """What was held back."""
        return self._place() + self._spaces

    def _add(self, character: str) -> str:
        if character == "\n":
            out = self.finish() + character
            self._is_code ^= self._line.lstrip().startswith(_FENCE)
            self._column, self._spaces, self._line = 0, "", ""
            return out
        self._line += character
        if self._is_code:
            return character
        if character in " \t":
            out = self._place()
            self._spaces += character
            return out
        self._word += character
        # Scripts without spaces break anywhere; so does what fills a line by itself.
        whole = get_cwidth(character) > 1 or get_cwidth(self._word) >= self._width()
        return self._place() if whole else ""

    def _place(self) -> str:
        if not self._word:
            return ""
        word, spaces = self._word, self._spaces
        self._word = self._spaces = ""
        needed = get_cwidth(spaces) + get_cwidth(word)
        if self._column and self._column + needed > self._width():
            self._column = get_cwidth(word)
            return "\n" + word
        self._column += needed
        return spaces + word
