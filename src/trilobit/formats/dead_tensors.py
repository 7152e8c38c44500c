"""Tensors that nobody trained: they can be read, and a model with them talks nonsense.

Published files had matrices of nothing but zeros. What is judged here no sound model comes near;
random ternary matrices have some 38 % zeros, trained ones 30 to 60 %, spread over all rows.
"""

from __future__ import annotations

import zlib
from statistics import median

import numpy as np
from numpy.typing import NDArray

from trilobit.errors import FormatError
from trilobit.formats.dtypes import as_float32
from trilobit.formats.source import Source
from trilobit.formats.tables import Table, row_blocks
from trilobit.formats.text_files import TextFiles
from trilobit.model import tensor_names
from trilobit.progress import Steps

# Neurons of a trained relu² MLP that are never positive fade by weight decay: 30 % were seen.
_MOST_ZERO_ROWS = 0.45
# Tokens that no text has (padding of the vocabulary) are a few in a hundred rows.
_MOST_ZERO_TOKENS = 0.25
# A share of -1, 0 or 1 beside the median of all matrices: layers of one model differ by a tenth.
_FARTHEST_SHARE = 0.4
_MOST_ZERO_GAINS = 0.5


class Judge:
    """Sees every tensor once, as it is read, and says at the end which are dead."""

    def __init__(self) -> None:
        self.matrices = 0
        self._found: list[str] = []
        self._counts = np.zeros(3, dtype=np.int64)
        self._shares: dict[str, tuple[float, float, float]] = {}
        self._seen: dict[tuple[tuple[int, ...], int], str] = {}

    def projection(self, name: str, codes: NDArray[np.int8], scales: NDArray[np.float32]) -> None:
        """Look at a ternary matrix."""
        self.matrices += 1
        filled = np.count_nonzero(codes)
        surplus = int(codes.sum(dtype=np.int64))  # of +1 over -1
        plus, minus = (filled + surplus) // 2, (filled - surplus) // 2
        counts = (minus, codes.size - filled, plus)
        self._counts += counts
        if codes.size > 1 and max(counts) == codes.size:
            self._found.append(f"'{name}' is all {(-1, 0, 1)[counts.index(codes.size)]}")
            return
        if not scales.any():
            self._found.append(f"'{name}' has scales of nothing but 0")
            return
        self._shares[name] = (minus / codes.size, counts[1] / codes.size, plus / codes.size)
        zero_rows = 1 - np.count_nonzero(codes.any(axis=1)) / len(codes)
        if zero_rows > _MOST_ZERO_ROWS:
            self._found.append(f"'{name}' has {zero_rows:.0%} rows of zeros")
        key = codes.shape, zlib.crc32(np.ascontiguousarray(codes).data)
        if codes.size >= 256 and key in self._seen:  # fewer may be alike by chance
            self._found.append(f"'{name}' is a copy of '{self._seen[key]}'")
        self._seen.setdefault(key, name)

    def gain(self, name: str, gain: NDArray[np.float32]) -> None:
        """Look at a norm."""
        zeros = 1 - np.count_nonzero(gain) / gain.size
        if zeros > _MOST_ZERO_GAINS:
            self._found.append(f"'{name}' is {zeros:.0%} zeros")

    def table(self, name: str, table: Table, dtype: str) -> None:
        """Look at an embedding or head."""
        rows, alike, zeros = len(table), True, 0
        first = as_float32(np.asarray(table[0:1]), dtype)
        for some in row_blocks(table):
            part = as_float32(np.asarray(table[some]), dtype)
            zeros += len(part) - int(np.count_nonzero(part.any(axis=1)))
            alike = alike and bool((part == first).all())
        if rows > 1 and alike:
            self._found.append(f"'{name}' has the same numbers in every row")
        elif zeros > _MOST_ZERO_TOKENS * rows:
            self._found.append(f"'{name}' has {zeros / rows:.0%} rows of zeros")

    @property
    def shares(self) -> tuple[float, float, float]:
        """Shares of -1, 0 and 1 in all matrices together."""
        minus, zero, plus = (self._counts / max(self._counts.sum(), 1)).tolist()
        return minus, zero, plus

    def dead(self) -> list[str]:
        """What is wrong with which tensor, a sentence's beginning each."""
        usual = [median(column) for column in zip(*self._shares.values(), strict=True)]
        far = [
            f"'{name}' has {found:.0%} of {code}, the others {wanted:.0%}"
            for name, shares in self._shares.items()
            for code, found, wanted in zip((-1, 0, 1), shares, usual, strict=True)
            if abs(found - wanted) > _FARTHEST_SHARE
        ]
        return self._found + far


def look_at(source: Source, judge: Judge, progress: Steps | None = None) -> None:
    """Show a judge every tensor of a model; FormatError where one cannot be read, or be so."""
    projections = [name for name, _ in tensor_names.all_projections(source.config)]
    for done, name in enumerate(projections):
        codes, scales = source.projection(name)
        if not (np.isfinite(scales).all() and (scales >= 0).all()):
            raise FormatError(f"{source.path}: '{name}' has a scale that is no size")
        judge.projection(name, codes, scales)
        source.forget()
        if progress:
            progress(done + 1, len(projections))
    for name, _ in tensor_names.all_norms(source.config):
        judge.gain(name, source.gain(name))
    for name in tensor_names.float_tables(source.config):
        judge.table(name, source.table(name), source.float_dtype)
        source.forget()


class Judged:
    """A `Source` whose tensors a judge looks at as they are read. text: to take for its own."""

    def __init__(self, source: Source, judge: Judge, text: TextFiles) -> None:
        self._source, self._judge = source, judge
        self._judged: set[str] = set()  # some writers read twice
        self.path, self.label, self.float_dtype = source.path, source.label, source.float_dtype
        self.config, self.text = source.config, text

    def projection(self, name: str) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """As of the source."""
        codes, scales = self._source.projection(name)
        if self._is_new(name):
            self._judge.projection(name, codes, scales)
        return codes, scales

    def gain(self, name: str) -> NDArray[np.float32]:
        """As of the source."""
        gain = self._source.gain(name)
        if self._is_new(name):
            self._judge.gain(name, gain)
        return gain

    def table(self, name: str) -> Table:
        """As of the source."""
        table = self._source.table(name)
        if self._is_new(name):
            self._judge.table(name, table, self.float_dtype)
            self._source.forget()
        return table

    def forget(self) -> None:
        """As of the source."""
        self._source.forget()

    def _is_new(self, name: str) -> bool:
        new = name not in self._judged
        self._judged.add(name)
        return new


def in_words(dead: list[str]) -> str:
    """The first few of them in one line."""
    rest = f" and {len(dead) - 3} more" if len(dead) > 3 else ""
    return "; ".join(dead[:3]) + rest
