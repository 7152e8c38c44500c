"""The blocks of GGUF's float types, dequantised as ggml does: the same float32, bit for bit.

The types that embeddings, heads and norms come in. d and m are float16 scales and minima.
"""

# B blocks

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trilobit.formats.gguf.types import BF16, F16, F32, Q4_0, Q4_K, Q6_K, Q8_0

# Types that a safetensors file holds as they are -> their name there and numpy's type of the bits.
PLAIN: dict[int, tuple[str, np.dtype[Any]]] = {
    F32: ("F32", np.dtype("<f4")),
    F16: ("F16", np.dtype("<f2")),
    BF16: ("BF16", np.dtype("<u2")),
}


def dequantise(type_id: int, data: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Bytes of whole blocks as float32, flat."""
    if type_id == BF16:
        wide = data.view("<u2").astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)
    if type_id in PLAIN:
        return data.view(PLAIN[type_id][1]).astype(np.float32)
    return _DECODERS[type_id](data).reshape(-1)


def _q8_0(data: NDArray[np.uint8]) -> NDArray[np.float32]:
    blocks = data.reshape(-1, 34)
    return blocks[:, 2:].view(np.int8).astype(np.float32) * _half(blocks[:, :2])


def _q4_0(data: NDArray[np.uint8]) -> NDArray[np.float32]:
    blocks = data.reshape(-1, 18)
    q_B32 = _nibbles(blocks[:, 2:]).reshape(-1, 32).view(np.int8) - np.int8(8)
    return _half(blocks[:, :2]) * q_B32.astype(np.float32)


def _q4_k(data: NDArray[np.uint8]) -> NDArray[np.float32]:
    """d[2] m[2] scales[12] q[128]: 8 runs of 32 weights, w = d·s·q - m·t.

    s and t have 6 bits each: of the first four runs in the low bits of bytes 0-3 and 4-7, of the
    others in the nibbles of bytes 8-11, their upper two bits in the upper ones of bytes 0-7.
    """
    blocks = data.reshape(-1, 144)
    a, b, c = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    s_B8 = np.concatenate([a & 0x3F, (c & 0x0F) | (a >> 2 & 0x30)], axis=1).astype(np.float32)
    t_B8 = np.concatenate([b & 0x3F, (c >> 4) | (b >> 2 & 0x30)], axis=1).astype(np.float32)
    q_B832 = _nibbles(blocks[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32).astype(np.float32)
    scales_B8 = _half(blocks[:, :2]) * s_B8
    minima_B8 = _half(blocks[:, 2:4]) * t_B8
    return scales_B8[..., None] * q_B832 - minima_B8[..., None]


def _q6_k(data: NDArray[np.uint8]) -> NDArray[np.float32]:
    """low[128] high[64] scales[16] d[2]: 16 runs of 16 weights, w = d·s·(q - 32).

    In each half of 128 weights, the low nibbles of 64 bytes come before their high nibbles, and
    bits 2l of 32 bytes are the upper bits of run l of 32 weights.
    """
    blocks = data.reshape(-1, 210)
    low = _nibbles(blocks[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    pairs = blocks[:, 128:192].reshape(-1, 2, 1, 32)
    high = pairs >> np.arange(0, 8, 2, dtype=np.uint8)[:, None] & np.uint8(3)
    q = (low | high << 4).view(np.int8) - np.int8(32)
    scales = _half(blocks[:, 208:]) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    return scales[..., None] * q.reshape(-1, 16, 16).astype(np.float32)


_DECODERS: dict[int, Callable[[NDArray[np.uint8]], NDArray[np.float32]]] = {
    Q8_0: _q8_0,
    Q4_0: _q4_0,
    Q4_K: _q4_k,
    Q6_K: _q6_k,
}


def _half(stored: NDArray[np.uint8]) -> NDArray[np.float32]:
    """float16 of two bytes `[B, 2]` as float32 `[B, 1]`."""
    return np.ascontiguousarray(stored).view("<f2").astype(np.float32)


def _nibbles(packed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Bytes `[..., n]` as `[..., 2, n]`: their low nibbles, then their high ones."""
    return np.stack([packed & np.uint8(0x0F), packed >> np.uint8(4)], axis=-2)


def q8_0(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Q8_0 blocks of rows whose length is a multiple of 32, as ggml quantises them: flat bytes."""
    runs = values.reshape(-1, 32)
    d = np.abs(runs).max(axis=1, keepdims=True) / np.float32(127)
    with np.errstate(divide="ignore"):
        inverse = np.where(d == 0, np.float32(0), np.float32(1) / d)
    scaled = runs * inverse
    # Halves away from zero, as C's roundf.
    q = np.sign(scaled) * np.floor(np.abs(scaled) + np.float32(0.5))
    half = np.ascontiguousarray(d.astype("<f2")).view(np.uint8)
    return np.concatenate([half, q.astype(np.int8).view(np.uint8)], axis=1).reshape(-1)
