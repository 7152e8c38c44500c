"""Sums in a fixed order, for what goes into files: the same bits on every machine.

`numpy.sum`, `mean`, `linalg.norm` and `@` promise no order, and BLAS takes another one for every
processor. Element by element there is nothing to choose: an addition is IEEE's. So terms are added
as whole arrays, the second half of them to the first, until one is left.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

_Float = TypeVar("_Float", np.float32, np.float64)
_LANES = 1 << 15  # sums of a long array that grow side by side


def tree_sum(terms: NDArray[_Float]) -> NDArray[_Float]:
    """The sum over the first axis, in the terms' own type: term i meets term i + ⌈n/2⌉."""
    while len(terms) > 1:
        half = (len(terms) + 1) // 2
        folded = terms[:half].copy()
        folded[: len(terms) - half] += terms[half:]
        terms = folded
    result: NDArray[_Float] = terms[0]
    return result


def total(terms: NDArray[Any]) -> np.float64:
    """The sum of all elements, in float64: element i goes to lane i mod 2^15, lanes are a tree."""
    lanes = np.zeros(_LANES, dtype=np.float64)
    flat = terms.reshape(-1)
    for start in range(0, flat.size, _LANES):
        part = flat[start : start + _LANES]
        lanes[: part.size] += part
    return np.float64(tree_sum(lanes))
