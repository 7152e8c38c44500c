"""What an engine asks of the machine that computes: arrays in, rows and choices out.

`native.py` is the CPU's.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trilobit.engine.batch import Batch
from trilobit.engine.request import Request


class Backend(Protocol):
    """A model with its KV cache.

    blocks: of the cache, BLOCK positions each. batch_tokens: that one forward takes.
    """

    @property
    def threads(self) -> int:
        """Threads that compute."""

    @property
    def blocks(self) -> int:
        """Blocks of the cache."""

    @property
    def batch_tokens(self) -> int:
        """Tokens that one forward takes."""

    @property
    def vocab_size(self) -> int:
        """Columns of logits."""

    @property
    def hidden_size(self) -> int:
        """Columns of states."""

    def sampler(self, request: Request) -> Any:
        """What chooses the tokens of a request; it has seen the prompt."""

    def forward(self, batch: Batch) -> None:
        """Compute a batch."""

    def choose(
        self,
        samplers: Items[Any],
        drafts: Items[list[int]],
        allowed: Items[NDArray[np.uint32] | None],
    ) -> list[list[int] | Exception]:
        """The tokens that follow in each sequence, from the first output rows of the last forward.

        The draft as far as the sampler chooses the same, and one more; or why this one sequence
        has no next token. allowed: for each sequence the tokens that may be chosen for each of its
        rows, one bit each [rows, words], or None; empty where nobody's are bounded.
        """

    def logits(self, first: int, count: int) -> NDArray[np.float32]:
        """Logits [count, vocab] of output rows of the last forward."""

    def states(self, first: int, count: int) -> NDArray[np.float32]:
        """States [count, hidden] of output rows of the last forward, behind the last norm."""

    def settle(self, *, idle: bool) -> None:
        """Called after every step; idle: there is no next one yet."""
