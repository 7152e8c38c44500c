"""The blocks of GGUF's ternary types: bytes to codes and scales, and back.

A code's digit is the weight plus one. TQ1_0 and IQ1_BN keep five digits in a byte, as the number
v = 81 a + 27 b + ... < 243 stretched to ceil(256 v / 243): the top digit of a byte is then
(3 · byte) >> 8, and (3 · byte) & 255 the byte of the rest.
"""

# R rows, K columns, B blocks, S the scales of a row (1, or one for each block)

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from trilobit.errors import FormatError
from trilobit.formats.gguf.types import I2_S, IQ1_BN, IQ2_BN, Q2_0, TQ1_0, TQ2_0

# How builds of bitnet.cpp lay out I2_S: on x86, on ARM since November 2025, and on x86 without
# ACT_PARALLEL. Nothing in a file tells which.
I2SLayout = Literal["x86", "arm", "rows"]
I2S_LAYOUTS: tuple[I2SLayout, ...] = ("x86", "arm", "rows")
# Consecutive weights that share bytes, and bytes they share.
_I2S_BLOCKS = {"x86": 128, "arm": 64}

_CODE_3 = "a weight has code 3, which is no ternary value; the file is damaged: download it again"
_NO_DIGITS = (
    "a byte is none that ternary weights are packed to; the file is damaged: download it again"
)
_STRETCHED = (-(-np.arange(243) * 256 // 243)).astype(np.uint8)
# Digit n of every byte, least significant digit last; 3 where the byte is no stretched number.
_DIGITS = np.full((5, 256), 3, dtype=np.uint8)
_DIGITS[:, _STRETCHED] = np.arange(243) // np.array([[81], [27], [9], [3], [1]]) % 3
# The same of bytes that keep four digits, whose last is 0.
_FOUR_DIGITS = np.full((4, 256), 3, dtype=np.uint8)
_FOUR_DIGITS[:, _STRETCHED[::3]] = _DIGITS[:4, _STRETCHED[::3]]
# IQ1_BN packs the other way round: the first weight is the least significant digit.
_REVERSED = _DIGITS[::-1]
_FOUR_REVERSED = np.full((4, 256), 3, dtype=np.uint8)
_FOUR_REVERSED[:, _STRETCHED[:81]] = _REVERSED[:4, _STRETCHED[:81]]


@dataclass(frozen=True, slots=True)
class Ternary:
    """Codes `[R, K]` in -1, 0, 1 and scales `[R, S]` of equal runs of a row, which multiply."""

    codes: NDArray[np.int8]
    scales: NDArray[np.float32]


def decode(
    type_id: int, data: NDArray[np.uint8], shape: tuple[int, int], layout: I2SLayout = "x86"
) -> Ternary:
    """Codes and scales of a ternary tensor's bytes.

    FormatError for codes that are no ternary value, and for scales that are negative, infinite or
    NaN. Where a scale is zero, so are the codes.
    """
    if type_id == I2_S:
        codes, scales = _i2_s(data, shape, layout)
    else:
        codes, scales = _DECODERS[type_id](data, *shape)
    if codes.max(initial=0) > 2:
        raise FormatError(_CODE_3 if type_id in (I2_S, TQ2_0, IQ2_BN, Q2_0) else _NO_DIGITS)
    if not np.isfinite(scales).all() or scales.min(initial=0) < 0:
        raise FormatError("a scale is negative, infinite or NaN; the file is damaged")
    codes -= np.uint8(1)
    weights = codes.view(np.int8)
    if not scales.all():
        # ik_llama.cpp writes +1 for rows of zeros: their scale is what makes them zero.
        runs = weights.reshape(*scales.shape, -1)
        runs[scales == 0] = 0
    return Ternary(weights, scales)


def _i2_s(
    data: NDArray[np.uint8], shape: tuple[int, int], layout: I2SLayout
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    rows, columns = shape
    packed, rest = data[: rows * columns // 4], data[rows * columns // 4 :]
    scales = np.full((rows, 1), rest[:4].view("<f4")[0], dtype=np.float32)
    if layout == "rows":
        if rows % 4:
            raise FormatError(f"{rows} rows are no multiple of 4, as the 4-row form of I2_S needs")
        digits = _pairs(packed.reshape(-1, columns), (6, 4, 2, 0))  # [R/4, 4, K]
        return digits.reshape(shape), scales
    block = _I2S_BLOCKS[layout]
    if rows * columns % block:
        raise FormatError(
            f"{rows * columns} weights are no multiple of {block}, as the {layout} form of I2_S "
            f"needs; {_other_layouts(shape)}"
        )
    return _pairs(packed.reshape(-1, block // 4), (6, 4, 2, 0)).reshape(shape), scales


def _other_layouts(shape: tuple[int, int]) -> str:
    rows, columns = shape
    others = [name for name, block in _I2S_BLOCKS.items() if rows * columns % block == 0]
    others += ["rows"] if rows % 4 == 0 else []
    if not others:
        return "no layout fits: the file is damaged"
    return f"it may be laid out as {' or '.join(others)}: trilobit convert --i2s-layout"


def _tq1_0(
    data: NDArray[np.uint8], rows: int, columns: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    blocks = data.reshape(-1, 54)
    codes = np.empty((len(blocks), 256), dtype=np.uint8)
    for begin, end, width in ((0, 32, 32), (32, 48, 16)):
        for n in range(5):
            at = 5 * begin + n * width
            codes[:, at : at + width] = _DIGITS[n][blocks[:, begin:end]]
    for n in range(4):
        codes[:, 240 + 4 * n : 244 + 4 * n] = _FOUR_DIGITS[n][blocks[:, 48:52]]
    return codes.reshape(rows, columns), _halves(blocks[:, 52:], rows)


def _tq2_0(
    data: NDArray[np.uint8], rows: int, columns: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    blocks = data.reshape(-1, 66)
    halves = blocks[:, :64].reshape(-1, 32)
    return _pairs(halves, (0, 2, 4, 6)).reshape(rows, columns), _halves(blocks[:, 64:], rows)


def _q2_0(
    data: NDArray[np.uint8], rows: int, columns: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    group = 64 if data.size == rows * columns // 64 * 18 else 128
    blocks = data.reshape(-1, 2 + group // 4)
    # Four neighbours in a byte: the pairs of one byte stand side by side.
    codes = _pairs(blocks[:, 2:, None], (0, 2, 4, 6)).reshape(rows, columns)
    return codes, _halves(blocks[:, :2], rows)


def _iq1_bn(
    data: NDArray[np.uint8], rows: int, columns: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    lines = data.reshape(rows, -1)
    blocks = lines[:, 2:].reshape(-1, 13)
    codes = np.empty((len(blocks), 4, 16), dtype=np.uint8)
    fives = blocks[:, :12].reshape(-1, 4, 3)
    for n in range(5):
        codes[:, :, n:15:5] = _REVERSED[n][fives]
    for n in range(4):
        codes[:, n, 15] = _FOUR_REVERSED[n][blocks[:, 12]]
    return codes.reshape(rows, columns), _halves(lines[:, :2], rows)


def _iq2_bn(
    data: NDArray[np.uint8], rows: int, columns: int
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    lines = data.reshape(rows, -1)
    codes = _pairs(lines[:, 4:].reshape(-1, 16), (0, 2, 4, 6)).reshape(rows, columns)
    return codes, np.ascontiguousarray(lines[:, :4]).view("<f4").astype(np.float32)


_DECODERS: dict[
    int,
    Callable[[NDArray[np.uint8], int, int], tuple[NDArray[np.uint8], NDArray[np.float32]]],
] = {TQ1_0: _tq1_0, TQ2_0: _tq2_0, Q2_0: _q2_0, IQ1_BN: _iq1_bn, IQ2_BN: _iq2_bn}


def _pairs(packed: NDArray[np.uint8], shifts: tuple[int, ...]) -> NDArray[np.uint8]:
    """The four two-bit codes of bytes `[..., n]` as `[..., 4, n]`, those at shifts[0] first."""
    codes = np.empty((*packed.shape[:-1], 4, packed.shape[-1]), dtype=np.uint8)
    for i, shift in enumerate(shifts):
        np.bitwise_and(packed >> np.uint8(shift), 3, out=codes[..., i, :])
    return codes


def _halves(stored: NDArray[np.uint8], rows: int) -> NDArray[np.float32]:
    """float16 scales `[n, 2]` bytes as float32 `[rows, n / rows]`."""
    values = np.ascontiguousarray(stored).view("<f2").astype(np.float32)
    return values.reshape(rows, -1)


# ---- encoding -----------------------------------------------------------------------------------


def encode(
    type_id: int, codes_RK: NDArray[np.int8], scales: NDArray[np.float32]
) -> NDArray[np.uint8]:
    """Bytes of codes as I2_S (x86; one scale), TQ1_0 or TQ2_0 (one, or one a row).

    The weights of I2_S are a multiple of 128, K of the others is one of 256. TQ1_0 and TQ2_0 round
    scales to float16.
    """
    digits = codes_RK.view(np.uint8) + np.uint8(1)
    if type_id == I2_S:
        return _encode_i2_s(digits, scales.reshape(1)[0])
    blocks = digits.reshape(-1, 256)
    with np.errstate(over="ignore"):
        halves = np.repeat(scales.astype("<f2"), len(blocks) // len(scales))
    packed = _encode_tq1_0(blocks) if type_id == TQ1_0 else _encode_tq2_0(blocks)
    return np.concatenate([packed, halves[:, None].view(np.uint8)], axis=1).reshape(-1)


def _encode_i2_s(digits: NDArray[np.uint8], scale: np.float32) -> NDArray[np.uint8]:
    quarters = digits.reshape(-1, 4, 32)
    packed = quarters[:, 0] << 6 | quarters[:, 1] << 4 | quarters[:, 2] << 2 | quarters[:, 3]
    tail = np.zeros(32, dtype=np.uint8)
    tail[:4] = np.frombuffer(np.float32(scale).astype("<f4").tobytes(), dtype=np.uint8)
    return np.concatenate([packed.reshape(-1), tail])


def _encode_tq1_0(blocks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    packed = np.empty((len(blocks), 52), dtype=np.uint8)
    for begin, end, width in ((0, 32, 32), (32, 48, 16)):
        fives = blocks[:, 5 * begin : 5 * end].reshape(-1, 5, width)
        packed[:, begin:end] = _STRETCHED[_number(fives)]
    packed[:, 48:] = _STRETCHED[_number(blocks[:, 240:].reshape(-1, 4, 4)) * 3]
    return packed


def _number(digits: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The number of digits `[B, n, m]`, the first the most significant: `[B, m]`."""
    number: NDArray[np.uint8] = digits[:, 0].copy()
    for n in range(1, digits.shape[1]):
        number *= np.uint8(3)
        number += digits[:, n]
    return number


def _encode_tq2_0(blocks: NDArray[np.uint8]) -> NDArray[np.uint8]:
    quarters = blocks.reshape(-1, 2, 4, 32)
    packed = (
        quarters[:, :, 0] | quarters[:, :, 1] << 2 | quarters[:, :, 2] << 4 | quarters[:, :, 3] << 6
    )
    return np.ascontiguousarray(packed, dtype=np.uint8).reshape(-1, 64)
