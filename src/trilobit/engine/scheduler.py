"""What runs in the next step: one flat batch of decode tokens and prefill chunks.

The oldest go first. So those that decode, one token each, come before the prompts that arrived
later, and a long prompt does not stop them; prompts fill the rest of the batch. When blocks run
out, the youngest running sequence gives up its own and starts again later. The oldest can always go
on, because the cache holds at least one full context: so every step makes progress.
"""

from __future__ import annotations

from collections import deque

from .blocks import BLOCK, ROOT, BlockPool, blocks_for
from .sequence import Sequence


class Scheduler:
    """Queues of sequences over a pool of blocks.

    batch_tokens: tokens of one step. sequences: how many run at once, at most.
    """

    def __init__(self, pool: BlockPool, *, batch_tokens: int, sequences: int) -> None:
        assert 1 <= sequences <= batch_tokens
        self.pool = pool
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # the oldest first
        self._batch_tokens = batch_tokens
        self._sequences = sequences

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence; it must fit into the pool alone."""
        assert blocks_for(len(sequence.tokens) + 1) <= len(self.pool)
        self.waiting.append(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it is, and free its blocks."""
        if sequence in self.running:
            self.running.remove(sequence)
        elif sequence in self.waiting:
            self.waiting.remove(sequence)
        self._free(sequence)

    def schedule(self) -> dict[Sequence, int]:
        """Sequences of the next step and how many tokens each computes; blocks are theirs already.

        Empty only when there is nothing to do.
        """
        chunks: dict[Sequence, int] = {}
        left = self._batch_tokens
        for sequence in list(self.running):
            if left == 0 or sequence not in self.running:
                break  # an older one has just taken its blocks, and those of all younger ones
            count = min(sequence.pending, left)
            while not self._grow(sequence, sequence.computed + count):
                victim = self.running[-1]
                self.preempt(victim)
                if victim is sequence:
                    break
            else:
                chunks[sequence] = count
                left -= count
        self._admit(chunks, left)
        return chunks

    def lend(self, sequence: Sequence, positions: int) -> int:
        """Room for `positions` if blocks are to be had, for one step; how many there is room for.

        Nobody is preempted for them.
        """
        self._grow(sequence, positions)
        return min(positions, len(sequence.blocks) * BLOCK)

    def take_back(self, sequence: Sequence) -> None:
        """Free the blocks that were lent and hold nothing."""
        kept = blocks_for(sequence.computed)
        self.pool.release(sequence.blocks[kept:])
        del sequence.blocks[kept:]

    def preempt(self, sequence: Sequence) -> None:
        """Send a running sequence back to the front of the queue, without its blocks."""
        self.running.remove(sequence)
        self._free(sequence)
        self.waiting.appendleft(sequence)

    def take(self, count: int) -> list[int]:
        """Blocks for another use, if need be from the youngest; the caller releases them."""
        while (blocks := self.pool.take(count)) is None:
            self.preempt(self.running[-1])
        return blocks

    def _admit(self, chunks: dict[Sequence, int], left: int) -> None:
        while self.waiting and len(self.running) < self._sequences and left > 0:
            sequence = self.waiting[0]
            # Blocks that the running ones will want before they produce their next token.
            owed = sum(blocks_for(len(s.tokens) + 1) - len(s.blocks) for s in self.running)
            blocks, key = self.pool.match(sequence.tokens)
            if blocks_for(len(sequence.tokens) + 1) - len(blocks) > self.pool.available - owed:
                self.pool.release(blocks)
                break
            sequence.blocks, sequence.key = blocks, key
            sequence.computed = len(blocks) * BLOCK
            if sequence.cached_tokens is None:
                sequence.cached_tokens = sequence.computed
            self.waiting.popleft()
            self.running.append(sequence)
            count = min(sequence.pending, left)
            grown = self._grow(sequence, sequence.computed + count)
            assert grown
            chunks[sequence] = count
            left -= count

    def _grow(self, sequence: Sequence, positions: int) -> bool:
        """Give a sequence blocks for so many positions; False when there are too few."""
        blocks = self.pool.take(max(0, blocks_for(positions) - len(sequence.blocks)))
        if blocks is None:
            return False
        sequence.blocks += blocks
        return True

    def _free(self, sequence: Sequence) -> None:
        self.pool.release(sequence.blocks)
        sequence.blocks, sequence.key, sequence.computed = [], ROOT, 0
