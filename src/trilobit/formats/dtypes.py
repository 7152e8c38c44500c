"""Types of numbers as model files name them, and float32 to and from the float ones."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from trilobit.errors import FormatError

# dtype name of the format -> numpy type of the same width
DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(np.bool_),
    "U8": np.dtype(np.uint8),
    "I8": np.dtype(np.int8),
    "U16": np.dtype("<u2"),
    "I16": np.dtype("<i2"),
    "BF16": np.dtype("<u2"),
    "F16": np.dtype("<f2"),
    "U32": np.dtype("<u4"),
    "I32": np.dtype("<i4"),
    "F32": np.dtype("<f4"),
    "U64": np.dtype("<u8"),
    "I64": np.dtype("<i8"),
    "F64": np.dtype("<f8"),
}


FLOATS = ("BF16", "F16", "F32")  # what weights come in


def as_float32(array: NDArray[Any], dtype: str) -> NDArray[np.float32]:
    """Floats of the format's type `dtype` as float32: a copy, unless they are float32 already."""
    if dtype == "BF16":
        wide = array.astype(np.uint32)
        wide <<= 16  # in place: a copy more of a large tensor counts
        return wide.view(np.float32)
    return array.astype(np.float32, copy=False)


def from_float32(values: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """Inverse of `as_float32` for numbers that `dtype` holds; FormatError for others."""
    if dtype == "BF16":
        stored: NDArray[Any] = (values.view(np.uint32) >> 16).astype(DTYPES[dtype])
    else:
        with np.errstate(over="ignore"):
            stored = values.astype(DTYPES[dtype])
    if not np.array_equal(as_float32(stored, dtype), values):
        raise FormatError(f"a number does not fit into {dtype} without rounding")
    return stored


def nearest(values: NDArray[np.float32], dtype: str) -> NDArray[np.float32]:
    """The numbers of the format's type `dtype` next to floats, as float32."""
    if dtype == "BF16":
        bits = np.ascontiguousarray(values).view(np.uint32)
        even = bits + 0x7FFF + (bits >> 16 & 1)  # to even where it lies in the middle
        return (even & np.uint32(0xFFFF0000)).view(np.float32)
    with np.errstate(over="ignore"):
        return as_float32(values.astype(DTYPES[dtype]), dtype)
