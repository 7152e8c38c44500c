"""Activations beyond int8, in numpy: the definitions of BitNet a4.8 and v2, which only train.

`ternary.py` rounds what a layer is given to int8. Its successors need 4 bits, in two ways.

a4.8 (arXiv:2411.04965) rounds what attention and feed-forward are given to 4 bits, by the mean:

    x̃ = clamp(round(x·t), -8, 7)         t = √7 / max(mean|x|, 1e-5)    one t a token

and what lies within them, before the output and the down projection, to int8 as ever, but only the
larger half of each token; the rest are zeros.

v2 (arXiv:2504.18415) turns what comes before those two projections by a Hadamard matrix, which
spreads outliers over all columns, and rounds the inputs of every layer alike: to int8, or to 4 bits
as above. With H₁ = (1),

    H₂ₙ = 1/√2 · ( Hₙ  Hₙ )               x  →  x H                      symmetric, orthogonal
                 ( Hₙ -Hₙ )

Both papers train with int8 first, and with fewer bits for the last twentieth of the tokens.
The straight-through gradient is that of x, as if nothing were rounded or left out, times H in v2.
"""

# T tokens, K columns (inputs)

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from trilobit.model.sums import tree_sum
from trilobit.model.ternary import EPSILON, absmax_int8

_SQRT_7 = np.float32(math.sqrt(7))


def absmean_int4(x_TK: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes from -8 to 7 and their scale a token `[T]`: `x ≈ codes * scale[:, None]`.

    arXiv:2411.04965, section 2; arXiv:2504.18415, section 2. The mean is taken in float64 and
    rounded to float32 once, and its floor is that of the other scales (the papers add it).
    """
    x_TK = np.asarray(x_TK, dtype=np.float32)
    sum_T = tree_sum(np.abs(x_TK).astype(np.float64).T)
    t_T = _SQRT_7 / np.maximum((sum_T / x_TK.shape[1]).astype(np.float32), EPSILON)
    codes_TK = np.clip(np.rint(x_TK * t_T[:, None]), -8, 7).astype(np.int8)
    return codes_TK, np.float32(1) / t_T


def larger_half_int8(x_TK: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Int8 codes as of `absmax_int8`, but 0 for what is not among the ⌈K/2⌉ largest of a token.

    arXiv:2411.04965, section 2, with its K of half. What is as large as the last one that is
    taken is taken too, so that no order among equals matters.
    """
    x_TK = np.asarray(x_TK, dtype=np.float32)
    size_TK = np.abs(x_TK)
    least_T1 = np.partition(size_TK, x_TK.shape[1] // 2, axis=1)[:, x_TK.shape[1] // 2, None]
    return absmax_int8(np.where(size_TK >= least_T1, x_TK, np.float32(0)))


def hadamard(x_TK: NDArray[np.float32]) -> NDArray[np.float32]:
    """`x H` of every token, by sums and differences in a fixed order.

    arXiv:2504.18415, section 2, where K is a power of two. Otherwise by blocks of the largest one
    that divides K, each turned by itself.
    """
    x_TK = np.asarray(x_TK, dtype=np.float32)
    tokens, columns = x_TK.shape
    block = columns & -columns
    half = 1
    while half < block:
        pairs = x_TK.reshape(tokens, columns // (2 * half), 2, half)
        first, second = pairs[:, :, 0], pairs[:, :, 1]
        x_TK = np.stack((first + second, first - second), axis=2).reshape(tokens, columns)
        half *= 2
    return x_TK * np.float32(1 / math.sqrt(block))
