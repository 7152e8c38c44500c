"""Float masters for codes and a scale that came without them.

A checkpoint of masters ("online") holds no scale: whoever reads it takes codes and scale from the
masters by absmean (model/ternary.py). `codes * scale` is no such checkpoint: its mean is the scale
times the density of the codes, so the model would shrink. What is needed is bfloat16 weights that
round to the codes and whose mean gives the scale, to the bit:

- Nonzero codes get one of two neighbouring bfloat16 values near scale / density, in the share that
  brings the sum below what is needed by less than one step between the two.
- The rest of the sum goes to a few of the zero codes, in values that still round to zero.

Not every scale is the absmean of anything: it is 1 / (1 / mean) with both quotients rounded to
float32, and that leaves out some floats whose mantissa is above sqrt(2). A scale that was read from
masters is always one, a scale that was stored is one about six times in seven.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from trilobit.formats.dtypes import as_float32
from trilobit.model import ternary

_NEAR = 4  # floats on either side of a scale among which its mean lies, if anywhere
_BLOCK = 1 << 16  # weights whose places are looked up at once
_SIGN = np.uint16(0x8000)
# Of the mean; from one half on a weight rounds to ±1.
_LARGEST_ZERO = 0.4375


def masters(codes_NK: NDArray[np.int8], scale: np.float32) -> NDArray[np.uint16] | None:
    """BFloat16 weights (their bits) of which absmean makes exactly these codes and this scale.

    None where there are none.
    """
    mean = _mean(scale)
    if mean is None:
        return None
    nonzero = codes_NK.reshape(-1) != 0
    bits = np.zeros(codes_NK.size, dtype=np.uint16)
    count = int(np.count_nonzero(nonzero))
    # Exact: 24 bits of a mean, at most 29 of a size.
    total = float(mean) * codes_NK.size
    if count:
        total -= _fill_nonzero(bits, nonzero, count, total)
        if not _fill_zeros(bits, ~nonzero, codes_NK.size - count, total, float(mean)):
            return None
    bits[codes_NK.reshape(-1) < 0] |= _SIGN
    weights = bits.reshape(codes_NK.shape)
    found, found_scale = ternary.absmean_ternary(as_float32(weights, "BF16"))
    return weights if found_scale == scale and np.array_equal(found, codes_NK) else None


def _mean(scale: np.float32) -> np.float32 | None:
    """The float32 mean|W| that gives a scale."""
    near = np.float32(scale).view(np.int32) + np.arange(-_NEAR, _NEAR + 1, dtype=np.int32)
    means = near.view(np.float32)
    one = np.float32(1)
    found = means[(one / (one / means) == scale) & (means >= ternary.EPSILON)]
    return found[len(found) // 2] if len(found) else None


def _fill_nonzero(
    bits: NDArray[np.uint16], nonzero: NDArray[np.bool_], count: int, total: float
) -> float:
    """Give nonzero codes two neighbouring values; their sum, at most `total`."""
    low_bits = _floor(total / count)
    low, high = _value(low_bits), _value(low_bits + 1)
    highs = min(int((total - count * low) // (high - low)), count)
    bits[nonzero] = low_bits
    end = _end(nonzero, highs)
    bits[:end][nonzero[:end]] = low_bits + 1
    return (count - highs) * low + highs * high


def _fill_zeros(
    bits: NDArray[np.uint16], zero: NDArray[np.bool_], count: int, total: float, mean: float
) -> bool:
    """Spread what is left of the sum over zero codes; False when they are too few."""
    largest = _floor(_LARGEST_ZERO * mean)
    full = int(total // _value(largest))
    values = [largest] * min(full, count)
    total -= len(values) * _value(largest)
    while total > 0 and len(values) < count and (value := _floor(total)):
        values.append(value)
        total -= _value(value)
    end = _end(zero, len(values))
    bits[:end][zero[:end]] = values
    return full <= count


def _end(mask: NDArray[np.bool_], count: int) -> int:
    """Where the first `count` True of a mask end. By blocks: an index of all would be huge."""
    if count == 0:
        return 0
    for start in range(0, mask.size, _BLOCK):
        here = np.flatnonzero(mask[start : start + _BLOCK])
        if count <= len(here):
            return start + int(here[count - 1]) + 1
        count -= len(here)
    raise AssertionError("fewer than asked for")


def _floor(value: float) -> int:
    """Bits of the largest bfloat16 that is at most a positive number; 0 below all of them."""
    nearest = np.float32(value)
    if float(nearest) > value:
        nearest = np.nextafter(nearest, np.float32(0))
    return int(nearest.view(np.uint32)) >> 16


def _value(bits: int) -> float:
    return float(np.array(bits << 16, dtype=np.uint32).view(np.float32))
