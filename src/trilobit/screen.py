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

Layout. Columns are padded to a multiple of 64, rows to a multiple of 16. 16 rows by 8 columns make
one block of 64 bytes: four bytes of each row; byte p holds the columns p and p+4 of the block, as
code + 8, in its low and high half:

    codes[rows/16, columns/8, 16, 4]
"""

# N rows (tokens of the vocabulary), K columns, B columns of a Hadamard block

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ROWS = 16
COLUMNS = 8  # of one block: four bytes of two codes
LARGEST = 7  # of the integers

_PADDED = 64  # the least columns of a Hadamard block
_HADAMARD = 512  # the most columns of a Hadamard block
# Steps in units of the row's root mean square. 0.335 is the best for a Gaussian (Max, 1960); rows
# with heavier tails want longer ones.
_STEPS = (0.335, 0.45)


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
    rows, columns = x_NK.shape
    padded = _padded(columns)
    block = hadamard_block(columns)
    wide = np.zeros((rows, padded), dtype=np.float32)
    wide[:, :columns] = x_NK
    wide *= signs(padded)
    return (wide.reshape(-1, block) @ _hadamard(block)).reshape(rows, padded)


def screen(
    h_NK: NDArray[np.float32],
) -> tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.float32]]:
    """Codes in the layout above; by row the scale and the norm of the residual, float32 `[N]`."""
    rotated = rotate(h_NK)
    rms = np.sqrt(np.mean(rotated**2, axis=1))
    longest = np.abs(rotated).max(axis=1) / np.float32(LARGEST)
    best_q = np.zeros(rotated.shape, dtype=np.int8)
    best_scale = np.zeros(len(h_NK), dtype=np.float32)
    best = np.full(len(h_NK), np.inf, dtype=np.float32)
    for scale in (*(np.float32(step) * rms for step in _STEPS), longest):
        scale = np.maximum(scale, np.float32(1e-30))[:, None]
        q = np.clip(np.rint(rotated / scale), -LARGEST, LARGEST)
        residual = np.linalg.norm(rotated - q * scale, axis=1)
        better = residual < best
        best_q[better] = q[better]
        best_scale[better] = scale[better, 0]
        best[better] = residual[better]
    return _pack(best_q), best_scale, best


def _padded(columns: int) -> int:
    return -(-columns // _PADDED) * _PADDED


def _pack(q_NK: NDArray[np.int8]) -> NDArray[np.uint8]:
    groups, blocks, _, half = screen_shape(*q_NK.shape)
    u = np.full((groups * ROWS, blocks * COLUMNS), 8, dtype=np.uint8)
    u[: len(q_NK)] = (q_NK + np.int8(8)).view(np.uint8)
    u = u.reshape(groups, ROWS, blocks, 2, half).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(u[:, :, :, 0] | u[:, :, :, 1] << 4)


def _hadamard(size: int) -> NDArray[np.float32]:
    matrix = np.ones((1, 1), dtype=np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.float32(np.sqrt(size))
