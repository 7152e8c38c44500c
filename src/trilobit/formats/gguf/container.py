"""GGUF files: a strict reader of the header, and the tensors' bytes as views of an mmap.

The format (github.com/ggml-org/ggml, docs/gguf.md): magic, version, counts; keys with typed values;
names, shapes, types and offsets of the tensors; their data, each at a multiple of the alignment.
Every length is checked against the file before it is used, and values stay in the file until they
are asked for, so that a header can claim nothing that costs memory. Reads versions 2 and 3 of
little-endian machines.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from trilobit.errors import FormatError
from trilobit.formats.files import MAX_TEXT_BYTES, open_file
from trilobit.formats.gguf.header import (
    BOOL,
    DAMAGED,
    INTEGERS,
    NUMBERS,
    STRING,
    STRUCTS,
    U64,
    Cursor,
    Value,
    read_version,
    shown,
)
from trilobit.formats.gguf.tensors import TensorInfo, places, read_claims

# The largest model has a few thousand tensors and a hundred keys.
_MOST_TENSORS = 1 << 16
_MOST_KEYS = 1 << 12
_LONGEST_KEY = 1 << 16  # bytes, by the format


class GGUFFile:
    """An open file: the header is read and checked, values and tensors are read when asked for.

    Raises FormatError for anything that is not a sound GGUF file, UnsupportedModel for a tensor of
    a type whose size is not known.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        file, size = open_file(self.path)
        try:
            with file:
                if size < 24:
                    raise FormatError(
                        f"{self.path}: {size} bytes are too few for a GGUF file; download it again"
                    )
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except OSError as error:
            raise FormatError(f"{self.path}: cannot be read ({error.strerror})") from None
        self.size_bytes = size
        cursor = Cursor(self.path, self._map, size)
        self.version = read_version(cursor)
        tensor_count = cursor.count("tensors", _MOST_TENSORS, least_bytes=8 + 4 + 8 + 4 + 8)
        key_count = cursor.count("keys", _MOST_KEYS, least_bytes=8 + 4 + 1)
        self._values: dict[str, Value] = {}
        for _ in range(key_count):
            key = cursor.name("a key", _LONGEST_KEY)
            if key in self._values:
                raise FormatError(f"{self.path}: the key {shown(key)} is there twice; {DAMAGED}")
            self._values[key] = cursor.value(key)
        claims = read_claims(cursor, tensor_count)
        alignment = self._alignment()
        self.tensors, self.q2_0_group = places(cursor, claims, alignment)

    # ---- values -------------------------------------------------------------------------------

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def is_array(self, key: str) -> bool:
        """Whether a key is there and is an array."""
        return key in self._values and self._values[key].is_array

    def integer(self, key: str) -> int | None:
        """An integer, None when the key is missing; FormatError when it is something else."""
        value = self._values.get(key)
        if value is None:
            return None
        if value.is_array or value.kind not in INTEGERS:
            raise self._wrong(key, "an integer")
        return int(STRUCTS[value.kind].unpack_from(self._map, value.begin)[0])

    def number(self, key: str) -> float | None:
        """A float or integer as float, None when the key is missing."""
        value = self._values.get(key)
        if value is None:
            return None
        if value.is_array or value.kind in (BOOL, STRING):
            raise self._wrong(key, "a number")
        return float(STRUCTS[value.kind].unpack_from(self._map, value.begin)[0])

    def boolean(self, key: str) -> bool | None:
        """A boolean, None when the key is missing."""
        value = self._values.get(key)
        if value is None:
            return None
        if value.is_array or value.kind != BOOL:
            raise self._wrong(key, "true or false")
        return self._map[value.begin] == 1

    def text(self, key: str) -> str | None:
        """A string, None when the key is missing."""
        raw = self.text_bytes(key)
        return None if raw is None else raw.decode("utf-8")

    def text_bytes(self, key: str) -> bytes | None:
        """A string as UTF-8, None when the key is missing."""
        value = self._values.get(key)
        if value is None:
            return None
        if value.is_array or value.kind != STRING:
            raise self._wrong(key, "a string")
        if value.count > MAX_TEXT_BYTES:
            raise FormatError(
                f"{self.path}: {shown(key)} has {value.count} bytes, and no text of a model is so "
                f"long; {DAMAGED}"
            )
        return self._map[value.begin : value.begin + value.count]

    def length(self, key: str) -> int | None:
        """Items of an array, None when the key is missing."""
        value = self._values.get(key)
        if value is None:
            return None
        if not value.is_array:
            raise self._wrong(key, "an array")
        return value.count

    def strings(self, key: str, items: Sequence[int] | None = None) -> list[str] | None:
        """An array of strings (all, or some by ascending index), None when the key is missing."""
        value = self._values.get(key)
        if value is None:
            return None
        if not value.is_array or value.kind != STRING:
            raise self._wrong(key, "an array of strings")
        wanted = range(value.count) if items is None else items
        found: list[str] = []
        position, data, length, i = value.begin, self._map, U64.unpack_from, 0
        try:
            for item in wanted:
                for _ in range(item - i):
                    position += 8 + length(data, position)[0]
                begin = position + 8
                position = begin + length(data, position)[0]
                found.append(data[begin:position].decode("utf-8"))
                i = item + 1
        except UnicodeDecodeError:
            raise FormatError(
                f"{self.path}: item {i} of {shown(key)} is not UTF-8; {DAMAGED}"
            ) from None
        return found

    def numbers(self, key: str) -> NDArray[Any] | None:
        """An array of numbers, None when the key is missing."""
        value = self._values.get(key)
        if value is None:
            return None
        if not value.is_array or value.kind == STRING:
            raise self._wrong(key, "an array of numbers")
        return np.frombuffer(self._map, f"<{NUMBERS[value.kind]}", value.count, value.begin)

    def _wrong(self, key: str, expected: str) -> FormatError:
        return FormatError(f"{self.path}: {shown(key)} is not {expected}; {DAMAGED}")

    def _alignment(self) -> int:
        alignment = self.integer("general.alignment")
        if alignment is None:
            return 32
        if not 8 <= alignment <= 1 << 20 or alignment & (alignment - 1):
            raise FormatError(
                f"{self.path}: 'general.alignment' is {alignment}; expected a power of two from 8 "
                f"to {1 << 20}"
            )
        return alignment

    # ---- tensors ------------------------------------------------------------------------------

    def info(self, name: str) -> TensorInfo:
        """Type and place of a tensor; FormatError when there is none of that name."""
        if name not in self.tensors:
            raise FormatError(f"{self.path}: tensor '{name}' is missing")
        return self.tensors[name]

    def data(self, name: str) -> NDArray[np.uint8]:
        """The tensor's bytes as a read-only view of the file."""
        info = self.info(name)
        return np.frombuffer(self._map, np.uint8, info.size_bytes, info.begin)

    def forget(self) -> None:
        """Let the system drop the pages read so far; they count as resident otherwise."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)
