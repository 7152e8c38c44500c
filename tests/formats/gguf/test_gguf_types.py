"""GGUF's types decode to the values of the `gguf` package, and to the codes that were packed."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Reference
from gguf_models import i2_s
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from trilobit import FormatError
from trilobit.formats.gguf import float_blocks, ternary_blocks, types
from trilobit.formats.gguf.ternary_blocks import decode, encode

CODES = np.random.default_rng(0).integers(-1, 2, (8, 512), dtype=np.int8)
SCALE = np.float32(0.0123)
SCALES = np.array([SCALE])


def raw(values: object, dtype: str = "u1") -> NDArray[np.uint8]:
    return np.ascontiguousarray(np.asarray(values, dtype=dtype)).view(np.uint8).reshape(-1)


# ---- floats -------------------------------------------------------------------------------------


@pytest.mark.parametrize("type_id", types.FLOATS)
def test_floats_are_those_of_the_gguf_package(type_id: int) -> None:
    """Random bytes, so that every bit of every field counts; NaN and infinity among them."""
    kind = types.TYPES[type_id]
    random = np.random.default_rng(type_id)
    data = random.integers(0, 256, (64, 4 * kind.block_bytes), dtype=np.uint8)
    with np.errstate(invalid="ignore", over="ignore"):
        reference = gguf.dequantize(data, Reference(type_id)).reshape(-1)
        ours = float_blocks.dequantise(type_id, data.reshape(-1))
    assert ours.dtype == np.float32
    assert np.array_equal(ours.view(np.uint32), reference.astype(np.float32).view(np.uint32))


def test_q8_0_is_quantised_as_by_the_gguf_package() -> None:
    values = np.random.default_rng(3).standard_normal((6, 96), dtype=np.float32)
    values[1] = 0
    values[2] = 63.5 * np.sign(values[2])  # 0.5 away from integers where d is 1
    values[2, ::32] = 127
    assert np.array_equal(
        float_blocks.q8_0(values), gguf.quantize(values, Reference.Q8_0).reshape(-1)
    )


# ---- ternary ------------------------------------------------------------------------------------


@pytest.mark.parametrize("type_id", [types.TQ1_0, types.TQ2_0])
def test_ternary_blocks_are_those_of_the_gguf_package(type_id: int) -> None:
    reference = gguf.quantize(CODES.astype(np.float32) * SCALE, Reference(type_id))
    assert np.array_equal(encode(type_id, CODES, SCALES), reference.reshape(-1))
    decoded = decode(type_id, reference.reshape(-1), CODES.shape)
    assert np.array_equal(decoded.codes, CODES)
    assert np.array_equal(decoded.scales, np.full((8, 2), np.float32(np.float16(SCALE))))


@pytest.mark.parametrize("layout", ternary_blocks.I2S_LAYOUTS)
@pytest.mark.parametrize("shape", [(8, 512), (4, 128), (4, 96)])
def test_i2_s_is_read_in_every_layout(
    layout: ternary_blocks.I2SLayout, shape: tuple[int, int]
) -> None:
    codes = CODES[: shape[0], : shape[1]]
    decoded = decode(types.I2_S, i2_s(codes, layout, SCALE), shape, layout)
    assert np.array_equal(decoded.codes, codes)
    assert np.array_equal(decoded.scales, np.full((shape[0], 1), SCALE))
    if layout == "x86":
        assert np.array_equal(encode(types.I2_S, codes, SCALES), i2_s(codes, layout, SCALE))


def test_i2_s_is_refused_in_a_layout_that_cannot_be() -> None:
    for shape, layout, message in [
        (
            (4, 16),
            "x86",
            "no multiple of 128, as the x86 form of I2_S needs; it may be laid out as arm or rows",
        ),
        ((3, 128), "rows", "3 rows are no multiple of 4"),
    ]:
        data = np.zeros(shape[0] * shape[1] // 4 + 32, dtype=np.uint8)
        with pytest.raises(FormatError, match=message):
            decode(types.I2_S, data, shape, layout)  # type: ignore[arg-type]


@pytest.mark.parametrize("group", [64, 128])
def test_q2_0_is_read_with_groups_of_64_and_of_128(group: int) -> None:
    scales = np.random.default_rng(1).random((8, 512 // group)).astype("<f2")
    digits = (CODES + 1).reshape(-1, group // 4, 4)
    packed = digits[..., 0] | digits[..., 1] << 2 | digits[..., 2] << 4 | digits[..., 3] << 6
    blocks = np.concatenate(
        [scales.reshape(-1, 1).view(np.uint8), raw(packed).reshape(-1, group // 4)], 1
    )
    decoded = decode(types.Q2_0, blocks.reshape(-1), CODES.shape)
    assert np.array_equal(decoded.codes, CODES)
    assert np.array_equal(decoded.scales, scales.astype(np.float32))


def iq1_bn(codes: NDArray[np.int8], scale: float) -> NDArray[np.uint8]:
    """A row of IQ1_BN as ik_llama.cpp packs it, one number at a time."""
    powers = [1, 3, 9, 27, 81]
    out = raw([scale], "<f2").tolist()
    for block in (codes + 1).reshape(-1, 4, 16).tolist():
        numbers = [
            sum(powers[j] * sixteen[5 * k + j] for j in range(5))
            for sixteen in block
            for k in range(3)
        ]
        numbers.append(sum(powers[n] * sixteen[15] for n, sixteen in enumerate(block)))
        out += [(256 * number + 242) // 243 for number in numbers]
    return raw(out)


def iq2_bn(codes: NDArray[np.int8], scale: float) -> NDArray[np.uint8]:
    """A row of IQ2_BN as ik_llama.cpp packs it."""
    u = (codes + 1).reshape(-1, 4, 16)
    return np.concatenate(
        [raw([scale], "<f4"), raw(u[:, 0] | u[:, 1] << 2 | u[:, 2] << 4 | u[:, 3] << 6)]
    )


@pytest.mark.parametrize(("type_id", "pack"), [(types.IQ1_BN, iq1_bn), (types.IQ2_BN, iq2_bn)])
def test_ik_rows_have_a_scale_each_and_zero_where_it_is_zero(type_id: int, pack: object) -> None:
    scales = [0.5, 0.25, 0.0, 1.5, 0.125, 2.0, 3.0, 0.75]
    codes = CODES.copy()
    codes[2] = 1  # as ik_llama.cpp writes a row of zeros
    data = np.concatenate([pack(row, scale) for row, scale in zip(codes, scales, strict=True)])  # type: ignore[operator]
    assert data.size == types.TYPES[type_id].size_bytes(codes.shape)
    decoded = decode(type_id, data, codes.shape)
    codes[2] = 0
    assert np.array_equal(decoded.codes, codes)
    assert decoded.scales.reshape(-1).tolist() == scales


@pytest.mark.parametrize("type_id", [types.I2_S, types.TQ2_0, types.IQ2_BN, types.Q2_0])
def test_code_3_is_refused(type_id: int) -> None:
    data = np.zeros(types.TYPES[type_id].size_bytes((4, 256)) or 0, dtype=np.uint8)
    data[17] = 0b00110000
    with pytest.raises(FormatError, match="code 3"):
        decode(type_id, data, (4, 256))


@pytest.mark.parametrize("type_id", [types.TQ1_0, types.IQ1_BN])
def test_bytes_of_no_five_weights_are_refused(type_id: int) -> None:
    size = types.TYPES[type_id].size_bytes((4, 256)) or 0
    sound = {-(-v * 256 // 243) for v in range(243)}
    assert len(sound) == 243
    for byte in range(256):
        data = np.zeros(size, dtype=np.uint8)
        data[3] = byte
        if byte in sound:
            decode(type_id, data, (4, 256))
            continue
        with pytest.raises(FormatError, match="none that ternary weights are packed to"):
            decode(type_id, data, (4, 256))


def test_the_byte_of_four_weights_holds_no_fifth() -> None:
    data = np.zeros(54, dtype=np.uint8)
    data[50] = 2  # ceil(256 / 243): the fifth digit alone
    with pytest.raises(FormatError, match="none that ternary weights"):
        decode(types.TQ1_0, data, (1, 256))
    data = np.zeros(15, dtype=np.uint8)
    data[14] = -(-81 * 256 // 243)
    with pytest.raises(FormatError, match="none that ternary weights"):
        decode(types.IQ1_BN, data, (1, 64))


@pytest.mark.parametrize("scale", [-1.0, float("nan"), float("inf")])
@pytest.mark.parametrize("type_id", [types.I2_S, types.TQ1_0, types.TQ2_0])
def test_a_scale_that_cannot_be_is_refused(type_id: int, scale: float) -> None:
    with pytest.raises(FormatError, match="negative, infinite or NaN"):
        decode(type_id, encode(type_id, CODES, np.array([scale], np.float32)), CODES.shape)


@given(
    st.sampled_from([types.I2_S, types.TQ1_0, types.TQ2_0]),
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 1 << 30),
    st.floats(2**-14, 100, width=16),
)
def test_what_is_encoded_is_decoded(
    type_id: int, rows: int, blocks: int, seed: int, scale: float
) -> None:
    codes = np.random.default_rng(seed).integers(-1, 2, (rows, 256 * blocks), dtype=np.int8)
    decoded = decode(type_id, encode(type_id, codes, np.array([scale], np.float32)), codes.shape)
    assert np.array_equal(decoded.codes, codes)
    assert (decoded.scales == scale).all()
