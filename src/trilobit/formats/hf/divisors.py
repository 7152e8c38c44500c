"""Scales that divide: what transformers' BitLinear stores in place of a scale that multiplies.

It stores v and multiplies by 1 / v, rounded to float32 (`bitnet.py` reads it so). That rounding
reaches every scale whose mantissa is below sqrt(2), and of those above only some.
"""

from __future__ import annotations

import numpy as np

from trilobit.formats.dtypes import FLOATS, nearest

_NEAR = 4  # floats on either side of 1 / scale that can have it as their inverse


def divisor(scale: np.float32) -> np.float32 | None:
    """The shortest float32 whose inverse is this scale to the bit; None where there is none."""
    inverse = np.float32(1 / np.float64(scale))
    near = inverse.view(np.int32) + np.arange(-_NEAR, _NEAR + 1, dtype=np.int32)
    short = [nearest(np.array([inverse]), dtype)[0] for dtype in FLOATS]
    for candidate in (*short, *near.view(np.float32)):  # what is published first
        if candidate > 0 and np.float32(1 / np.float64(candidate)) == scale:
            return np.float32(candidate)
    return None
