"""What runs in the next step, and what came of it: one flat batch of decode tokens and chunks.

The oldest go first. So those that decode, one token each, come before the prompts that arrived
later, and a long prompt does not stop them; prompts, and texts that are only read, fill the rest of
the batch: all of it, or beside texts that are being written what the budget of a step leaves time
for (`pace`). When blocks run out, the youngest running sequence gives up its own and starts again
later. The oldest can always go on, because the cache holds at least one full context: so every step
makes progress.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from collections.abc import Sequence as Items

from trilobit.engine.batch import Batch
from trilobit.engine.blocks import BLOCK, BlockPool, Key, Store, blocks_for, key_of
from trilobit.engine.event import TokenLogprob
from trilobit.engine.pace import Pace, at_least
from trilobit.engine.reading import Wants
from trilobit.engine.sequence import Sequence

# Of a step that nobody bounds.
_UNBOUNDED_S = float("inf")
# For blocks from a store, in a step that others wait for.
_LOADING_S = 0.05


class Scheduler:
    """Queues of sequences over a pool of blocks, and the books of what each has computed.

    batch_tokens: tokens of one step. sequences: how many run at once, at most. pace: what a step
    may take while texts are being written; None: any time. store: where blocks are kept beyond the
    pool, if anywhere.
    """

    def __init__(
        self,
        pool: BlockPool,
        *,
        batch_tokens: int,
        sequences: int,
        pace: Pace | None = None,
        store: Store | None = None,
    ) -> None:
        assert 1 <= sequences <= batch_tokens
        self.pool, self._store = pool, store
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # the oldest first
        self._batch_tokens = batch_tokens
        self._sequences = sequences
        self._pace = pace
        # Of the step that is being made, for prompts; None: nobody has asked yet.
        self._left_s: float | None = None

    def add(self, sequence: Sequence) -> None:
        """Queue a new sequence; it must fit into the pool alone."""
        assert sequence.needed_blocks <= len(self.pool)
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
        self._left_s = None
        for sequence in list(self.running):
            if left == 0 or sequence not in self.running:
                break  # an older one has just taken its blocks, and those of all younger ones
            count = self._count(sequence, left, chunks)
            if not count:
                continue
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

    def finish(
        self,
        batch: Batch,
        chosen: Items[list[int] | Exception],
        *,
        seconds: float,
        logprobs: Mapping[Sequence, list[TokenLogprob]] | None = None,
    ) -> None:
        """Enter what a step has computed into the books, and hand out its tokens.

        chosen: for each of `batch.asking` its next tokens, or why it has none.
        """
        self._observe(batch, seconds)
        for sequence, count in batch.chunks.items():
            if len(sequence.tokens) > sequence.prompt_tokens:
                sequence.decode_s += seconds
            else:
                sequence.prefill_s += seconds
                sequence.prefilled += count
            self._keep(sequence, count)
            if sequence.reading is not None and sequence.pending == 0:
                sequence.finish()
        for sequence, tokens in zip(batch.asking, chosen, strict=True):
            if isinstance(tokens, Exception):
                sequence.error = tokens
            else:
                self._accept(sequence, tokens, (logprobs or {}).get(sequence))
            if sequence in batch.drafts:
                sequence.drafted += len(batch.drafts[sequence])
                self._take_back(sequence)

    def lend(self, sequence: Sequence, positions: int) -> int:
        """Room for `positions` if blocks are to be had, for one step; how many there is room for.

        Nobody is preempted for them.
        """
        self._grow(sequence, positions)
        return min(positions, len(sequence.blocks) * BLOCK)

    def preempt(self, sequence: Sequence) -> None:
        """Send a running sequence back to the front of the queue, without its blocks."""
        self.running.remove(sequence)
        self._free(sequence)
        self.waiting.appendleft(sequence)

    # ---- the next step ------------------------------------------------------------------------

    def _count(self, sequence: Sequence, left: int, chunks: Mapping[Sequence, int]) -> int:
        """Tokens that a sequence computes in a step with room for `left` more."""
        pending = len(sequence.tokens) - sequence.computed
        if pending == 1:
            return 1
        count = min(pending, left)
        if self._pace is None:
            return count
        if self._left_s is None:
            bounded = any(one.is_decoding for one in self.running)
            self._left_s = self._pace.left_s() if bounded else _UNBOUNDED_S
        if self._left_s == _UNBOUNDED_S:
            return count
        fitting = self._pace.tokens(sequence.wants, self._left_s)
        if all(one.is_decoding for one in chunks):
            fitting = at_least(fitting)
        count = min(count, fitting)
        self._left_s = max(0.0, self._left_s - self._pace.cost_s(sequence.wants, count))
        return count

    def _admit(self, chunks: dict[Sequence, int], left: int) -> None:
        if not self.waiting:
            return
        # Blocks that the running ones will want before they produce their next token.
        owed = sum(one.needed_blocks - len(one.blocks) for one in self.running)
        while self.waiting and len(self.running) < self._sequences and left > 0:
            sequence = self.waiting[0]
            # Rows of tokens that are in the cache would be missing: a reading computes its own.
            reading, tokens = sequence.reading, sequence.tokens
            known = tokens if reading is None else tokens[: reading.first + 1]
            blocks, key = self.pool.match(known, sequence.root)
            whole = True
            if sequence.needed_blocks - len(blocks) <= self.pool.available - owed:
                whole, key = self._load(known, blocks, key)
            needed = sequence.needed_blocks - len(blocks)
            cached, sequence.computed = sequence.computed, len(blocks) * BLOCK
            count = self._count(sequence, left, chunks) if whole else 0
            if needed > self.pool.available - owed or not count:
                sequence.computed = cached
                self.pool.release(blocks)
                break
            sequence.blocks, sequence.key = blocks, key
            if sequence.cached_tokens is None:
                sequence.cached_tokens = sequence.computed
            if self._store is not None and blocks:
                self._store.used(sequence.root, tokens[: sequence.computed])
            self.waiting.popleft()
            self.running.append(sequence)
            grown = self._grow(sequence, sequence.computed + count)
            assert grown
            chunks[sequence] = count
            left -= count
            owed += sequence.needed_blocks - len(sequence.blocks)

    def _load(self, tokens: list[int], blocks: list[int], key: Key) -> tuple[bool, Key]:
        """Add what is in the store behind known blocks, for which there is room.

        Whether it came to the end in the time of this step, and the last block's key. What was
        loaded by then is known in the pool.
        """
        store = self._store
        if store is None:
            return True, key
        end_s = time.perf_counter() + (_LOADING_S if self.running else _UNBOUNDED_S)
        for end in range((len(blocks) + 1) * BLOCK, len(tokens), BLOCK):
            longer = key_of(key, tokens[end - BLOCK : end])
            taken = self.pool.take(1)
            assert taken is not None
            [block] = taken
            if not store.load(longer, block):
                self.pool.release(taken)
                break
            self.pool.publish(block, longer)
            blocks.append(block)
            key = longer
            if time.perf_counter() > end_s:
                return False, key
        return True, key

    def _grow(self, sequence: Sequence, positions: int) -> bool:
        """Give a sequence blocks for so many positions; False when there are too few."""
        blocks = self.pool.take(max(0, blocks_for(positions) - len(sequence.blocks)))
        if blocks is None:
            return False
        sequence.blocks += blocks
        return True

    def _free(self, sequence: Sequence) -> None:
        self.pool.release(sequence.blocks)
        sequence.blocks, sequence.key, sequence.computed = [], sequence.root, 0

    # ---- the books ----------------------------------------------------------------------------

    def _observe(self, batch: Batch, seconds: float) -> None:
        if self._pace is None:
            return
        tokens: dict[Wants, int] = {}
        decoding = False
        for sequence, count in batch.chunks.items():
            if sequence.computed >= sequence.prompt_tokens:
                decoding = True
            else:
                tokens[sequence.wants] = tokens.get(sequence.wants, 0) + count
        self._pace.observe(tokens, decoding=decoding, seconds=seconds)

    def _accept(
        self, sequence: Sequence, tokens: list[int], logprobs: Items[TokenLogprob] | None
    ) -> None:
        """Take the next tokens; all but the last were guessed, so this step has computed them."""
        for number, token in enumerate(tokens):
            if number:
                self._keep(sequence, 1)
            sequence.accept(token, logprobs[number] if logprobs else None)
            sequence.accepted += number < len(tokens) - 1
            if sequence.over:
                break

    def _keep(self, sequence: Sequence, count: int) -> None:
        """Count tokens as computed, and make the blocks known that they fill."""
        full = sequence.computed // BLOCK
        sequence.computed += count
        if sequence.wants == "states":
            return  # its owner shares no cache with texts that go on
        for number in range(full, sequence.computed // BLOCK):
            tokens = sequence.tokens[number * BLOCK : (number + 1) * BLOCK]
            sequence.key = key_of(sequence.key, tokens)
            self.pool.publish(sequence.blocks[number], sequence.key)
            if self._store is not None:
                self._store.keep(sequence.key, sequence.blocks[number])

    def _take_back(self, sequence: Sequence) -> None:
        """Free the blocks that were lent and hold nothing."""
        kept = blocks_for(sequence.computed)
        self.pool.release(sequence.blocks[kept:])
        del sequence.blocks[kept:]
