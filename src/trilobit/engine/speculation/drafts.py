"""How far to guess ahead: drafts as long as they are expected to pay, no longer.

A step of few tokens waits for memory, not for arithmetic, so a few more tokens in it cost less than
steps of their own. What they cost is measured as it runs; what they bring is their chance to be
right. A token is added to a step while it raises the expected tokens a second.
"""

from __future__ import annotations

from collections.abc import Mapping

from trilobit.engine.sequence import Sequence
from trilobit.engine.speculation.lookup import Lookup

# Up to so many tokens pass through the weights together, and their outputs through the head.
_STEP_TOKENS = 8
# A further token's share of a step of one, before any was measured.
_USUAL_SHARE = 0.3
# What a guess must bring over what it costs: rates and costs are estimates.
_WORTH = 1.1
# Looking for guesses takes about so long between two steps, whose memory it finds cold. It may take
# this part of the time: after a look that found nothing, short steps go by without.
_LOOK_S = 15e-6
_LOOK_SHARE = 0.01
_MOST_UNSEEN = 8  # steps


class StepCost:
    """What one more token adds to a step of `sequences` tokens, as a share of that step."""

    def __init__(self) -> None:
        self._plain_s = [0.0] * _STEP_TOKENS  # 0: not measured
        self._share = [_USUAL_SHARE / (1 + _USUAL_SHARE * (n - 1)) for n in range(_STEP_TOKENS)]
        self._usual = tuple(self._share)

    def share(self, sequences: int) -> float:
        """Seconds of a further token over seconds of a step without any."""
        return self._share[sequences]

    def observe(self, sequences: int, drafted: int, seconds: float) -> None:
        """Learn from a step of one token for each sequence and `drafted` more."""
        plain_s = self._plain_s[sequences]
        if not drafted:
            # One step that the machine was busy elsewhere must not count for many.
            seconds = min(seconds, 2 * plain_s) if plain_s else seconds
            self._plain_s[sequences] += (seconds - plain_s) / 8 if plain_s else seconds
            # A share that was measured too high would never be measured again.
            self._share[sequences] += (self._usual[sequences] - self._share[sequences]) / 256
        elif plain_s:
            share = min(max((seconds / plain_s - 1) / drafted, 0.0), 1.0)
            self._share[sequences] += (share - self._share[sequences]) / 16


class Drafter:
    """Drafts for the sequences of one engine."""

    def __init__(self) -> None:
        self._lookups: dict[Sequence, Lookup] = {}
        self._cost = StepCost()
        self._unseen = 0  # steps to let go by
        self._decoding = 0  # sequences of the last step, if they had room for drafts

    def draft(self, chunks: Mapping[Sequence, int], room: int) -> dict[Sequence, list[int]]:
        """Guesses to try in a step that computes `chunks`, at most `room` together.

        None beside a prompt: its tokens fill the step already.
        """
        if self._unseen:
            self._unseen -= 1
            self._decoding = 0
            return {}
        self._decoding = 0
        room = min(room, _STEP_TOKENS - len(chunks))
        if room <= 0:
            return {}
        for sequence, count in chunks.items():
            if count != 1 or sequence.pending != 1:
                return {}
        self._decoding = len(chunks)
        chances: dict[Sequence, list[float]] = {}
        for sequence in chunks:
            lookup = self._lookups.get(sequence)
            if lookup is None:
                lookup = self._lookups[sequence] = Lookup(sequence.tokens)
            lookup.follow()
            if mine := lookup.chances(min(room, sequence.room - 1)):
                chances[sequence] = mine
        if not chances:
            return {}
        lengths = draft_lengths(chances, len(chunks), room, self._cost.share(len(chunks)))
        return {one: self._lookups[one].guess(n) for one, n in lengths.items() if n}

    def observe(self, drafts: Mapping[Sequence, list[int]], seconds: float) -> None:
        """Learn what the step has cost that `draft` was asked for last."""
        if self._decoding:
            if not drafts:
                self._unseen = min(int(_LOOK_S / (_LOOK_SHARE * seconds)), _MOST_UNSEEN)
            self._cost.observe(self._decoding, sum(map(len, drafts.values())), seconds)

    def forget(self, sequence: Sequence) -> None:
        """Let go of what is known of a sequence's text."""
        self._lookups.pop(sequence, None)


def draft_lengths(
    chances: Mapping[Sequence, list[float]], sequences: int, room: int, share: float
) -> dict[Sequence, int]:
    """How many guesses of each sequence raise the tokens a second that a step is expected to give.

    chances: of a sequence's guesses, none larger than the one before it: so taking the likeliest
    next one each time finds the best set. share: see StepCost.
    """
    lengths = dict.fromkeys(chances, 0)
    tokens, cost = float(sequences), 1.0
    for _ in range(room):
        best, gain = None, 0.0
        for sequence, mine in chances.items():
            length = lengths[sequence]
            if length < len(mine) and mine[length] > gain:
                best, gain = sequence, mine[length]
        if best is None or gain * cost < _WORTH * share * tokens:
            break
        lengths[best] += 1
        tokens += gain
        cost += share
    return lengths
