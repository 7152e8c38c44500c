"""What a sequence may want besides its next token: numbers of the tokens that it has.

Rows come a few at a time, in the order of positions; after an interrupt they come again from the
first on (`begin`), with the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from trilobit.engine.event import TokenLogprob

Wants = Literal["tokens", "scores", "states"]
Rows = NDArray[np.float32]
# Logits of one pass over the head: 64 MB of float32.
_LOGITS_ELEMENTS = 1 << 24


class Reading(Protocol):
    """Takes rows of a sequence of tokens.

    wants: "scores" takes logits [rows, vocab], "states" what the head multiplies [rows, hidden].
    first, end: the positions whose rows are wanted.
    """

    wants: Wants
    first: int
    end: int

    def begin(self) -> None:
        """Forget all rows."""

    def take(self, start: int, rows: Rows) -> None:
        """Rows of the positions from `start` on."""


class Logits:
    """All logits, float32 `[T, vocab]`."""

    wants: Wants = "scores"

    def __init__(self, tokens: int, vocab_size: int) -> None:
        self.first, self.end = 0, tokens
        self.values = np.empty((tokens, vocab_size), dtype=np.float32)

    def begin(self) -> None:
        """Rows are written over."""

    def take(self, start: int, rows: Rows) -> None:
        """Keep them."""
        self.values[start : start + len(rows)] = rows


class Logprobs:
    """Natural log-probability of every token after those before it, float32 `[T - 1]`."""

    wants: Wants = "scores"

    def __init__(self, tokens: Items[int]) -> None:
        self.first, self.end = 0, len(tokens) - 1
        self._tokens = tokens
        self.values = np.empty(len(tokens) - 1, dtype=np.float32)

    def begin(self) -> None:
        """Values are written over."""

    def take(self, start: int, rows: Rows) -> None:
        """Keep what the next tokens have of them."""
        end = start + len(rows)
        following = np.array(self._tokens[start + 1 : end + 1], dtype=np.intp)
        self.values[start:end] = logprobs_of(rows, following)


class TopLogprobs:
    """What `Logprobs` gives, and the `count` likeliest tokens in the place of each."""

    wants: Wants = "scores"

    def __init__(self, tokens: Items[int], count: int) -> None:
        self.first, self.end = 0, len(tokens) - 1
        self._tokens, self._count = tokens, count
        self.values: list[TokenLogprob] = []

    def begin(self) -> None:
        """Forget all of them."""
        self.values.clear()

    def take(self, start: int, rows: Rows) -> None:
        """Keep what the next tokens have of them."""
        following = list(self._tokens[start + 1 : start + 1 + len(rows)])
        self.values[start:] = token_logprobs(rows, following, self._count)


class State:
    """The state of the last token, or the sum of all, float64 `[hidden]`."""

    wants: Wants = "states"

    def __init__(self, tokens: int, hidden_size: int, *, mode: Literal["last", "mean"]) -> None:
        self.first, self.end = (tokens - 1 if mode == "last" else 0), tokens
        self.values = np.zeros(hidden_size, dtype=np.float64)

    def begin(self) -> None:
        """Begin the sum again."""
        self.values[:] = 0

    def take(self, start: int, rows: Rows) -> None:
        """Add one after the other, so that a sum does not depend on where its text was cut."""
        for row in rows:
            self.values += row


def rows_at_once(vocab_size: int) -> int:
    """Rows of logits that are computed together when all of them are wanted."""
    return max(1, _LOGITS_ELEMENTS // vocab_size)


def logprobs_of(logits: Rows, token_ids: NDArray[np.intp]) -> NDArray[np.float32]:
    """Natural log-probability of one token in each row."""
    top, log_sums = normalisers(logits)
    chosen = logits[np.arange(len(token_ids)), token_ids]
    return normalised(chosen, top, log_sums)


def normalisers(logits: Rows) -> tuple[Rows, NDArray[np.float64]]:
    """Of each row the largest logit, and the logarithm of the sum of exponentials below it."""
    top: Rows = logits.max(axis=1)
    return top, np.log(np.exp(logits - top[:, None]).sum(axis=1, dtype=np.float64))


def normalised(logits: Rows, top: Rows, log_sums: NDArray[np.float64]) -> NDArray[np.float32]:
    """Log-probabilities of logits, by the normalisers of their rows."""
    logprobs: NDArray[np.float32] = (logits - top - log_sums).astype(np.float32)
    return logprobs


def token_logprobs(
    logits: NDArray[np.float32], token_ids: list[int], count: int
) -> list[TokenLogprob]:
    """Of one token in each row [rows, vocab], and of the `count` likeliest ones."""
    top, log_sums = normalisers(logits)
    chosen = normalised(logits[np.arange(len(token_ids)), token_ids], top, log_sums)
    told = []
    for number, (row, token_id) in enumerate(zip(logits, token_ids, strict=True)):
        # The likeliest first, of equals the one that greedy sampling takes.
        best = np.argpartition(-row, min(count, len(row)) - 1)[:count]
        ids: list[int] = sorted(best.tolist(), key=lambda i: (-row[i], i))
        values = normalised(row[ids], top[number : number + 1], log_sums[number : number + 1])
        pairs = tuple(zip(ids, values.tolist(), strict=True))
        told.append(TokenLogprob(token_id=token_id, logprob=float(chosen[number]), top=pairs))
    return told
