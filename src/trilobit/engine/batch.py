"""The flat arrays of one step: prompt chunks, decode tokens, drafts, texts to score or to embed.

The one builder of them. Output rows of sequences whose next token is chosen come first, each
sequence's last token and then its draft; behind them the rows of readings.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trilobit.engine.sequence import Sequence

Int32 = NDArray[np.int32]


class Rows(NamedTuple):
    """Output rows of a reading: `size` from the row `first` on, of positions from `start` on."""

    sequence: Sequence
    start: int
    first: int
    size: int


class Batch:
    """What one forward computes.

    chunks: sequences and how many of their tokens, in order. drafts: guesses behind the last token.
    token_ids, positions, owners: by token; owners are rows of `tables`, the blocks of each
    sequence. outputs: tokens whose states come out. asking: sequences whose next token is chosen.
    readings: rows that others want.
    """

    def __init__(
        self, chunks: Mapping[Sequence, int], drafts: Mapping[Sequence, list[int]] | None = None
    ) -> None:
        self.chunks = chunks
        self.drafts = drafts = drafts or {}
        self.asking: list[Sequence] = []
        self.readings: list[Rows] = []
        ids: list[int] = []
        positions: list[int] = []
        owners: list[int] = []
        outputs: list[int] = []
        read: list[int] = []
        self.tables = np.zeros((len(chunks), max(len(s.blocks) for s in chunks)), dtype=np.int32)
        for row, (sequence, count) in enumerate(chunks.items()):
            start, end = sequence.computed, sequence.computed + count
            draft = drafts.get(sequence, ())
            first = len(ids)
            ids += sequence.tokens[start:end]
            ids += draft
            positions += range(start, end + len(draft))
            owners += [row] * (count + len(draft))
            self.tables[row, : len(sequence.blocks)] = sequence.blocks
            if sequence.reading is not None:
                begin, stop = max(sequence.reading.first, start), min(sequence.reading.end, end)
                if begin < stop:
                    self.readings.append(Rows(sequence, begin, len(read), stop - begin))
                    read += range(first + begin - start, first + stop - start)
            elif end == len(sequence.tokens):
                outputs += range(len(ids) - 1 - len(draft), len(ids))
                self.asking.append(sequence)
        if read:
            chosen = len(outputs)
            outputs += read
            self.readings = [one._replace(first=one.first + chosen) for one in self.readings]
        self.token_ids = np.array(ids, dtype=np.int32)
        self.positions = np.array(positions, dtype=np.int32)
        self.owners = np.array(owners, dtype=np.int32)
        self.outputs = np.array(outputs, dtype=np.int32)

    def drafts_of_asking(self) -> list[list[int]]:
        """The draft of each sequence whose next token is chosen."""
        return [self.drafts.get(one, []) for one in self.asking]
