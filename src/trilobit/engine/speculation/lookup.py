"""Prompt lookup: what may come next, guessed from where the last tokens stood before.

Text repeats itself and its prompt: names, quotations, the code that is being edited. So no second
model is needed to guess ahead: the tokens behind an earlier occurrence of the last few tokens are
the guess (Saxena 2023, "Prompt Lookup Decoding"; Yang et al. 2023, "Inference with Reference").
How often such a guess was right so far is counted without computing anything: every token that
comes is compared with the guess for it, used or not.
"""

from __future__ import annotations

from collections.abc import Sequence

# The last tokens are looked up four at a time; where those are new, two at a time.
_LONG, _SHORT = 4, 2
_BITS = 32  # of a token id in a key
_LONG_MASK = (1 << _LONG * _BITS) - 1
_SHORT_MASK = (1 << _SHORT * _BITS) - 1
# Occurrences kept: at least those of the last so many tokens, at most twice as many.
_KEPT = 1 << 14

# Guesses are the better the longer their source has agreed with the text. Their rates are counted
# apart for 2, 3, 4 to 7, 8 to 15 and more tokens of agreement, from what is usual on.
_LONGEST = 16
_CLASS = (0, 0, 0, 1, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3, 4)
_USUAL_RATES = (0.15, 0.3, 0.5, 0.75, 0.9)
_MEMORY = 16  # guesses that a rate remembers


class Lookup:
    """The n-grams of one growing text, and the place that the text follows at present.

    tokens: the text, which others append to; `follow` takes in what is new, in a fixed time for
    each token.
    """

    def __init__(self, tokens: Sequence[int]) -> None:
        self._tokens = tokens
        self._known = 0  # tokens taken in
        self._tail = _LONG_MASK  # the last four of them; an id that no token has before the first
        # Where each n-gram was last followed by something. The older half is dropped at times.
        self._recent: dict[int, int] = {}
        self._older: dict[int, int] = {}
        self._source: int | None = None  # the place of the next guess
        self._agreed = 0  # tokens before it that equal the last of the text, as far as known
        self._rates = list(_USUAL_RATES)

    def follow(self) -> None:
        """Take in the tokens that were appended."""
        tokens, rates = self._tokens, self._rates
        for place in range(self._known, len(tokens)):
            token = tokens[place]
            source = self._source
            if source is not None:
                kind = _CLASS[self._agreed]
                if tokens[source] == token:
                    rates[kind] += (1 - rates[kind]) / _MEMORY
                    self._source = source + 1
                    self._agreed = min(self._agreed + 1, _LONGEST)
                else:
                    rates[kind] -= rates[kind] / _MEMORY
                    self._source = None
            self._tail = (self._tail << _BITS | token) & _LONG_MASK
            short = self._tail & _SHORT_MASK
            if self._source is None:
                self._find(self._tail, short)
            if place + 1 >= _LONG:
                self._recent[self._tail] = place + 1
            if place + 1 >= _SHORT:
                self._recent[~short] = place + 1  # negative: apart from the keys of four
        self._known = len(tokens)
        if len(self._recent) > 2 * _KEPT:
            self._older, self._recent = self._recent, {}

    def chances(self, count: int) -> list[float]:
        """Of each of the next `count` guesses: how likely it and all before it are right."""
        if self._source is None:
            return []
        chances = []
        chance = 1.0
        for agreed in range(self._agreed, self._agreed + count):
            chance *= self._rates[_CLASS[min(agreed, _LONGEST)]]
            chances.append(chance)
        return chances

    def guess(self, count: int) -> list[int]:
        """The next `count` tokens, if the text goes on as it did there; empty without a place."""
        if self._source is None:
            return []
        # The guess may run into the end of the text, and then goes round.
        period = self._known - self._source
        return [self._tokens[self._source + number % period] for number in range(count)]

    def _find(self, long: int, short: int) -> None:
        for key, agreed in ((long, _LONG), (~short, _SHORT)):
            source = self._recent.get(key)
            if source is None:
                source = self._older.get(key)
            if source is not None:
                self._source, self._agreed = source, agreed
                return
