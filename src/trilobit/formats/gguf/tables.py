"""Embeddings and heads in GGUF's quantised types: dequantised some rows at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trilobit.formats.gguf.float_blocks import dequantise


class QuantisedTable:
    """A table `[vocab, hidden]` of bytes that reads as float32."""

    def __init__(self, type_id: int, data: NDArray[np.uint8], shape: tuple[int, ...]) -> None:
        self.shape = shape
        self.dtype: np.dtype[Any] = np.dtype("<f4")
        self._type_id = type_id
        self._rows = data.reshape(shape[0], -1)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> NDArray[np.float32]:
        data = np.ascontiguousarray(self._rows[rows]).reshape(-1)
        return dequantise(self._type_id, data).reshape(-1, self.shape[1])
