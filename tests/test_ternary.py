"""The definition of 1.58-bit arithmetic, against formulas written out and a byte made by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from trilobit import FormatError, ternary

SHAPES = [(1, 1), (3, 5), (4, 128), (5, 129), (7, 31), (2, 300)]


def gaussian(shape: tuple[int, ...], seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def codes(rows: int, columns: int, seed: int = 0) -> NDArray[np.int8]:
    return np.random.default_rng(seed).integers(-1, 2, (rows, columns), dtype=np.int8)


# ---- weights ----------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_absmean_is_the_formula_of_the_paper(shape: tuple[int, int]) -> None:
    w = gaussian(shape)
    mean = np.float32(math.fsum(abs(float(v)) for v in w.flat) / w.size)  # exact, rounded once
    s = np.float32(1) / max(mean, np.float32(1e-5))
    # Python's round is to nearest, ties to even, as the paper's reference code
    expected = [max(-1, min(1, round(float(np.float32(v * s))))) for v in w.flat]
    got, scale = ternary.absmean_ternary(w)
    assert got.dtype == np.int8
    assert got.reshape(-1).tolist() == expected
    assert scale == np.float32(1) / s


def test_absmean_rounds_ties_to_even() -> None:
    # mean|W| is 1, so that the weights are their own multiples of it
    w = np.array([[0.5, -0.5, 1.5, -1.5, 1.0, 1.0]], dtype=np.float32)
    got, scale = ternary.absmean_ternary(w)
    assert got.tolist() == [[0, 0, 1, -1, 1, 1]]
    assert scale == 1


def test_absmean_of_zeros_is_zeros_and_a_finite_scale() -> None:
    got, scale = ternary.absmean_ternary(np.zeros((2, 3), dtype=np.float32))
    assert not got.any()
    assert 0 < scale < 1e-4


@pytest.mark.parametrize("shape", SHAPES)
def test_signs_are_those_of_the_centred_weights(shape: tuple[int, int]) -> None:
    w = gaussian(shape) + np.float32(0.3)
    mean = np.float32(math.fsum(float(v) for v in w.flat) / w.size)
    got, scale = ternary.sign_binary(w)
    assert got.reshape(-1).tolist() == [1 if v - mean >= 0 else -1 for v in w.flat]
    assert scale == np.float32(math.fsum(abs(float(v)) for v in w.flat) / w.size)


def test_sign_of_the_mean_itself_is_plus_one() -> None:
    assert ternary.sign_binary(np.array([[1, 2, 3]], dtype=np.float32))[0].tolist() == [[-1, 1, 1]]


@pytest.mark.parametrize("quantise", [ternary.absmean_ternary, ternary.sign_binary])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused(quantise: object, bad: float) -> None:
    w = gaussian((4, 4))
    w[2, 1] = bad
    with pytest.raises(FormatError, match="NaN or infinity"):
        quantise(w)  # type: ignore[operator]


# ---- activations ------------------------------------------------------------------------------


def test_absmax_is_the_formula_of_the_paper() -> None:
    x = gaussian((6, 70)) * np.logspace(-8, 8, 6, dtype=np.float32)[:, None]
    got, scale = ternary.absmax_int8(x)
    for row, token, token_scale in zip(got, x, scale, strict=True):
        t = np.float32(127) / max(np.float32(max(abs(v) for v in token)), np.float32(1e-5))
        expected = [max(-128, min(127, round(float(np.float32(v * t))))) for v in token]
        assert row.tolist() == expected
        assert token_scale == np.float32(1) / t


def test_absmax_rounds_ties_to_even() -> None:
    x = np.array([[127, 0.5, 1.5, 2.5, -0.5, -1.5]], dtype=np.float32)
    assert ternary.absmax_int8(x)[0].tolist() == [[127, 0, 2, 2, 0, -2]]


def test_the_largest_activation_becomes_127() -> None:
    got, _ = ternary.absmax_int8(gaussian((9, 33)))
    assert np.abs(got.astype(int)).max(axis=1).tolist() == [127] * 9


def test_a_zero_token_stays_zero() -> None:
    got, scale = ternary.absmax_int8(np.zeros((1, 8), dtype=np.float32))
    assert not got.any()
    assert np.isfinite(scale).all()


# ---- the layer --------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_bit_linear_equals_a_dense_layer_of_the_quantised_values(rows: int, columns: int) -> None:
    x, w, scale = gaussian((4, columns), seed=1), codes(rows, columns), np.float32(0.37)
    q, q_scale = ternary.absmax_int8(x)
    dense = (q.astype(np.float64) * q_scale[:, None]) @ (w.astype(np.float64) * scale).T
    # The sum is exact; three float32 roundings follow (the two scales, the product).
    assert np.allclose(ternary.bit_linear(x, w, scale), dense, rtol=3 * 2.0**-23, atol=1e-12)


# ---- packing ----------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 19), st.integers(1, 400), st.integers(0, 2**32 - 1))
def test_unpack_inverts_pack(rows: int, columns: int, seed: int) -> None:
    w = codes(rows, columns, seed)
    packed = ternary.pack(w)
    assert packed.shape == ternary.packed_shape(rows, columns)
    assert np.array_equal(ternary.unpack(packed, rows, columns), w)


def test_a_byte_holds_columns_32_apart_the_first_in_the_low_bits() -> None:
    w = np.zeros((6, 300), dtype=np.int8)
    # Row 5 is row 1 of group 1; columns 128.. are block 1; byte 7 holds columns 7, 39, 71, 103.
    w[5, 128 + 7], w[5, 128 + 39], w[5, 128 + 71], w[5, 128 + 103] = 1, -1, 0, 1
    packed = ternary.pack(w)
    assert packed[1, 1, 1, 7] == 0b10_01_00_10
    # Everything else is zero weights, padding included: code 1 four times.
    packed[1, 1, 1, 7] = 0b01_01_01_01
    assert (packed == 0b01_01_01_01).all()


def test_packing_other_values_is_refused() -> None:
    for value in (2, -2, 127, -128):
        with pytest.raises(FormatError, match="not all -1, 0 or 1"):
            ternary.pack(np.array([[0, value]], dtype=np.int8))


@pytest.mark.parametrize("shift", [0, 2, 4, 6])
def test_code_3_is_refused(shift: int) -> None:
    packed = ternary.pack(codes(4, 128))
    packed[0, 0, 2, 31] |= 3 << shift
    with pytest.raises(FormatError, match="code 3"):
        ternary.unpack(packed, 4, 128)


@pytest.mark.parametrize(("rows", "columns"), [(9, 128), (8, 129), (4, 128), (8, 0)])
def test_a_shape_that_does_not_fit_is_refused(rows: int, columns: int) -> None:
    with pytest.raises(FormatError, match="does not hold"):
        ternary.unpack(ternary.pack(codes(8, 128)), rows, columns)


@pytest.mark.parametrize(
    ("rows", "columns", "place"),
    [
        (5, 128, (1, 0, 1, 0)),  # row 5
        (5, 128, (1, 0, 3, 31)),  # row 7
        (4, 130, (0, 1, 0, 2)),  # column 130
        (4, 130, (0, 1, 3, 31)),  # the last column
    ],
)
@pytest.mark.parametrize("byte", [0b01_01_01_00, 0b10_01_01_01, 0])
def test_padding_other_than_zero_weights_is_refused(
    rows: int, columns: int, place: tuple[int, int, int, int], byte: int
) -> None:
    packed = ternary.pack(codes(rows, columns))
    packed[place] = byte
    with pytest.raises(FormatError, match="padding"):
        ternary.unpack(packed, rows, columns)
