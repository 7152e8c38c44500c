"""Weights that are ternary by groups of 128 columns, as Bonsai's checkpoints hold them.

Either as plain floats, of which every group has one magnitude, or as MLX packs them: two bits a
weight with a scale and a bias a group. Float checkpoints with one magnitude a matrix (Falcon-E's
`bfloat16`) are read in the same way.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trilobit.errors import FormatError
from trilobit.model import ternary

GROUP = ternary.SCALE_COLUMNS
_WORD = 16  # two-bit weights in one of MLX's 32-bit words, the first in the lowest bits


def from_floats(values_RC: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes `[R, C]` and scales `[R, groups]`; FormatError when a group has two magnitudes."""
    rows, columns = values_RC.shape
    sizes = np.zeros((rows, -(-columns // GROUP) * GROUP), dtype=np.float32)
    sizes[:, :columns] = np.abs(values_RC)
    groups = sizes.reshape(rows, -1, GROUP)
    scales: NDArray[np.float32] = groups.max(axis=2)
    if not ((groups == 0) | (groups == scales[:, :, None])).all():
        raise FormatError("weights are not ternary in groups of 128")
    return np.sign(values_RC).astype(np.int8), scales


def from_mlx(
    words: NDArray[np.uint32], scales: NDArray[np.float32], biases: NDArray[np.float32]
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes `[R, C]` and scales of `word * scale + bias`; FormatError when that is not ternary."""
    # Then 0, 1 and 2 stand for -scale, 0 and scale.
    if not np.array_equal(biases, -scales):
        raise FormatError("a bias is not its scale's negative, so the weights are not ternary")
    shifts = np.arange(0, 2 * _WORD, 2, dtype=np.uint32)
    codes = (words[:, :, None] >> shifts & np.uint32(3)).astype(np.int8).reshape(len(words), -1)
    if (codes == 3).any():
        raise FormatError("a weight has the code 3, which is no ternary value")
    codes -= 1
    negative = np.repeat(scales < 0, GROUP, axis=1)
    return np.where(negative, -codes, codes), np.abs(scales)
