"""A backend in a few lines of numpy, to test the engine on without the native module.

Its model is no model: keys are what a token and its position hash to, the logits after a token are
made of all keys before it in the cache. So a block that is another sequence's, was overwritten or
was not computed shows in the next token.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence as Items
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trilobit.engine.batch import Batch
from trilobit.engine.blocks import BLOCK
from trilobit.engine.request import Request

VOCAB, HIDDEN = 97, 5


class NumpySampler:
    """Greedy, with a seed: the largest of the logits turned by seed and tokens so far."""

    def __init__(self, request: Request) -> None:
        self.seed, self.drawn = request.seed, 0

    def accept(self, id: int, /) -> None:
        self.drawn += 1

    def best(self, logits: NDArray[np.float32]) -> int:
        return int(np.roll(logits, self.seed + self.drawn).argmax())


class NumpyBackend:
    threads = 1
    vocab_size, hidden_size = VOCAB, HIDDEN

    def __init__(self, *, blocks: int = 64, batch_tokens: int = 64) -> None:
        self.blocks, self.batch_tokens = blocks, batch_tokens
        self.cache = np.full((blocks, BLOCK), np.iinfo(np.int64).max, dtype=np.int64)
        self.batches: list[dict[int, int]] = []  # tokens by place in the batch
        self.states_out: list[NDArray[np.float32]] = []

    def sampler(self, request: Request) -> NumpySampler:
        return NumpySampler(request)

    def forward(self, batch: Batch) -> None:
        assert 1 <= len(batch.token_ids) <= self.batch_tokens
        states = []
        for token, position, owner in zip(
            batch.token_ids.tolist(), batch.positions.tolist(), batch.owners.tolist(), strict=True
        ):
            table = batch.tables[owner]
            self.cache[table[position // BLOCK], position % BLOCK] = token * 4099 + position
            keys = self.cache[table[: position // BLOCK + 1]].reshape(-1)[: position + 1]
            state = zlib.crc32(keys.tobytes())
            states.append(np.random.default_rng(state).standard_normal(HIDDEN, dtype=np.float32))
        self.states_out = [states[row] for row in batch.outputs]

    def choose(
        self, samplers: Items[NumpySampler], drafts: Items[list[int]], allowed: Items[Any] = ()
    ) -> list[list[int] | Exception]:
        chosen: list[list[int] | Exception] = []
        row = 0
        for sampler, draft in zip(samplers, drafts, strict=True):
            tokens: list[int] = []
            for number in range(len(draft) + 1):
                tokens.append(sampler.best(self.logits(row + number, 1)[0]))
                sampler.accept(tokens[-1])
                if number == len(draft) or tokens[-1] != draft[number]:
                    break
            chosen.append(tokens)
            row += len(draft) + 1
        return chosen

    def logits(self, first: int, count: int) -> NDArray[np.float32]:
        head = np.random.default_rng(0).standard_normal((HIDDEN, VOCAB), dtype=np.float32)
        return np.stack(self.states_out[first : first + count]) @ head

    def states(self, first: int, count: int) -> NDArray[np.float32]:
        return np.stack(self.states_out[first : first + count])

    def settle(self, *, idle: bool) -> None:
        """Nothing is kept."""
