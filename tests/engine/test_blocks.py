"""The block pool keeps its books, whatever is asked of it in whatever order."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from conftest import tiny_config
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from trilobit import _native
from trilobit.engine.blocks import BLOCK, ROOT, BlockPool, block_bytes, blocks_for, key_of

COUNT = 12


class Holder:
    """A sequence as the pool sees it: tokens, and blocks for the first of them."""

    def __init__(self, tokens: list[int], blocks: list[int]) -> None:
        self.tokens, self.blocks = tokens, blocks


class Books(RuleBasedStateMachine):
    """The pool beside a model of it: who holds which block, and what each block holds."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(COUNT)
        self.holders: list[Holder] = []
        self.content: dict[int, tuple[int, ...]] = {}  # all tokens up to a block's end

    # Few different blocks of tokens, so that prefixes are met again.
    @rule(kinds=st.lists(st.integers(0, 2), min_size=1, max_size=5), extra=st.integers(0, 1))
    def begin(self, kinds: list[int], extra: int) -> None:
        tokens = [kind for kind in kinds for _ in range(BLOCK)] + [7] * extra
        free = self.pool.available
        blocks, key = self.pool.match(tokens)
        assert len(blocks) * BLOCK < len(tokens)  # something is left to compute
        for number, block in enumerate(blocks):
            assert self.content[block] == tuple(tokens[: (number + 1) * BLOCK])
        taken = self.pool.take(blocks_for(len(tokens)) - len(blocks))
        if taken is None:
            self.pool.release(blocks)
            assert self.pool.available == free
            return
        for block in taken:
            assert not any(block in holder.blocks for holder in self.holders)
            self.content.pop(block, None)
        holder = Holder(tokens, blocks + taken)
        for number in range(len(blocks), len(tokens) // BLOCK):
            end = (number + 1) * BLOCK
            key = key_of(key, tokens[end - BLOCK : end])
            self.content[holder.blocks[number]] = tuple(tokens[:end])
            self.pool.publish(holder.blocks[number], key)
        self.holders.append(holder)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        holder = self.holders.pop(data.draw(st.integers(0, len(self.holders) - 1)))
        self.pool.release(holder.blocks)

    @rule(count=st.integers(0, COUNT + 2))
    def borrow_and_return(self, count: int) -> None:
        free = self.pool.available
        blocks = self.pool.take(count)
        assert (blocks is None) == (count > free)
        if blocks is not None:
            assert len(set(blocks)) == count
            for block in blocks:
                self.content.pop(block, None)
            self.pool.release(blocks)
        assert self.pool.available == free

    @invariant()
    def a_block_is_shared_only_as_a_common_prefix(self) -> None:
        for block, times in Counter(b for h in self.holders for b in h.blocks).items():
            if times > 1:
                sharing = [h for h in self.holders if block in h.blocks]
                prefixes = {tuple(h.tokens[: (h.blocks.index(block) + 1) * BLOCK]) for h in sharing}
                assert len(prefixes) == 1

    @invariant()
    def held_and_available_blocks_are_all_blocks(self) -> None:
        held = {block for holder in self.holders for block in holder.blocks}
        assert len(held) + self.pool.available == len(self.pool) == COUNT

    def teardown(self) -> None:
        for holder in self.holders:
            self.pool.release(holder.blocks)
        assert self.pool.available == COUNT


TestBooks = Books.TestCase
TestBooks.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def published(pool: BlockPool, tokens: list[int]) -> list[int]:
    """Blocks of `tokens`, made known and given back."""
    blocks = pool.take(len(tokens) // BLOCK)
    assert blocks is not None
    key = ROOT
    for number, block in enumerate(blocks):
        key = key_of(key, tokens[number * BLOCK : (number + 1) * BLOCK])
        pool.publish(block, key)
    pool.release(blocks)
    return blocks


def test_a_known_prefix_is_found_again() -> None:
    pool = BlockPool(4)
    tokens = list(range(3 * BLOCK))
    blocks = published(pool, tokens)
    assert pool.match([*tokens, 5])[0] == blocks
    assert pool.match(tokens)[0] == blocks[:2]  # the last token is computed again
    assert pool.match(tokens[: 2 * BLOCK - 1])[0] == blocks[:1]


def test_the_same_tokens_behind_others_are_not_the_same() -> None:
    pool = BlockPool(4)
    blocks = published(pool, [1] * BLOCK + [2] * BLOCK)
    assert pool.match([2] * BLOCK + [0])[0] == []
    assert pool.match([1] * BLOCK + [1] * BLOCK + [2] * BLOCK + [0])[0] == blocks[:1]


def test_blank_blocks_go_before_known_ones_and_the_end_of_a_prefix_before_its_beginning() -> None:
    pool = BlockPool(4)
    tokens = list(range(3 * BLOCK))
    blocks = published(pool, tokens)
    assert set(pool.take(1) or []).isdisjoint(blocks)
    assert pool.take(1) == [blocks[2]]
    assert pool.match([*tokens, 5])[0] == blocks[:2]


def test_keys_depend_on_everything_before() -> None:
    tokens = list(range(BLOCK))
    keys = {key_of(ROOT, tokens), key_of(key_of(ROOT, tokens), tokens), key_of(ROOT, tokens[::-1])}
    assert len(keys) == 3


def test_block_bytes_are_those_of_the_decoder(model_file: object) -> None:
    from trilobit.engine.native import rotary_frequencies
    from trilobit.formats.packed.reader import PackedModel

    packed = PackedModel(str(model_file))
    for kv_dtype in ("f16", "f32", "i8"):
        decoder = _native.Decoder(
            packed.config.to_dict(),
            packed.arrays(),
            rotary_frequencies(packed.config),
            1,
            16,
            5,
            kv_dtype,
        )
        block = decoder.read_block(4)
        assert len(block) == block_bytes(packed.config, kv_dtype)
        for number, data in ((5, block), (-1, block), (0, block[:-1]), (0, block + b"x"), (0, b"")):
            with pytest.raises(ValueError, match=r"no such block|a block has"):
                decoder.write_block(number, np.frombuffer(data, dtype=np.uint8))
        changed = bytes(range(256)) * (len(block) // 256)
        decoder.write_block(3, np.frombuffer(changed, dtype=np.uint8))
        assert [decoder.read_block(n) for n in (2, 3, 4)] == [block, changed, block]
        assert 5 * block_bytes(packed.config, kv_dtype) <= decoder.kv_bytes
        assert decoder.kv_bytes < 6 * block_bytes(packed.config, kv_dtype)
    assert _native.Decoder.BLOCK == BLOCK
    assert tiny_config().head_dim % 16, "the padding is part of the test"


def test_blocks_for_counts_the_begun_one() -> None:
    assert [blocks_for(n) for n in (0, 1, BLOCK, BLOCK + 1)] == [0, 1, 1, 2]
