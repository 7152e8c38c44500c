"""Scales by group of 128 columns: numpy's definition, and kernels that give its very bits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from trilobit import FormatError, _native
from trilobit.formats.hf import group_scales
from trilobit.model import packing, ternary

ISAS = _native.isas()


def random_matrix(
    random: np.random.Generator, rows: int, columns: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    codes = random.integers(-1, 2, (rows, columns), dtype=np.int8)
    scales = random.uniform(0.01, 1, (rows, -(-columns // 128))).astype(np.float32)
    return codes, scales


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 31), (6, 130), (50, 257), (9, 2560)], ids=str)
@pytest.mark.parametrize("tokens", [1, 2, 3, 5, 7, 33])
def test_kernels_give_the_bits_of_the_definition(
    isa: str, shape: tuple[int, int], tokens: int
) -> None:
    random = np.random.default_rng(tokens)
    rows, columns = shape
    codes, scales = random_matrix(random, rows, columns)
    x = random.standard_normal((tokens, columns)).astype(np.float32)
    x[0] *= 1e4  # a token of other size, with a column that towers above its block
    x[:, columns // 2] *= 1000
    wanted = ternary.group_linear(x, codes, scales)
    for threads in (1, 3):
        found = _native.kernel_linear_groups(
            isa, packing.pack(codes), scales, rows, columns, x, threads
        )
        assert np.array_equal(found, wanted)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("weight", [-1, 1])
@pytest.mark.parametrize("value", [-1.0, 1.0])
def test_the_largest_sums_of_a_block_are_exact(isa: str, weight: int, value: float) -> None:
    for tokens in (1, 2, 9):
        codes = np.full((4, 1280), weight, dtype=np.int8)
        x = np.full((tokens, 1280), value, dtype=np.float32)
        scales = np.ones((4, 10), dtype=np.float32)
        found = _native.kernel_linear_groups(isa, packing.pack(codes), scales, 4, 1280, x)
        assert np.array_equal(found, ternary.group_linear(x, codes, scales))
        assert found == pytest.approx(1280 * weight * value, rel=1e-6)


def test_sixteen_bits_are_closer_than_bfloat16() -> None:
    random = np.random.default_rng(4)
    codes, scales = random_matrix(random, 64, 1024)
    x = random.standard_normal((20, 1024)).astype(np.float32)
    weights = codes * np.repeat(scales, 128, axis=1)
    exact = x.astype(np.float64) @ weights.astype(np.float64).T
    bf16 = (x.view(np.uint32) + 0x8000 & 0xFFFF0000).view(np.float32).astype(np.float64)
    ours = np.sqrt(np.mean((ternary.group_linear(x, codes, scales) - exact) ** 2))
    assert ours < np.sqrt(np.mean((bf16 @ weights.astype(np.float64).T - exact) ** 2)) / 20


def test_a_block_of_zeros_adds_nothing() -> None:
    x = np.zeros((1, 256), dtype=np.float32)
    x[0, 128:] = 1e-38  # too small to be scaled
    codes, scales = ternary.absmax_groups(x)
    assert not codes.any()
    assert not scales.any()
    ones = np.ones((1, 256), dtype=np.int8)
    found = _native.kernel_linear_groups(
        ISAS[-1], packing.pack(ones), np.ones((1, 2), np.float32), 1, 256, x
    )
    assert found.tolist() == [[0.0]]


@pytest.mark.parametrize("isa", ISAS)
def test_scales_by_row_are_those_of_the_definition(isa: str) -> None:
    # kernel_linear's integers are exact, so scales are all that is left to compare.
    random = np.random.default_rng(5)
    codes, _ = random_matrix(random, 7, 60)
    scales = random.uniform(0.1, 1, 7).astype(np.float32)
    x = random.standard_normal((3, 60)).astype(np.float32)
    x_codes, x_scales = ternary.absmax_int8(x)
    dots = _native.kernel_linear(isa, packing.pack(codes), 7, 60, x_codes)
    rows = ternary.bit_linear(x, codes, scales)
    assert np.array_equal(rows, dots * (x_scales[:, None] * scales))
    alone = [ternary.bit_linear(x, codes[r : r + 1], scales[r])[:, 0] for r in range(7)]
    assert np.array_equal(rows, np.stack(alone, axis=1))


# ---- reading ----------------------------------------------------------------------------------


@given(
    st.integers(1, 9),
    st.integers(1, 300),
    st.integers(0, 99),
    st.sampled_from([np.float16, np.float32]),
)
def test_floats_that_are_ternary_by_groups_are_read_back(
    rows: int, columns: int, seed: int, dtype: type
) -> None:
    codes, scales = random_matrix(np.random.default_rng(seed), rows, columns)
    scales = scales.astype(dtype).astype(np.float32)
    values = codes * np.repeat(scales, 128, axis=1)[:, :columns]
    found, found_scales = group_scales.from_floats(values)
    assert np.array_equal(found, codes)
    assert np.array_equal(found * np.repeat(found_scales, 128, axis=1)[:, :columns], values)


def test_floats_of_two_magnitudes_in_a_group_are_refused() -> None:
    values = np.full((3, 300), 0.5, dtype=np.float32)
    values[1, 128:256] = 0.25  # another group, another scale
    group_scales.from_floats(values)
    values[2, 299] = 0.5000001
    with pytest.raises(FormatError, match="not ternary in groups of 128"):
        group_scales.from_floats(values)


def test_mlx_words_are_refused_when_they_are_not_ternary() -> None:
    scales = np.full((2, 1), 0.5, dtype=np.float32)
    words = np.full((2, 8), 0x55555555, dtype=np.uint32)  # ones: zero weights
    codes, _ = group_scales.from_mlx(words, scales, -scales)
    assert codes.shape == (2, 128)
    assert not codes.any()
    codes, positive = group_scales.from_mlx(
        words & 0xFFFFFFFC, -scales, scales
    )  # word 0 is 0 * -s + s
    assert codes[0, 0] == 1
    assert (positive == 0.5).all()
    with pytest.raises(FormatError, match="code 3"):
        group_scales.from_mlx(words | 0xC0000000, scales, -scales)
    with pytest.raises(FormatError, match="a bias is not its scale's negative"):
        group_scales.from_mlx(words, scales, -scales * 1.5)
