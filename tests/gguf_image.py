"""GGUF files byte by byte, whatever their headers say: sound ones and hostile ones."""

from __future__ import annotations

import struct
from collections.abc import Sequence

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
_CODES = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B"}
_CODES |= {U64: "Q", I64: "q", F64: "d"}


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def string(text: str | bytes) -> bytes:
    raw = text.encode() if isinstance(text, str) else text
    return u64(len(raw)) + raw


def scalar(kind: int, value: object) -> bytes:
    """Type and value."""
    return u32(kind) + _item(kind, value)


def array(kind: int, items: Sequence[object]) -> bytes:
    """Type, type and number of the items, and the items."""
    return u32(ARRAY) + u32(kind) + u64(len(items)) + b"".join(_item(kind, v) for v in items)


def _item(kind: int, value: object) -> bytes:
    if kind == STRING:
        assert isinstance(value, str | bytes)
        return string(value)
    return struct.pack(f"<{_CODES[kind]}", value)


def pair(key: str | bytes, value: bytes) -> bytes:
    """A key and its `scalar` or `array`."""
    return string(key) + value


def tensor(name: str | bytes, dimensions: Sequence[int], type_id: int, offset: int) -> bytes:
    """What the header says of a tensor; dimensions with the fastest first."""
    return (
        string(name)
        + u32(len(dimensions))
        + b"".join(u64(d) for d in dimensions)
        + u32(type_id)
        + u64(offset)
    )


def image(
    pairs: Sequence[bytes] = (),
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    counts: tuple[int, int] | None = None,
    alignment: int = 32,
) -> bytes:
    """A file of this header; counts: of tensors and keys, where they shall lie."""
    tensor_count, key_count = counts or (len(tensors), len(pairs))
    header = magic + u32(version) + u64(tensor_count) + u64(key_count)
    header += b"".join(pairs) + b"".join(tensors)
    return header + bytes(-len(header) % alignment) + data
