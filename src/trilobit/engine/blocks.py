"""KV cache blocks: who holds them, and which of them can serve another sequence.

A block holds the keys and values of 32 consecutive positions, in all layers. What it holds depends
on every token up to its last one, so a full block is known by a chained hash: of the block before
it and its own tokens. A sequence that begins with the same tokens takes the same blocks. A block
that nobody holds stays known until its memory is wanted; the longest unused goes first.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from typing import Literal, Protocol

from trilobit.model.config import ModelConfig

BLOCK = 32  # positions; the native module's Decoder.BLOCK

Key = bytes
KvDtype = Literal["f16", "f32", "i8"]
ROOT: Key = b""  # the key before a first block, without a salt


def key_of(parent: Key, token_ids: Sequence[int]) -> Key:
    """Name of a full block: a hash that nobody meets twice, so equal keys are equal tokens."""
    return blake2b(parent + array("q", token_ids).tobytes(), digest_size=16).digest()


def root_of(salt: bytes) -> Key:
    """The key before the first block of sequences with this salt."""
    return blake2b(salt, digest_size=16).digest() if salt else ROOT


def keys_of(root: Key, token_ids: Sequence[int]) -> Iterator[Key]:
    """Names of the full blocks of a text, in order."""
    key = root
    for end in range(BLOCK, len(token_ids) + 1, BLOCK):
        key = key_of(key, token_ids[end - BLOCK : end])
        yield key


class Store(Protocol):
    """Where blocks are kept beyond the pool, such as `prefix_cache`. May lose any."""

    def load(self, key: Key, block: int) -> bool:
        """Put what a key names into a block, held by the caller; False where it is not here."""

    def keep(self, key: Key, block: int) -> None:
        """Keep a block that is known by a key."""

    def used(self, root: Key, token_ids: list[int]) -> None:
        """Note that a text was asked for that begins with these tokens, full blocks."""

    def close(self) -> None:
        """Finish what was begun."""


class BlockPool:
    """`count` blocks with reference counts."""

    def __init__(self, count: int) -> None:
        self._references = [0] * count
        self._key: list[Key | None] = [None] * count
        self._block_of: dict[Key, int] = {}
        # The block given back last is taken first: untouched memory stays untouched.
        self._blank = list(range(count))[::-1]
        # Known but held by nobody, the longest unused first.
        self._unused: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._references)

    @property
    def available(self) -> int:
        """Blocks that `take` can still give."""
        return len(self._blank) + len(self._unused)

    def take(self, count: int) -> list[int] | None:
        """Blocks for new content, each held once; None, and nothing taken, when there are fewer."""
        if count > self.available:
            return None
        return [self._take() for _ in range(count)]

    def match(self, token_ids: Sequence[int], root: Key = ROOT) -> tuple[list[int], Key]:
        """Known blocks that a sequence begins with, each held once more, and the last one's key.

        Always leaves at least one token to compute: its logits are not kept.
        """
        blocks: list[int] = []
        key = root
        for end in range(BLOCK, len(token_ids), BLOCK):
            longer = key_of(key, token_ids[end - BLOCK : end])
            block = self._block_of.get(longer)
            if block is None:
                break
            self._references[block] += 1
            self._unused.pop(block, None)
            blocks.append(block)
            key = longer
        return blocks, key

    def publish(self, block: int, key: Key) -> None:
        """Make a full, held block known. The first of two with the same content is kept."""
        if self._key[block] is None and key not in self._block_of:
            self._key[block] = key
            self._block_of[key] = block

    def release(self, blocks: Sequence[int]) -> None:
        """Give up a sequence's blocks."""
        # The end of a sequence goes before its beginning: what comes after a hole is lost anyway.
        for block in reversed(blocks):
            assert self._references[block] > 0
            self._references[block] -= 1
            if self._references[block]:
                continue
            if self._key[block] is None:
                self._blank.append(block)
            else:
                self._unused[block] = None

    def _take(self) -> int:
        if self._blank:
            block = self._blank.pop()
        else:
            block, _ = self._unused.popitem(last=False)
            self._forget(block)
        self._references[block] = 1
        return block

    def _forget(self, block: int) -> None:
        key = self._key[block]
        assert key is not None
        del self._block_of[key]
        self._key[block] = None


def blocks_for(tokens: int) -> int:
    """Blocks that hold so many positions."""
    return -(-tokens // BLOCK)


def block_bytes(config: ModelConfig, kv_dtype: KvDtype) -> int:
    """Bytes of one block: keys and values of every layer, heads padded as the decoder pads them."""
    head = -(-config.head_dim // 16) * 16
    # Of one position of one head; i8 has a scale beside its codes.
    size = {"f16": 2 * head, "f32": 4 * head, "i8": head + 4}[kv_dtype]
    return 2 * config.num_hidden_layers * config.num_key_value_heads * BLOCK * size
