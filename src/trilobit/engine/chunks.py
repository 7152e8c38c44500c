"""Which tokens of which texts run together, when nothing follows them: prefill alone.

Texts of like length run together, the longest first. A step is filled to its last token: a text
may begin in one and end in the next, which changes no bit of it.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Sequence as Items
from typing import NamedTuple

from .blocks import blocks_for


class Chunk(NamedTuple):
    """Tokens `start` to `end` of a text, by its number."""

    text: int
    start: int
    end: int


def plan(lengths: Items[int], *, batch_tokens: int, blocks: int) -> Iterator[list[Chunk]]:
    """Steps that compute every token of texts of `lengths` once, each text's in order.

    A step has `batch_tokens` tokens at most, and its texts together `blocks` blocks for all tokens
    up to the last one that it computes; the longest text must fit.
    """
    step: list[Chunk] = []
    tokens_left, blocks_left = batch_tokens, blocks
    for text in sorted(range(len(lengths)), key=lambda text: -lengths[text]):
        length, needed = lengths[text], blocks_for(lengths[text])
        assert length >= 1
        assert needed <= blocks
        start = 0
        while start < length:
            if tokens_left == 0 or (start == 0 and needed > blocks_left):
                yield step
                step, tokens_left = [], batch_tokens
                blocks_left = blocks - (needed if start else 0)  # all others are done
            if start == 0:
                blocks_left -= needed
            end = min(length, start + tokens_left)
            step.append(Chunk(text, start, end))
            tokens_left -= end - start
            start = end
    if step:
        yield step
