"""The screen of the output head: a copy in two looks that tells which tokens can still win.

A decode step that only needs the winner (greedy, or the winner of a Gumbel race) reads the coarse
plane of this copy, an eighth of the head's bytes, and of the fine plane the rows that the coarse
one leaves in doubt. It computes exactly only the rows whose approximate logit comes close.
`docs/head.md` says what is guaranteed. This file specifies the copy; the native core reads it.

Rotation. A row h and the hidden state x are multiplied by the same orthogonal matrix, so their
product stays: signs by column, then a normalised Hadamard matrix on blocks of up to 512 columns.
It spreads outliers over a block, so that few bits suffice, and makes the rounding errors of a row
behave like independent noise: the error of a logit has the deviation |residual| · |x| / √K.

Planes. A plane has two bits a weight, the codes 0 to 3, which mean code - 3/2, times one scale a
row. The coarse plane is of the rotated row, the fine plane of what the coarse one misses, its
residual; the residual of the fine plane is what both miss. A scale is such that the residual is
orthogonal to what was rounded: the product of a row with itself is exact, so a hidden state that
points along a row, as the winner's does, finds its logit no smaller than it is.

Order. The copy goes into a file, so its bits are a function of the head: every number is the result
of IEEE additions, products, quotients and roots of single elements, in the order that `_rotated`
and `model/sums.py` fix, and of no matrix product, whose order is the processor's.

Layout. Columns are padded to a multiple of 64. Planes are packed as ternary matrices of two bits
are (`model/packing.py`): the coarse one in groups, since all of it is read, the fine one in rows.
"""

# N rows (tokens of the vocabulary), K columns

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from trilobit.errors import FormatError
from trilobit.model import packing
from trilobit.model.packing import Order
from trilobit.model.sums import tree_sum

ORDERS: dict[str, Order] = {"coarse": "groups", "fine": "rows"}

_PADDED = 64  # the least columns of a Hadamard block
_HADAMARD = 512  # the most columns of a Hadamard block
# Steps between codes in units of the root mean square. Of a Gaussian, the coarse plane alone would
# miss least with 1.0, both together with 1.3.
_STEPS = {"coarse": np.float32(1.1), "fine": np.float32(0.9)}
_LEAST_STEP = np.float32(1e-30)  # of a row of zeros
_LARGEST_EXPONENT = 120  # of two, whose inverse is a normal float as well


class Plane(NamedTuple):
    """Two bits of a weight, packed; by row the scale and what is missed still, float32 `[N]`."""

    codes: NDArray[np.uint8]
    scales: NDArray[np.float32]
    residuals: NDArray[np.float32]


def plane_shape(name: str, rows: int, columns: int) -> tuple[int, ...]:
    """Shape of the codes of a plane of a `[rows, columns]` head, in bytes."""
    return packing.packed_shape(rows, _padded(columns), "2-bit", ORDERS[name])


def hadamard_block(columns: int) -> int:
    """Columns of a Hadamard block: the largest power of two that divides the padded columns."""
    padded = _padded(columns)
    return min(padded & -padded, _HADAMARD)


def signs(columns: int) -> NDArray[np.float32]:
    """The sign of every column, +1 or -1: a bit of murmur3's 32-bit finaliser of its number."""
    h = np.arange(1, columns + 1, dtype=np.uint32)
    h ^= h >> np.uint32(16)
    h *= np.uint32(0x85EBCA6B)
    h ^= h >> np.uint32(13)
    h *= np.uint32(0xC2B2AE35)
    h ^= h >> np.uint32(16)
    return np.where(h & 1, np.float32(-1), np.float32(1))


def rotate(x_NK: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rotated rows, padded with zeros to a multiple of 64 columns before the rotation."""
    return np.ascontiguousarray(_rotated(x_NK, np.float32(1)).T)


def screen(h_NK: NDArray[np.float32]) -> dict[str, Plane]:
    """The coarse and the fine plane of a head.

    FormatError for a row so long that float32 cannot hold its logits.
    """
    # By powers of two, which rounds nothing: squares of 1e19 would be infinite.
    longest_N = np.abs(h_NK).max(axis=1)
    exponents_N = np.clip(np.frexp(longest_N)[1], -_LARGEST_EXPONENT, _LARGEST_EXPONENT)
    rest_KN = _rotated(h_NK, np.ldexp(np.float32(1), -exponents_N))
    planes = {}
    for name, order in ORDERS.items():
        q_KN, scales_N = _rounded(rest_KN, _STEPS[name])
        stored_KN = (q_KN + np.float32(1.5)).astype(np.uint8)
        np.subtract(rest_KN, np.multiply(q_KN, scales_N, out=q_KN), out=rest_KN)
        residuals_N = np.sqrt(tree_sum(np.square(rest_KN)))
        with np.errstate(over="ignore"):
            sizes = np.ldexp(scales_N, exponents_N), np.ldexp(residuals_N, exponents_N)
        if not np.isfinite(sizes).all():
            raise FormatError(
                f"the head has a row with weights up to {longest_N.max():.3g}, whose logits "
                "float32 cannot hold; is the checkpoint damaged?"
            )
        planes[name] = Plane(packing.pack_stored(stored_KN.T, "2-bit", order), *sizes)
    return planes


def _rounded(
    x_KN: NDArray[np.float32], step: np.float32
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Codes less 3/2 `[K, N]`, and scales `[N]`: x · (x - code · scale) is 0."""
    columns, rows = x_KN.shape
    squares_N = tree_sum(np.square(x_KN))
    steps_N = np.maximum(step * np.sqrt(squares_N / np.float32(columns)), _LEAST_STEP)
    q_KN = np.divide(x_KN, steps_N)
    np.clip(np.floor(q_KN, out=q_KN), -2, 1, out=q_KN)
    q_KN += np.float32(0.5)
    products_N = tree_sum(x_KN * q_KN)  # each at least 0
    zeros_N = np.zeros(rows, dtype=np.float32)
    return q_KN, np.divide(squares_N, products_N, out=zeros_N, where=products_N > 0)


def _padded(columns: int) -> int:
    return -(-columns // _PADDED) * _PADDED


def _rotated(
    x_NK: NDArray[np.float32], factor_N: NDArray[np.float32] | np.float32
) -> NDArray[np.float32]:
    """Rows times their factors, rotated `[K padded, N]`.

    The matrix is applied as a butterfly, neighbours first, as the native core does: the bits are
    the same as there. Columns come first so that numpy adds long runs.
    """
    rows, columns = x_NK.shape
    padded, block = _padded(columns), hadamard_block(columns)
    from_KN = np.zeros((padded, rows), dtype=np.float32)
    np.multiply(x_NK.T, factor_N, out=from_KN[:columns])
    from_KN *= (signs(padded) * (np.float32(1) / np.sqrt(np.float32(block))))[:, None]
    to_KN = np.empty_like(from_KN)
    half = 1
    while half < block:
        pairs, out = (x.reshape(-1, 2, half * rows) for x in (from_KN, to_KN))
        np.add(pairs[:, 0], pairs[:, 1], out=out[:, 0])
        np.subtract(pairs[:, 0], pairs[:, 1], out=out[:, 1])
        from_KN, to_KN = to_KN, from_KN
        half *= 2
    return from_KN
