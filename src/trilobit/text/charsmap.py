"""SentencePiece's table of characters and what they become: whether all that it points to is there.

A table is the size of a trie in bytes, the trie, and texts that end with a zero byte. The trie is
Darts' double array: a unit is 32 bits, the children of a node stand at its place XOR their byte
(https://github.com/s-yata/darts-clone). Who reads it believes every place in it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_LONGEST = 2_000_000  # bytes; published ones have up to 320,000
_NODES = 4096  # looked at together
_BYTES = np.arange(1, 256, dtype=np.int64)


class CharsmapFault(Exception):
    """What is wrong with a table: a few words."""


def growth_by(data: bytes) -> float:
    """How many times as long a text may become; CharsmapFault for a table that is damaged."""
    size = int.from_bytes(data[:4], "little")
    if len(data) < 8 or size % 4 or not 4 <= size <= len(data) - 4:
        raise CharsmapFault(f"of {len(data):,} bytes, which claims a trie of {size:,}")
    if len(data) > _LONGEST:
        raise CharsmapFault(f"of {len(data):,} bytes; at most {_LONGEST:,} are read")
    units = np.frombuffer(data, dtype="<u4", count=size // 4, offset=4).astype(np.int64)
    texts = data[4 + size :]
    try:
        texts.decode("utf-8")
    except UnicodeDecodeError:
        raise CharsmapFault("with texts that are not UTF-8") from None
    return _growth(units, texts)


def _growth(units: NDArray[np.int64], texts: bytes) -> float:
    """Walk through the trie, byte by byte of what is looked for."""
    growth, depth = 1.0, 0
    ends = np.append(np.flatnonzero(np.frombuffer(texts, dtype=np.uint8) == 0), len(texts))
    begins = np.append(np.frombuffer(texts, dtype=np.uint8) & 0xC0 != 0x80, True)
    seen = np.zeros(len(units), dtype=bool)
    nodes = _offsets(units[:1])
    while len(nodes):
        depth += 1
        # Any byte of a text may be looked for.
        if int((nodes | 255).max()) >= len(units):
            raise CharsmapFault("that points behind its end")
        seen[nodes] = True
        found = [_children(units, nodes[at : at + _NODES]) for at in range(0, len(nodes), _NODES)]
        children = np.unique(np.concatenate(found))
        below = children ^ _offsets(units[children])
        leaves = below[units[children] >> 8 & 1 == 1]
        if len(leaves):
            if int(leaves.max()) >= len(units):
                raise CharsmapFault("that points behind its end")
            values = units[leaves] & 0x7FFFFFFF
            if int(values.max()) > len(texts) or not begins[values].all():
                raise CharsmapFault("that points behind its texts, or into a character")
            lengths = ends[np.searchsorted(ends, values)] - values
            growth = max(growth, int(lengths.max()) / depth)
        if len(below) and int((below | 255).max()) >= len(units):
            raise CharsmapFault("that points behind its end")
        nodes = np.unique(below[~seen[below]])
    return growth


def _children(units: NDArray[np.int64], nodes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Places of all children of nodes: those whose label is the byte that leads to them."""
    places = nodes[:, None] ^ _BYTES
    is_child = units[places] & 0x800000FF == _BYTES
    children: NDArray[np.int64] = places[is_child]
    return children


def _offsets(units: NDArray[np.int64]) -> NDArray[np.int64]:
    return (units >> 10) << ((units & 0x200) >> 6)
