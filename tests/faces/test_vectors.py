"""Vectors in fewer bits: the packing bit by bit, and what it costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from trilobit import RequestError, pack_vectors, similarity, unpack_vectors
from trilobit.vectors import PRECISIONS, Precision

BITS: dict[Precision, int] = {"float32": 32, "int8": 8, "int4": 4, "int2": 2, "int1": 1}


def random_vectors(seed: int, count: int, dimensions: int) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).standard_normal((count, dimensions))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def test_int8_is_relative_to_the_largest_value() -> None:
    vectors = np.array([[0.5, -1.0, 0.0, 0.25], [2.0, 0.0, 1.0, -0.01]], dtype=np.float32)
    stored = pack_vectors(vectors, "int8")
    assert stored.dtype == np.int8
    # 63.5 and 31.75 are rounded half to even
    assert stored.tolist() == [[64, -127, 0, 32], [127, 0, 64, -1]]


def test_low_bits_come_first_and_the_last_byte_is_filled_with_zeros() -> None:
    signs = np.array([[1, -1, -1, 1, 1, -1, -1, -1, 1, 1]], dtype=np.float32)
    assert pack_vectors(signs, "int1").tolist() == [[0b00011001, 0b11]]
    assert np.packbits(signs > 0, bitorder="little").tolist() == [0b00011001, 0b11]
    # The root mean square is 1, levels end at ±0.9957: inside is ±1, outside ±3.
    values = np.array([[1.2, -0.5, 0.5, -1.2, 1.2, -(0.58**0.5)]], dtype=np.float32)
    values *= np.float32(1 / np.sqrt(np.mean(values**2)))
    assert pack_vectors(values, "int2").tolist() == [[0b00_10_01_11, 0b01_11]]
    assert pack_vectors(np.array([[1.0, -1.0, 1.0]], dtype=np.float32), "int4").tolist() == [
        [0x5A, 0x0A]  # 1 / 0.3352 is in the third level beside zero: codes 8 + 2 and 8 - 3
    ]


@given(st.sampled_from(PRECISIONS), st.integers(1, 70), st.integers(0, 5))
def test_shapes_types_and_directions(precision: Precision, dimensions: int, count: int) -> None:
    vectors = random_vectors(dimensions, count, dimensions)
    stored = pack_vectors(vectors, precision)
    assert stored.nbytes == count * -(-dimensions * BITS[precision] // 8)
    back = unpack_vectors(stored, precision, dimensions)
    assert back.dtype == np.float32
    assert back.shape == vectors.shape
    assert np.allclose(np.linalg.norm(back, axis=1), 1, atol=1e-6)
    if precision in ("int8", "int1"):  # the others' levels depend on all values
        assert np.array_equal(pack_vectors(back, precision), stored)


# Mean squared errors of Max's quantisers for a Gaussian (table II), of which the cosine with the
# vector itself is the root of what is left. At 1024 dimensions the mean of 200 vectors deviates by
# less than 0.001 from it.
MAX_1960 = {"int4": 0.01154, "int2": 0.1188, "int1": 0.3634}


@pytest.mark.parametrize("precision", MAX_1960)
def test_low_bits_lose_what_the_best_uniform_quantiser_loses(precision: Precision) -> None:
    vectors = random_vectors(0, 200, 1024)
    back = unpack_vectors(pack_vectors(vectors, precision), precision, 1024)
    cosine = float((vectors * back).sum(axis=1).mean())
    assert abs(cosine - (1 - MAX_1960[precision]) ** 0.5) < 0.001


def test_int8_loses_less_than_a_rounding_step() -> None:
    vectors = random_vectors(1, 200, 1024)
    back = unpack_vectors(pack_vectors(vectors, "int8"), "int8", 1024)
    # A step is max|v| / 127, below 5 deviations / 127; its error is a twelfth of its square.
    assert (vectors * back).sum(axis=1).min() > 1 - (5 / 127) ** 2 / 12


def test_one_large_value_does_not_drown_the_others_in_few_bits() -> None:
    vectors = random_vectors(2, 50, 512)
    vectors[:, 7] = 0.7
    small = np.delete(vectors, 7, axis=1)
    stored = pack_vectors(vectors, "int4")
    back = np.delete(unpack_vectors(stored, "int4", 512), 7, axis=1)
    back /= np.linalg.norm(back, axis=1, keepdims=True)
    small /= np.linalg.norm(small, axis=1, keepdims=True)
    assert (small * back).sum(axis=1).min() > 0.97  # relative to its largest value, 4 bits give 0.8


@pytest.mark.parametrize("precision", PRECISIONS)
def test_similarity_is_the_cosine_of_what_is_stored(precision: Precision) -> None:
    queries, documents = random_vectors(3, 5, 67), random_vectors(4, 9000, 67)
    stored = pack_vectors(documents, precision)
    wanted = queries @ unpack_vectors(stored, precision, 67).T
    got = similarity(3 * queries, stored, precision)  # the length of a query does not count
    assert got.shape == (5, 9000)
    assert np.abs(got - wanted).max() < 1e-6  # sums of 67 float32 in another order


def test_nothing_is_like_nothing() -> None:
    queries = random_vectors(5, 2, 12)
    assert similarity(queries, np.empty((0, 12), dtype=np.float32)).shape == (2, 0)
    assert similarity(queries[:0], queries).shape == (0, 2)
    zeros = np.zeros((1, 12), dtype=np.float32)
    assert similarity(zeros, queries).tolist() == [[0.0, 0.0]]
    assert similarity(queries, pack_vectors(zeros, "int8"), "int8").tolist() == [[0.0], [0.0]]


def test_arrays_that_cannot_be_are_refused() -> None:
    queries = random_vectors(6, 2, 20)
    stored = pack_vectors(queries, "int4")
    for wrong in (stored[:, :9], stored[0], stored.astype(np.int8)):
        with pytest.raises(RequestError, match=r"int4 of 20 dimensions is uint8 \[N, 10\]"):
            unpack_vectors(wrong, "int4", 20)
    with pytest.raises(RequestError, match="precision is 'int3'; expected one of float32, int8"):
        pack_vectors(queries, "int3")  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=r"queries are float64 \[2, 20\]"):
        similarity(queries.astype(np.float64), stored, "int4")  # type: ignore[arg-type]


def test_what_is_no_array_of_vectors_is_refused() -> None:
    queries = random_vectors(1, 2, 8)
    wrong: list[Any] = [[1.0, 2.0], "a", None]
    for value in wrong:
        for call in (
            lambda value: similarity(value, queries),
            lambda value: similarity(queries, value),
            lambda value: pack_vectors(value, "int8"),
            lambda value: unpack_vectors(value, "int8", 8),
        ):
            with pytest.raises(RequestError, match=r"are of type .*; expected an array"):
                call(value)
    for dtype, shape in ((np.float64, (2, 8)), (np.float32, (8,))):
        with pytest.raises(RequestError, match=r"expected float32 \[N, K\]"):
            pack_vectors(np.zeros(shape, dtype), "int8")  # type: ignore[arg-type]
