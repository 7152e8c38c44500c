"""A model whose float32 tables are rounded to float16: half as large, all else as it is.

Eleven bits of an entry are left, which is more than the bfloat16 of published models has. Entries
of an embedding are near 1, so the range that float16 lacks is not missed.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trilobit.errors import FormatError, RequestError
from trilobit.formats.dtypes import nearest
from trilobit.formats.source import Source
from trilobit.formats.tables import Table


class HalfTable:
    """A float32 table as float16, rounded when rows are asked for.

    where: begins the FormatError for a number that float16 does not reach.
    """

    def __init__(self, table: Table, where: str) -> None:
        self._table, self._where = table, where
        self.shape = table.shape
        self.dtype: np.dtype[Any] = np.dtype("<f2")

    def __len__(self) -> int:
        return len(self._table)

    def __getitem__(self, rows: slice, /) -> NDArray[np.float16]:
        values = nearest(self._table[rows], "F16")
        if not np.isfinite(values).all():
            raise FormatError(
                f"{self._where} has numbers beyond 65,504; leave its tables as they are"
            )
        return values.astype(self.dtype)


class Rounded:
    """A `Source` with its float tables in float16. RequestError where they are not float32."""

    float_dtype = "F16"

    def __init__(self, source: Source) -> None:
        if source.float_dtype != "F32" or source.config.ternary_embeddings:
            held = "ternary" if source.config.ternary_embeddings else source.float_dtype
            raise RequestError(
                f"{source.path}: its tables are {held}, and only float32 is rounded to float16; "
                "leave out half_tables (--half-tables)"
            )
        self._source = source
        self.path, self.label = source.path, source.label
        self.config, self.text = source.config, source.text

    def projection(self, name: str) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
        """As of the source; scales of groups are rounded too, since both have one type."""
        codes, scales = self._source.projection(name)
        return codes, nearest(scales, "F16") if self.config.scales == "group" else scales

    def gain(self, name: str) -> NDArray[np.float32]:
        """As of the source."""
        return self._source.gain(name)

    def table(self, name: str) -> Table:
        """Embedding or head, rounded."""
        return HalfTable(self._source.table(name), f"{self.path}: '{name}'")

    def forget(self) -> None:
        """As of the source."""
        self._source.forget()
