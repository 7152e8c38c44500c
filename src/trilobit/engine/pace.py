"""How many prompt tokens a step may have beside texts that are being written.

What a token costs is measured as steps go by: apart for those that only fill the cache, and for
those whose logits are wanted too, which pass through the whole head.
"""

from __future__ import annotations

from collections.abc import Mapping

from trilobit.engine.reading import Wants

# Before a cost is known: few enough to take no long time, enough to measure it.
_FIRST = 16
# A step always has so many, or a prompt beside texts that use up the budget would never end.
_LEAST = 8
# Of the budget, what steps are planned for: costs are those of steps before, and in a long text
# every token costs a little more than the one before it.
_AIM = 0.75
# A cost that rises is believed soon, one that falls is believed later: better a chunk too small.
_RISE, _FALL = 1 / 2, 1 / 8


class Pace:
    """Measured costs, and the budget of a step, in seconds."""

    def __init__(self, budget_s: float) -> None:
        self.budget_s = budget_s
        self._decode_s = 0.0  # of a step without prompt tokens; 0: not measured
        self._token_s: dict[Wants, float] = {}

    def left_s(self) -> float:
        """Seconds for prompt tokens in a step that also decodes."""
        return max(0.0, _AIM * self.budget_s - self._decode_s)

    def tokens(self, wants: Wants, left_s: float) -> int:
        """How many tokens of a kind fit into so many seconds."""
        cost_s = self._token_s.get(wants)
        return _FIRST if cost_s is None else int(left_s / cost_s)

    def cost_s(self, wants: Wants, count: int) -> float:
        """Seconds that so many tokens of a kind take; all that is left while that is unknown."""
        cost_s = self._token_s.get(wants)
        return self.budget_s if cost_s is None else count * cost_s

    def observe(self, tokens: Mapping[Wants, int], *, decoding: bool, seconds: float) -> None:
        """Learn from a step: its prompt tokens of each kind, and whether it also decoded."""
        if not tokens:
            self._decode_s = _moved(self._decode_s or seconds, seconds)
            return
        extra_s = max(seconds - (self._decode_s if decoding else 0.0), 1e-9)
        # Of several kinds in a step the dearest one is not known yet, or changes the most.
        kind = max(tokens, key=lambda one: self._token_s.get(one, float("inf")))
        for other, count in tokens.items():
            if other != kind:
                extra_s -= count * self._token_s.get(other, 0.0)
        cost_s = max(extra_s, 1e-9) / tokens[kind]
        self._token_s[kind] = _moved(self._token_s.get(kind, cost_s), cost_s)


def at_least(tokens: int) -> int:
    """The first chunk of a step is never so small that it would not end."""
    return max(tokens, _LEAST)


def _moved(value: float, seen: float) -> float:
    return value + (seen - value) * (_RISE if seen > value else _FALL)
