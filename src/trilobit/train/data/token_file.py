"""Tokens on disk: a numpy array as narrow as the vocabulary allows, written as it grows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.uint16] | NDArray[np.uint32]


def token_dtype(vocab_size: int) -> np.dtype[np.uint16] | np.dtype[np.uint32]:
    """The narrowest type that holds every token of a vocabulary."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


class TokenFile:
    """A .npy of token ids that grows by one document at a time.

    The header comes first, as long as it will be, and again at the end with the length:
    numpy pads it so that it can.
    """

    def __init__(
        self, path: Path, dtype: np.dtype[Any], bos_id: int | None, eos_id: int | None
    ) -> None:
        self._path, self._dtype, self.length = path, dtype, 0
        self._before = [] if bos_id is None else [bos_id]
        self._behind = [] if eos_id is None else [eos_id]

    def __enter__(self) -> Self:
        self._file = self._path.open("wb")
        self._write_header()
        return self

    def append(self, ids: Sequence[int]) -> None:
        """Add a document, between what begins and what ends one."""
        tokens = np.array([*self._before, *ids, *self._behind], dtype=self._dtype)
        self._file.write(tokens.tobytes())
        self.length += len(tokens)

    def __exit__(self, *_: object) -> None:
        with self._file:
            self._file.seek(0)
            self._write_header()

    def _write_header(self) -> None:
        about = {"descr": self._dtype.str, "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(self._file, about)
