"""Regular expressions of tokenizers: those that take a time that grows with the text alone.

They run in a matcher that goes back and tries again, without any limit: `(a+)+$` on 20,000 letters
takes minutes. So each alternative is one of those of published tokenizers, or a plain one: it
repeats without end in its last place only, where nothing follows that may fail, and has few ways
to match a text before that.
"""

from __future__ import annotations

import re

_LONGEST = 20_000  # characters
_MOST_WAYS = 64
_DEEPEST = 16  # groups in groups
_MOST_COPIES = 1000  # by {n} in {n}; the matcher expands them

_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_BEGIN = r"[^\r\n\p{L}\p{N}]?"
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
# Alternatives of published tokenizers (GPT-2, cl100k, o200k, Llama 3 and 4, Qwen, DeepSeek,
# Mistral) that are not plain, each with one that must stand in the same expression: it takes a
# long text that the first only looks through.
_PUBLISHED = {
    r"\s+(?!\S)": r"\s+",
    r"\s+(?=\S)": r"\s+",
    r"\s*[\r\n]+": r"\s+",
    r"\s*[\r\n]": r"\s+",
    r"\s*[\r\n]+(?!\S)": r"\s+",
    r"\s+$": r"\s+",
    r"\s++$": r"\s+",
    **{
        f"{alternative}{end}": f"{alternative}{end}"
        for alternative in (
            r" ?[^\s\p{L}\p{N}]+",
            r" ?[^\s\p{L}\p{N}]++",
            r" ?[^\s\p{L}\p{M}\p{N}]+",
            r" ?[\p{P}\p{S}]+",
            r"[^\s\p{L}\p{N}]+",
        )
        for end in (r"[\r\n]*", r"[\r\n/]*", r"[\r\n]*+")
    },
    **{
        f"{_BEGIN}{plus}{_UPPER}*{_LOWER}+{end}": f"{_BEGIN}{plus}{_UPPER}+{_LOWER}*{end}"
        for end in ("", _SHORT)
        for plus in ("", "+")
    },
    **{
        f"{_BEGIN}{plus}{_UPPER}+{_LOWER}*{end}": f"{_BEGIN}{plus}{_UPPER}+{_LOWER}*{end}"
        for end in ("", _SHORT)
        for plus in ("", "+")
    },
}

_ESCAPE = (
    r"\\(?:[pP]\{\^?[\w ]+\}|x\{[0-9a-fA-F]{1,6}\}|x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|[^1-9kgXRKGyY])"
)
_ATOM = re.compile(rf"{_ESCAPE}|[^\\()\[\]|*+?{{}}]|\]|\}}", re.DOTALL)
# Behind braces, + and ? are other repetitions in this syntax.
_QUANTIFIER = re.compile(r"(?:([*+?])[?+]?|\{(\d{1,6})(?:(,)(\d{1,6})?)?\})")
_PLACES = frozenset(("^", "$", r"\A", r"\z", r"\Z", r"\b", r"\B", r"\G"))  # no characters
_GROUP = re.compile(r"\((?:\?(?:[im]*(?:-[im]+)?:|([=!])))?(?!\?|\*)")


class PatternFault(Exception):
    """Why an expression is not run: a few words."""


def check_pattern(pattern: str) -> int:
    """The fewest characters that an expression matches.

    Raises PatternFault for one that may take more time than its text is worth.
    """
    if len(pattern) > _LONGEST:
        raise PatternFault(f"has {len(pattern):,} characters")
    if re.search(r"\\[cCM]", pattern):  # these take the sign behind them, whatever it is
        raise PatternFault("has a control sign")
    parser = _Parser(pattern)
    alternatives = parser.alternatives()
    fewest = []
    for number, alternative in enumerate(alternatives):
        companion = _PUBLISHED.get(alternative)
        if companion is None:
            ways, least = _Parser(alternative).whole()
            if ways > _MOST_WAYS:
                raise PatternFault("may match one text in very many ways")
            fewest.append(least)
        elif not _accompanied(alternatives, number, companion):
            raise PatternFault(f"has {alternative!r} without {companion!r} behind it")
    return min(fewest, default=1)  # published ones that are not plain match one at least


def _accompanied(alternatives: list[str], number: int, companion: str) -> bool:
    """Whether the companion takes a long text whole before or right behind an alternative.

    Between them only what has the same companion: anything else may take a little of the text, and
    the alternative then looks through all that is left again.
    """
    if companion in alternatives[: number + 1]:
        return True
    for other in alternatives[number + 1 :]:
        if other == companion:
            return True
        if _PUBLISHED.get(other) != companion:
            return False
    return False


class _Parser:
    """One walk through an expression."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self._at = 0
        self._copies = 1

    def alternatives(self) -> list[str]:
        """The texts of the outermost alternatives."""
        found, start, depth = [], 0, 0
        while self._at < len(self._pattern):
            character = self._pattern[self._at]
            if character == "[":
                self._class()
                continue
            depth += (character == "(") - (character == ")")
            if character == "|" and depth == 0:
                found.append(self._pattern[start : self._at])
                start = self._at + 1
            self._at += 2 if character == "\\" else 1
        return [*found, self._pattern[start:]]

    def whole(self) -> tuple[int, int]:
        """In how many ways the expression may match a text, and the fewest characters of one."""
        ways, _, least = self._branches(0)
        if self._at < len(self._pattern):
            raise PatternFault("ends a group that does not begin")
        return ways, least

    def _branches(self, depth: int) -> tuple[int, bool, int]:
        """How many ways of matching, whether one repeats without end (in its last place), and the
        fewest characters.
        """
        if depth > _DEEPEST:
            raise PatternFault("has groups in groups in groups")
        ways, endless, least = self._branch(depth)
        while self._next() == "|":
            self._at += 1
            one, ends, fewest = self._branch(depth)
            ways, endless, least = ways + one, endless or ends, min(least, fewest)
        return ways, endless, least

    def _branch(self, depth: int) -> tuple[int, bool, int]:
        ways, endless, least = 1, False, 0
        while (character := self._next()) and character not in "|)":
            if endless:
                raise PatternFault("goes on behind a part that repeats without end")
            one, endless, fewest = self._part(character, depth)
            low, high = self._quantifier()
            if (low, high) != (1, 1):
                if endless or (one > 1 and high != 1):
                    raise PatternFault("repeats what repeats or has alternatives")
                self._copies *= max(low, 1)
                if self._copies > _MOST_COPIES:
                    raise PatternFault(f"repeats a part {self._copies:,} times")
                endless = high is None or high > _MOST_WAYS + low
                one = one if endless else one * ((high or 0) - low + 1)
            ways, least = min(ways * one, 1 << 30), least + low * fewest
        return ways, endless, least

    def _part(self, character: str, depth: int) -> tuple[int, bool, int]:
        if character == "(":
            group = _GROUP.match(self._pattern, self._at)
            if group is None:
                raise PatternFault("has a group that is neither plain nor a look ahead")
            self._at = group.end()
            ways, endless, least = self._branches(depth + 1)
            if self._next() != ")":
                raise PatternFault("has a group without an end")
            self._at += 1
            if group[1] and endless:
                raise PatternFault("looks ahead without end")
            return ways, endless, 0 if group[1] else least
        if character == "[":
            self._class()
            return 1, False, 1
        atom = _ATOM.match(self._pattern, self._at)
        if atom is None:
            raise PatternFault("has a reference back or an unknown sign")
        self._at = atom.end()
        return 1, False, int(atom[0] not in _PLACES)

    def _quantifier(self) -> tuple[int, int | None]:
        found = _QUANTIFIER.match(self._pattern, self._at)
        if found is None:
            return 1, 1
        self._at = found.end()
        sign, least, comma, most = found.groups()
        if _QUANTIFIER.match(self._pattern, self._at):
            raise PatternFault("repeats what repeats or has alternatives")
        if sign:
            return {"*": (0, None), "+": (1, None), "?": (0, 1)}[sign]
        low = int(least)
        return low, (int(most) if most else None) if comma else low

    def _class(self) -> None:
        """Pass over [...], which may hold others."""
        depth, first = 0, False
        while self._at < len(self._pattern):
            character = self._pattern[self._at]
            self._at += 2 if character == "\\" else 1
            if character == "[":
                depth, first = depth + 1, True
                if self._next() == "^":
                    self._at += 1
                continue
            if character == "]" and not first:
                depth -= 1
                if depth == 0:
                    return
            first = False
        raise PatternFault("has a class without an end")

    def _next(self) -> str:
        return self._pattern[self._at : self._at + 1]
