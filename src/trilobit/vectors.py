"""Embeddings in fewer bits, and how alike they are: the definition, in numpy.

Every vector is quantised by itself, and its scale is not stored: the cosine does not depend on it.

- int8: `round(127 · v / max|v|)`, one byte a value.
- int4, int2, int1: `2^b` levels of equal width around zero, as wide as loses least of a Gaussian
  (Max, "Quantizing for minimum distortion", 1960, table II), measured in the root mean square of
  the vector. A code `c` in `0 … 2^b - 1` stands for the odd number `2c - (2^b - 1)`; of one bit
  it is the sign. Value `i` has the bits `b · (i mod 8/b)` and up of byte `i // (8/b)`, low bits
  first; what is left of the last byte is zero.
"""

# Q queries, N vectors, K values of a vector

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from trilobit.errors import RequestError
from trilobit.model.sums import tree_sum

Precision = Literal["float32", "int8", "int4", "int2", "int1"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)

_BITS: dict[str, int] = {"int4": 4, "int2": 2, "int1": 1}
# Width of a level over the root mean square; of one bit only the sign counts.
_WIDTH = {4: 0.3352, 2: 0.9957, 1: 1.0}
_BLOCK_ROWS = 4096  # of stored vectors as floats at once


def check_precision(precision: str) -> None:
    """RequestError for a precision that there is not."""
    if precision not in PRECISIONS:
        raise RequestError(f"precision is {precision!r}; expected one of {', '.join(PRECISIONS)}")


def _check_array(name: str, value: object) -> None:
    if not isinstance(value, np.ndarray):
        raise RequestError(
            f"{name} are of type {type(value).__name__}; expected an array, such as `embed` gives"
        )


def pack_vectors(vectors_NK: NDArray[np.float32], precision: Precision) -> NDArray[Any]:
    """Vectors in fewer bits: float32 or int8 `[N, K]`, else uint8 `[N, ceil(K · bits / 8)]`."""
    check_precision(precision)
    _check_array("vectors", vectors_NK)
    if vectors_NK.ndim != 2 or vectors_NK.dtype != np.float32:
        raise RequestError(
            f"vectors are {vectors_NK.dtype} {list(vectors_NK.shape)}; expected float32 [N, K]"
        )
    if precision == "float32":
        return vectors_NK
    if precision == "int8":
        top = np.abs(vectors_NK).max(axis=1, keepdims=True, initial=0)
        scale = np.divide(np.float32(127), top, out=np.zeros_like(top), where=top > 0)
        codes: NDArray[np.int8] = np.rint(vectors_NK * scale).astype(np.int8)
        return codes
    bits = _BITS[precision]
    squares_N = tree_sum(np.square(vectors_NK, dtype=np.float64).T)
    spread = np.sqrt(squares_N / vectors_NK.shape[1]).astype(np.float32)[:, None]
    width = spread * np.float32(_WIDTH[bits])
    steps = np.divide(vectors_NK, width, out=np.zeros_like(vectors_NK), where=width > 0)
    half = 2 ** (bits - 1)
    codes_NK = (np.clip(np.floor(steps), -half, half - 1) + half).astype(np.uint8)
    per_byte = 8 // bits
    codes_NK = np.pad(codes_NK, ((0, 0), (0, -codes_NK.shape[1] % per_byte)))
    packed = np.zeros((len(codes_NK), codes_NK.shape[1] // per_byte), dtype=np.uint8)
    for place in range(per_byte):
        packed |= codes_NK[:, place::per_byte] << np.uint8(bits * place)
    return packed


def unpack_vectors(
    stored: NDArray[Any], precision: Precision, dimensions: int
) -> NDArray[np.float32]:
    """Unit vectors float32 `[N, K]` from what `pack_vectors` made of vectors of K = `dimensions`.

    RequestError when the array cannot be that.
    """
    check_precision(precision)
    _check_array("vectors", stored)
    bits = _BITS.get(precision)
    columns = -(-dimensions * bits // 8) if bits else dimensions
    dtype = np.dtype("uint8" if bits else precision)
    if stored.ndim != 2 or stored.shape[1] != columns or stored.dtype != dtype:
        raise RequestError(
            f"vectors are {stored.dtype} {list(stored.shape)}; {precision} of {dimensions} "
            f"dimensions is {dtype} [N, {columns}]"
        )
    if bits is None:
        return _unit(stored.astype(np.float32))
    values_NK = np.empty((len(stored), columns * (8 // bits)), dtype=np.float32)
    for place in range(8 // bits):
        codes = (stored >> np.uint8(bits * place)) & np.uint8(2**bits - 1)
        values_NK[:, place :: 8 // bits] = 2 * codes.astype(np.float32) - (2**bits - 1)
    return _unit(values_NK[:, :dimensions])


def similarity(
    queries_QK: NDArray[np.float32], stored: NDArray[Any], precision: Precision = "float32"
) -> NDArray[np.float32]:
    """Cosines float32 `[Q, N]` of float32 queries and of vectors stored in any precision."""
    _check_array("queries", queries_QK)
    _check_array("vectors", stored)
    if queries_QK.ndim != 2 or queries_QK.dtype != np.float32:
        raise RequestError(
            f"queries are {queries_QK.dtype} {list(queries_QK.shape)}; expected float32 [Q, K]"
        )
    queries_QK = _unit(queries_QK)
    cosines_QN = np.empty((len(queries_QK), len(stored)), dtype=np.float32)
    for row in range(0, max(len(stored), 1), _BLOCK_ROWS):
        rows = slice(row, row + _BLOCK_ROWS)
        vectors_NK = unpack_vectors(stored[rows], precision, queries_QK.shape[1])
        cosines_QN[:, rows] = queries_QK @ vectors_NK.T
    return cosines_QN


def _unit(vectors_NK: NDArray[np.float32]) -> NDArray[np.float32]:
    """Vectors of length 1; of zero stay zero."""
    wide_NK = vectors_NK.astype(np.float64)
    length = np.sqrt(tree_sum(np.square(wide_NK).T))[:, None]
    unit_NK = np.divide(wide_NK, length, out=np.zeros_like(wide_NK), where=length > 0)
    result: NDArray[np.float32] = unit_NK.astype(np.float32)
    return result
