"""The screen of the output head: a four-bit copy that tells which tokens can still win.

A decode step that only needs the winner (greedy, or the winner of a Gumbel race) reads this copy,
a quarter of the bytes, and computes exactly only the rows whose approximate logit comes close.
`docs/head.md` says what is guaranteed. This file specifies the copy; the native core reads it.

Rotation. A row h and the hidden state x are multiplied by the same orthogonal matrix, so their
product stays: signs by column, then a normalised Hadamard matrix on blocks of up to 512 columns.
It spreads outliers over a block, so that four bits suffice, and makes the rounding errors of a row
behave like independent noise: the error of a logit has the deviation |residual| · |x| / √K.

Quantisation. A rotated row becomes integers -7..7 times one scale, chosen to keep the residual
(what the integers miss) small.

Order. The copy goes into a file, so its bits are a function of the head: every number is the result
of IEEE additions, products, quotients and roots of single elements, in the order that `_rotated`
and `model/sums.py` fix, and of no matrix product, whose order is the processor's.

Layout. Columns are padded to a multiple of 64, rows to a multiple of 16. 16 rows by 8 columns make
one block of 64 bytes: four bytes of each row; byte p holds the columns p and p+4 of the block, as
code + 8, in its low and high half:

    codes[rows/16, columns/8, 16, 4]
"""

# N rows (tokens of the vocabulary), K columns

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trilobit.errors import FormatError
from trilobit.model.sums import tree_sum

ROWS = 16
COLUMNS = 8  # of one block: four bytes of two codes
LARGEST = 7  # of the integers

_PADDED = 64  # the least columns of a Hadamard block
_HADAMARD = 512  # the most columns of a Hadamard block
# Steps in units of the row's root mean square. 0.335 is the best for a Gaussian (Max, 1960); rows
# with heavier tails want longer ones.
_STEPS = (0.335, 0.45)
_LEAST_SCALE = np.float32(1e-30)  # of a row of zeros
_LARGEST_EXPONENT = 120  # of two, whose inverse is a normal float as well


def screen_shape(rows: int, columns: int) -> tuple[int, int, int, int]:
    """Shape of the codes of a `[rows, columns]` head, in bytes."""
    return -(-rows // ROWS), _padded(columns) // COLUMNS, ROWS, COLUMNS // 2


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


def screen(
    h_NK: NDArray[np.float32],
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
    """Codes in the layout above; by row the scale and the norm of the residual, float32 `[N]`.

    FormatError for a row so long that float32 cannot hold its logits.
    """
    # By powers of two, which rounds nothing: squares of 1e19 would be infinite.
    longest_N = np.abs(h_NK).max(axis=1)
    exponents_N = np.clip(np.frexp(longest_N)[1], -_LARGEST_EXPONENT, _LARGEST_EXPONENT)
    rotated_KN = _rotated(h_NK, np.ldexp(np.float32(1), -exponents_N))
    columns, rows = rotated_KN.shape
    rms_N = np.sqrt(tree_sum(np.square(rotated_KN)) / np.float32(columns))
    top_N = np.abs(rotated_KN).max(axis=0) / np.float32(LARGEST)
    best_q_KN = np.zeros(rotated_KN.shape, dtype=np.int8)
    best_scale_N = np.zeros(rows, dtype=np.float32)
    best_N = np.full(rows, np.inf, dtype=np.float32)
    q_KN, missed_KN = np.empty_like(rotated_KN), np.empty_like(rotated_KN)
    for scale_N in (*(np.float32(step) * rms_N for step in _STEPS), top_N):
        scale_N = np.maximum(scale_N, _LEAST_SCALE)
        np.rint(np.divide(rotated_KN, scale_N, out=q_KN), out=q_KN)
        np.clip(q_KN, -LARGEST, LARGEST, out=q_KN)
        np.subtract(rotated_KN, np.multiply(q_KN, scale_N, out=missed_KN), out=missed_KN)
        residual_N = np.sqrt(tree_sum(np.square(missed_KN, out=missed_KN)))
        better_N = residual_N < best_N
        np.copyto(best_q_KN, q_KN, where=better_N, casting="unsafe")
        np.copyto(best_scale_N, scale_N, where=better_N)
        np.copyto(best_N, residual_N, where=better_N)
    with np.errstate(over="ignore"):
        scales_N, residuals_N = np.ldexp(best_scale_N, exponents_N), np.ldexp(best_N, exponents_N)
    if not (np.isfinite(scales_N) & np.isfinite(residuals_N)).all():
        raise FormatError(
            f"the head has a row with weights up to {longest_N.max():.3g}, whose logits float32 "
            "cannot hold; is the checkpoint damaged?"
        )
    return _pack(best_q_KN.T), scales_N, residuals_N


def _padded(columns: int) -> int:
    return -(-columns // _PADDED) * _PADDED


def _pack(q_NK: NDArray[np.int8]) -> NDArray[np.uint8]:
    groups, blocks, _, half = screen_shape(*q_NK.shape)
    u = np.full((groups * ROWS, blocks * COLUMNS), 8, dtype=np.uint8)
    u[: len(q_NK)] = (q_NK + np.int8(8)).view(np.uint8)
    u = u.reshape(groups, ROWS, blocks, 2, half).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(u[:, :, :, 0] | u[:, :, :, 1] << 4)


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
