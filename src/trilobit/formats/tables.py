"""Embedding and head: too large to be copied, so they are looked at some rows at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from trilobit.errors import FormatError
from trilobit.formats.dtypes import as_float32

_BLOCK_ROWS = 512  # of a table in memory at once


class Table(Protocol):
    """Rows `[vocab, hidden]`: an array, or what makes one of some rows when they are asked for."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows and columns."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the rows."""

    def __len__(self) -> int: ...

    def __getitem__(self, rows: slice, /) -> NDArray[Any]: ...


class WideTable:
    """A table of a type of floats (safetensors' name) as float32, made when rows are asked for."""

    def __init__(self, table: Table, dtype: str) -> None:
        self._table = table
        self._dtype = dtype
        self.shape = table.shape
        self.dtype = np.dtype(np.float32)

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, rows: slice, /) -> NDArray[np.float32]:
        return as_float32(self._table[rows], self._dtype)


def row_blocks(table: Table) -> Iterator[slice]:
    """Slices of some rows each, which together are all rows."""
    for row in range(0, len(table), _BLOCK_ROWS):
        yield slice(row, row + _BLOCK_ROWS)


def check_finite(
    table: Table, dtype: str, where: str, forget: Callable[[], None] = lambda: None
) -> None:
    """FormatError, beginning with `where`, for a table with NaN or infinity.

    forget: called after each block, to let go of the rows of a mapped file.
    """
    for rows in row_blocks(table):
        if not np.isfinite(as_float32(table[rows], dtype)).all():
            raise FormatError(f"{where} holds NaN or infinity; download it again")
        forget()
