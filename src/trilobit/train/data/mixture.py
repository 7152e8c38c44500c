"""Several texts in one run: whose turn each window is, so that all have their shares at any time.

Like the order within a text it is a function of the window's number: nothing has to be kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from trilobit.train.data.token_file import Tokens
from trilobit.train.data.windows import Example, HeldOutWindows, Passes


def turns(shares: Sequence[int]) -> NDArray[np.int64]:
    """Whose turn each of `sum(shares)` windows is; the next ones go on from the beginning.

    shares: whole numbers. After any number k of windows every text has had `k · share / sum` of
    them, but for less than one. Source: Tijdeman, The chairman assignment problem, Discrete
    Mathematics 32 (1980): of those that lag enough, the one that would first lag too much.
    """
    total = sum(shares)
    sharing = [text for text, share in enumerate(shares) if share]
    if len(sharing) == 1:
        return np.full(total, sharing[0], dtype=np.int64)
    order = np.empty(total, dtype=np.int64)
    had = dict.fromkeys(sharing, 0)
    parts = 2 * len(sharing) - 2
    # In units of 1 / (total * parts) of a window, which are whole.
    for k in range(1, total + 1):
        lags = {text: (shares[text] * k - total * had[text]) * parts for text in sharing}
        order[k - 1] = chosen = min(
            (text for text in sharing if lags[text] >= total),
            key=lambda text: (total * (parts - 1) - lags[text]) / shares[text],
        )
        had[chosen] += 1
    return order


class Mixture:
    """The windows of several texts, in turns.

    shares: of each stage, one whole number a text. second_from: the first window of stage 2.
    """

    def __init__(
        self, texts: Sequence[Passes], shares: Sequence[Sequence[int]], second_from: int
    ) -> None:
        self._texts, self._second_from = texts, second_from
        self._stages = [_Stage(of_stage) for of_stage in shares]

    def __getitem__(self, index: int) -> Tokens:
        text, place = self.turn(index)
        return self._texts[text][place]

    def turn(self, index: int) -> tuple[int, int]:
        """Of which text a window is, and which of its windows."""
        first, second = self._stages
        inside = index - self._second_from
        text = int(first[index] if inside < 0 else second[inside])
        return text, int(self.counts(index)[text])

    def counts(self, index: int) -> NDArray[np.int64]:
        """Windows of each text before a window."""
        first, second = self._stages
        in_first = min(index, self._second_from)
        return first.counts(in_first) + second.counts(index - in_first)

    def passes(self, index: int) -> list[float]:
        """How often each text was passed before a window."""
        lengths = (text.per_epoch for text in self._texts)
        return [
            float(count / length) for count, length in zip(self.counts(index), lengths, strict=True)
        ]


class _Stage:
    def __init__(self, shares: Sequence[int]) -> None:
        self._turns = turns(shares)
        ours = self._turns[:, None] == np.arange(len(shares))
        self._before = np.zeros((len(self._turns) + 1, len(shares)), dtype=np.int64)
        np.cumsum(ours, axis=0, out=self._before[1:])

    def __getitem__(self, index: int) -> int:
        return int(self._turns[index % len(self._turns)])

    def counts(self, index: int) -> NDArray[np.int64]:
        rounds, rest = divmod(index, len(self._turns))
        counts: NDArray[np.int64] = rounds * self._before[-1] + self._before[rest]
        return counts


class HeldOutMixture(Dataset[Example]):
    """The held-out windows of several texts, one text behind the other; `text` tells which."""

    def __init__(self, texts: Sequence[HeldOutWindows]) -> None:
        self._places = [(n, place) for n, text in enumerate(texts) for place in range(len(text))]
        self._texts = texts
        self.counted_tokens = sum(text.counted_tokens for text in texts)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Example:
        number, place = self._places[index]
        return {**self._texts[number][place], "text": torch.tensor(number)}
