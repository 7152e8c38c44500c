"""The definition of 1.58-bit arithmetic, in numpy. Everything else is tested against this file.

BitNet b1.58 (arXiv:2402.17764) replaces a linear layer y = x Wᵀ by

    W̃ = clamp(round(W·s), -1, 1)          s = 1 / max(mean|W|, 1e-5)     one s a tensor
    x̃ = clamp(round(x·t), -128, 127)      t = 127 / max(max|x|, 1e-5)    one t a token
    y  = (x̃ W̃ᵀ) / (s·t)                   the product is exact, in integers

with `round` to nearest, ties to even, all in float32. A weight's `scale` here is 1/s, so a
dequantised weight is `codes * scale`.

Other models have a scale for each 128 columns of a row, and are trained with float activations
(Bonsai). Those are rounded to 16 bits by 128 columns, finer than bfloat16:

    x̃ = round(x·t)                        t = 32512 / max|x|             one t a token and group g
    y  = Σ_g (x̃_g W̃_gᵀ) · (scale_g / t_g)  the products are exact, g by g they are added as float32
"""

# T tokens, N rows (outputs), K columns (inputs)

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from trilobit.errors import FormatError
from trilobit.model.sums import total

SCALE_COLUMNS = 128  # of a row that share a scale, where scales are by group

EPSILON = np.float32(1e-5)  # the floor of both scales, as in the reference implementation
_LARGEST_16, _LEAST_16 = np.float32(127 * 256), np.float32(1e-30)


def absmean_ternary(w_NK: NDArray[np.float32]) -> tuple[NDArray[np.int8], np.float32]:
    """Ternary codes in {-1, 0, 1} of the shape of `w_NK`, and their scale.

    arXiv:2402.17764, section 2. The mean is taken in float64, in a fixed order (`model/sums.py`),
    and rounded to float32 once. transformers sums in float32, in an order that
    changes with the number of threads: its mean is up to 2 units in the last place off, which
    flips about 3 in 10^8 codes of float32 masters (5 of 155 million in a trial, torch 2.13) and
    none of bfloat16 or float16 masters. FormatError when a weight is not finite.
    """
    w_NK = np.asarray(w_NK, dtype=np.float32)
    scaled_NK = np.abs(w_NK)
    mean = np.float32(total(scaled_NK) / w_NK.size)
    if not np.isfinite(mean):
        raise FormatError("weights hold NaN or infinity; the checkpoint is damaged")
    s = np.float32(1) / max(mean, EPSILON)
    # In place: a projection of the largest models has 4 * 10^8 weights.
    np.multiply(w_NK, s, out=scaled_NK)
    np.clip(np.rint(scaled_NK, out=scaled_NK), -1, 1, out=scaled_NK)
    return scaled_NK.astype(np.int8), np.float32(1) / s


def sign_binary(w_NK: NDArray[np.float32]) -> tuple[NDArray[np.int8], np.float32]:
    """Codes in {-1, 1}: the sign of the centred weight; scale mean|W|. Zero maps to 1.

    The one-bit BitNet, arXiv:2310.11453, equations 1 to 3.
    """
    w_NK = np.asarray(w_NK, dtype=np.float32)
    mean = np.float32(total(w_NK) / w_NK.size)
    scale = np.float32(total(np.abs(w_NK)) / w_NK.size)
    if not np.isfinite(scale):
        raise FormatError("weights hold NaN or infinity; the checkpoint is damaged")
    return np.where(w_NK - mean >= 0, 1, -1).astype(np.int8), max(scale, EPSILON)


def absmax_int8(x_TK: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Int8 activations and their scale a token `[T]`: `x ≈ codes * scale[:, None]`.

    arXiv:2402.17764, section 2. The largest code is 127, so -128 never comes out; the kernels
    bear it all the same.
    """
    x_TK = np.asarray(x_TK, dtype=np.float32)
    t_T = np.float32(127) / np.maximum(np.abs(x_TK).max(axis=-1), EPSILON)
    codes_TK = np.clip(np.rint(x_TK * t_T[..., None]), -128, 127).astype(np.int8)
    return codes_TK, np.float32(1) / t_T


def absmax_groups(x_TK: NDArray[np.float32]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """16-bit activations, and their scales `[T, groups]` of 128 columns each.

    The largest code is 127 * 256, so that its high byte, rounded to nearest, is at most 127. A
    group of numbers below 1e-30 is 0.
    """
    x_TK = np.asarray(x_TK, dtype=np.float32)
    tokens, columns = x_TK.shape
    x_TGE = np.zeros((tokens, -(-columns // SCALE_COLUMNS), SCALE_COLUMNS), dtype=np.float32)
    x_TGE.reshape(tokens, -1)[:, :columns] = x_TK
    largest_TG = np.abs(x_TGE).max(axis=2)
    t_TG = np.zeros_like(largest_TG)
    np.divide(_LARGEST_16, largest_TG, out=t_TG, where=largest_TG > _LEAST_16)
    codes_TGE = np.rint(x_TGE * t_TG[:, :, None]).astype(np.int32)
    scales_TG = np.zeros_like(t_TG)
    np.divide(np.float32(1), t_TG, out=scales_TG, where=t_TG > 0)
    return codes_TGE.reshape(tokens, -1)[:, :columns], scales_TG


def bit_linear(
    x_TK: NDArray[np.float32],
    codes_NK: NDArray[np.int8],
    scale: np.float32 | NDArray[np.float32],
    quantise: Callable[
        [NDArray[np.float32]], tuple[NDArray[np.int8], NDArray[np.float32]]
    ] = absmax_int8,
) -> NDArray[np.float32]:
    """What a BitLinear layer computes, `[T, N]`: exact integer products and float scales.

    scale: of the matrix, or `[N]` of its rows. quantise: the activations; the engine's way, or one
    of `model/activations.py`.
    """
    x_codes_TK, x_scale_T = quantise(x_TK)
    dots_TN = x_codes_TK.astype(np.int64) @ codes_NK.astype(np.int64).T
    return dots_TN.astype(np.float32) * (x_scale_T[:, None] * scale)


def group_linear(
    x_TK: NDArray[np.float32], codes_NK: NDArray[np.int8], scales_NG: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The same where weights have a scale for each 128 columns, and activations are floats."""
    x_codes_TK, x_scales_TG = absmax_groups(x_TK)
    y_TN = np.zeros((len(x_codes_TK), len(codes_NK)), dtype=np.float32)
    for group in range(scales_NG.shape[1]):
        columns = slice(group * SCALE_COLUMNS, (group + 1) * SCALE_COLUMNS)
        dots_TN = x_codes_TK[:, columns].astype(np.int64) @ codes_NK[:, columns].astype(np.int64).T
        y_TN += dots_TN.astype(np.float32) * (x_scales_TG[:, group, None] * scales_NG[:, group])
    return y_TN
