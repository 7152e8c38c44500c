"""The numpy definition against the papers' formulas, written out value by value."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from trilobit.errors import FormatError
from trilobit.model import ternary

f32 = np.float32
EPSILON = f32(1e-5)


def floats(bound: float) -> st.SearchStrategy[float]:
    return st.floats(-bound, bound, width=32, allow_subnormal=False)


def matrices(bound: float = 2.0**20) -> st.SearchStrategy[np.ndarray]:
    shapes = st.tuples(st.integers(1, 9), st.integers(1, 40))
    return shapes.flatmap(lambda shape: arrays.arrays(f32, shape, elements=floats(bound)))


def exact_mean(values: list[float]) -> f32:
    """The mean in exact rational arithmetic, rounded to float32 once."""
    total = sum((Fraction(v) for v in values), Fraction())
    return f32(float(total / len(values)))


def round_half_even(value: f32) -> int:
    return round(float(value))  # Python rounds ties to even, and a float32 is exact as a float


# ---- quantisers -------------------------------------------------------------------------------


@given(matrices())
def test_absmean_ternary_is_the_formula(w: np.ndarray) -> None:
    got, scale = ternary.absmean_ternary(w)
    s = f32(1) / max(exact_mean([abs(float(v)) for v in w.flat]), EPSILON)
    wanted = [min(1, max(-1, round_half_even(v * s))) for v in w.flat]
    assert got.dtype == np.int8
    assert got.ravel().tolist() == wanted
    assert type(scale) is f32
    assert scale == f32(1) / s


def test_absmean_rounds_ties_to_even() -> None:
    # mean|W| is 2, so ±1 lies on the tie between 0 and ±1 and goes to 0; above it goes to ±1.
    above = np.nextafter(f32(1), f32(2))
    w = np.array([[1, -1, above, -above, 4, -4, 0, f32(4) - 2 * (above - 1)]], dtype=f32)
    got, scale = ternary.absmean_ternary(w)
    assert scale == 2
    assert got.tolist() == [[0, 0, 1, -1, 1, -1, 0, 1]]


def test_absmean_of_zeros_is_zeros_with_a_finite_scale() -> None:
    got, scale = ternary.absmean_ternary(np.zeros((3, 5), f32))
    assert not got.any()
    assert scale == f32(1) / (f32(1) / EPSILON)


@given(matrices(), st.randoms(use_true_random=False))
def test_scales_do_not_depend_on_the_order_of_the_weights(w: np.ndarray, random: object) -> None:
    flat = w.ravel().tolist()
    random.shuffle(flat)  # type: ignore[attr-defined]
    shuffled = np.array(flat, dtype=f32)[None]
    assert ternary.absmean_ternary(w)[1] == ternary.absmean_ternary(shuffled)[1]
    assert ternary.sign_binary(w)[1] == ternary.sign_binary(shuffled)[1]


@given(matrices())
def test_sign_binary_is_the_formula(w: np.ndarray) -> None:
    got, scale = ternary.sign_binary(w)
    mean = exact_mean([float(v) for v in w.flat])
    assert got.ravel().tolist() == [1 if v - mean >= 0 else -1 for v in w.flat]
    assert scale == max(exact_mean([abs(float(v)) for v in w.flat]), EPSILON)


def test_sign_of_the_mean_itself_is_plus_one() -> None:
    assert ternary.sign_binary(np.array([[1, 2, 3]], dtype=np.float32))[0].tolist() == [[-1, 1, 1]]


@given(matrices())
def test_absmax_int8_is_the_formula(x: np.ndarray) -> None:
    got, scales = ternary.absmax_int8(x)
    for row, row_codes, scale in zip(x, got, scales, strict=True):
        t = f32(127) / max(f32(max(abs(float(v)) for v in row)), EPSILON)
        assert row_codes.tolist() == [round_half_even(v * t) for v in row]
        assert scale == f32(1) / t
    assert np.abs(got.astype(int)).max() <= 127


def test_absmax_rounds_ties_to_even() -> None:
    x = np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5]], dtype=np.float32)
    assert ternary.absmax_int8(x)[0].tolist() == [[127, 0, 2, 2, 0, -2]]


@given(matrices(100.0), st.data())
def test_bit_linear_is_the_dequantised_product(x: np.ndarray, data: st.DataObject) -> None:
    w = data.draw(arrays.arrays(f32, (3, x.shape[1]), elements=floats(1.0)))
    w_codes, w_scale = ternary.absmean_ternary(w)
    x_codes, x_scales = ternary.absmax_int8(x)
    got = ternary.bit_linear(x, w_codes, w_scale)
    for t in range(x.shape[0]):
        for n in range(3):
            dot = sum(int(a) * int(b) for a, b in zip(x_codes[t], w_codes[n], strict=True))
            assert got[t, n] == f32(dot) * (x_scales[t] * w_scale)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("quantise", [ternary.absmean_ternary, ternary.sign_binary])
def test_weights_that_are_not_finite_are_refused(quantise: object, value: float) -> None:
    w = np.ones((2, 3), f32)
    w[1, 1] = value
    with pytest.raises(FormatError, match="NaN or infinity; the checkpoint is damaged"):
        quantise(w)  # type: ignore[operator]
