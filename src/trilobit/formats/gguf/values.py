"""Keys with typed values as the bytes of a GGUF header."""

from __future__ import annotations

from collections.abc import Sequence

from trilobit.formats.gguf.header import ARRAY, BOOL, STRING, STRUCTS, U32, U64

_KINDS = {"u32": 4, "i32": 5, "f32": 6}


def pair(key: str, value: bytes) -> bytes:
    """A key and what one of the functions below made."""
    return _text(key) + value


def u32(value: int) -> bytes:
    """An unsigned integer."""
    return _number("u32", value)


def i32(value: int) -> bytes:
    """A signed integer."""
    return _number("i32", value)


def f32(value: float) -> bytes:
    """A float."""
    return _number("f32", value)


def boolean(value: bool) -> bytes:
    """True or false."""
    return U32.pack(BOOL) + bytes([value])


def text(value: str) -> bytes:
    """A string."""
    return U32.pack(STRING) + _text(value)


def texts(values: Sequence[str]) -> bytes:
    """An array of strings."""
    head = U32.pack(ARRAY) + U32.pack(STRING) + U64.pack(len(values))
    return head + b"".join(map(_text, values))


def booleans(values: Sequence[bool]) -> bytes:
    """An array of true and false."""
    return U32.pack(ARRAY) + U32.pack(BOOL) + U64.pack(len(values)) + bytes(values)


def numbers(kind: str, values: Sequence[float]) -> bytes:
    """An array of `i32`, `u32` or `f32`."""
    code = _KINDS[kind]
    items = b"".join(map(STRUCTS[code].pack, values))
    return U32.pack(ARRAY) + U32.pack(code) + U64.pack(len(values)) + items


def _number(kind: str, value: float) -> bytes:
    return U32.pack(_KINDS[kind]) + STRUCTS[_KINDS[kind]].pack(value)


def _text(value: str) -> bytes:
    raw = value.encode("utf-8", "replace")
    return U64.pack(len(raw)) + raw
