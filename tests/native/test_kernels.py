"""Every kernel on every instruction set of this machine, against the numpy definition."""

import os
import subprocess
import sys

import numpy as np
import pytest

from trilobit import _native
from trilobit.layouts import native_layout
from trilobit.model import packing, ternary
from trilobit.model.packing import LAYOUTS, Layout

ISAS = _native.isas()
# rows, columns: one row, odd sizes, blocks that end early, the shapes of 2B4T
SHAPES = [(1, 1), (3, 31), (5, 100), (4, 128), (6, 130), (50, 257), (7, 2561), (640, 2560)]
# around the tile sizes, and beyond what is still streamed
TOKENS = [1, 2, 3, 4, 5, 7, 8, 9, 12, 31, 193]


def products(x_TK: np.ndarray, codes_NK: np.ndarray) -> np.ndarray:
    return (x_TK.astype(np.int64) @ codes_NK.astype(np.int64).T).astype(np.float32)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear_equals_integer_product(isa: str, layout: Layout, shape: tuple[int, int]) -> None:
    rows, columns = shape
    random = np.random.default_rng(rows * columns)
    codes = random.integers(-1, 2, (rows, columns), dtype=np.int8)
    packed = packing.pack(codes, layout)
    for tokens in TOKENS:
        x = random.integers(-128, 128, (tokens, columns), dtype=np.int8)
        got = _native.kernel_linear(isa, packed, rows, columns, x, layout=native_layout(layout))
        assert (got == products(x, codes)).all(), f"{tokens} tokens"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("columns", [128, 2048, 2560, 6912, 8640, 13824, 45568])
@pytest.mark.parametrize("weight", [-1, 0, 1])
@pytest.mark.parametrize("activation", [-128, -127, 127])
def test_sums_do_not_overflow(
    isa: str, layout: Layout, columns: int, weight: int, activation: int
) -> None:
    codes = np.full((8, columns), weight, dtype=np.int8)
    packed = packing.pack(codes, layout)
    for tokens in (1, 4, 16):
        x = np.full((tokens, columns), activation, dtype=np.int8)
        got = _native.kernel_linear(isa, packed, 8, columns, x, layout=native_layout(layout))
        assert (got == weight * activation * columns).all()


@pytest.mark.parametrize("isa", ISAS)
def test_result_does_not_depend_on_threads(isa: str) -> None:
    random = np.random.default_rng(5)
    codes = random.integers(-1, 2, (203, 700), dtype=np.int8)
    x = random.integers(-128, 128, (33, 700), dtype=np.int8)
    results = [
        _native.kernel_linear(isa, packing.pack(codes), 203, 700, x, threads=threads)
        for threads in (1, 2, 3, 5)
    ]
    assert all((result == results[0]).all() for result in results)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", [1, 15, 16, 100, 640, 2560, 6912])
def test_norm_quantise_equals_definition(isa: str, n: int) -> None:
    random = np.random.default_rng(n)
    x = random.standard_normal(n).astype(np.float32) * 3
    gain = random.uniform(0.5, 2, n).astype(np.float32)
    codes, scale, total = _native.kernel_norm_quantise(isa, x, gain, 1e-5)
    rms = np.float32(1) / np.sqrt(np.mean(x.astype(np.float64) ** 2) + 1e-5)
    y = gain.astype(np.float64) * (x.astype(np.float64) * rms)
    exact = y * (127 / np.abs(y).max())
    wanted, wanted_scale = ternary.absmax_int8(y.astype(np.float32)[None])
    # Only a value within float32's rounding of a half may round to its other neighbour: the norm
    # has about 4 roundings of 2^-24, relative to at most 127.
    tie = np.abs(np.abs(exact - np.trunc(exact)) - 0.5) < 127 * 4 * 2.0**-23
    assert ((np.array(codes) == wanted[0]) | tie).all()
    assert np.abs(np.array(codes) - wanted[0]).max() <= 1
    assert total == sum(codes)
    assert scale == pytest.approx(float(wanted_scale[0]), rel=1e-6)


@pytest.mark.parametrize("isa", ISAS)
def test_norm_quantise_of_zeros_is_zero(isa: str) -> None:
    codes, _, total = _native.kernel_norm_quantise(
        isa, np.zeros(64, np.float32), np.ones(64, np.float32), 1e-5
    )
    assert codes == [0] * 64
    assert total == 0


@pytest.mark.parametrize("size", [1, 7, 8, 65536, 200_001])
def test_check_codes_finds_a_single_code_3(size: int) -> None:
    random = np.random.default_rng(size)
    packed = random.choice(np.array([0x00, 0x55, 0xAA, 0x86], dtype=np.uint8), size)
    assert _native.check_codes(packed, 2)
    for position in (0, size // 2, size - 1):
        damaged = packed.copy()
        damaged[position] |= 0x0C
        assert not _native.check_codes(damaged, 2)


def test_isa_is_forced_by_the_environment() -> None:
    program = "from trilobit import _native; print(_native.isa())"
    for isa in ISAS:
        done = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "TRILOBIT_ISA": isa},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == isa


def test_unknown_isa_is_refused_with_the_remedy() -> None:
    program = "from trilobit import _native; _native.isa()"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "TRILOBIT_ISA": "mmx"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "TRILOBIT_ISA=mmx is not available here; available: scalar" in done.stderr
