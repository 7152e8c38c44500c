"""The header of a GGUF file, walked once: every length is checked before anything believes it."""

from __future__ import annotations

import codecs
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trilobit.errors import FormatError

MAGIC = b"GGUF"
DAMAGED = "the file is damaged: download it again"
CUT_OFF = "it is cut off or damaged: download it again"

BOOL, STRING, ARRAY = 7, 8, 9
# Kind of a number -> struct code, which is numpy's too.
NUMBERS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "B",
    10: "Q",
    11: "q",
    12: "d",
}
INTEGERS = (0, 1, 2, 3, 4, 5, 10, 11)
STRUCTS = {kind: struct.Struct(f"<{code}") for kind, code in NUMBERS.items()}
U32, U64 = STRUCTS[4], STRUCTS[10]

_VERSIONS = (2, 3)
_MOST_ITEMS = 1 << 24  # of an array; the largest vocabulary has 2^18 tokens and twice the merges
_UTF8_CHUNK = 1 << 20  # bytes checked at once


@dataclass(frozen=True, slots=True)
class Value:
    """Where a value lies: its kind, first byte, and items (of an array) or bytes (of a string)."""

    kind: int
    begin: int
    count: int = 1
    is_array: bool = False


def read_version(cursor: Cursor) -> int:
    """The version of a GGUF file; FormatError for a file that is none, or another's."""
    path, magic = cursor.path, cursor.take(4)
    if magic == b"vers":
        raise FormatError(f"{path}: a Git LFS pointer, not the file; run `git lfs pull`")
    if magic != MAGIC:
        what = "a GGUF file of a big-endian machine" if magic == MAGIC[::-1] else "not a GGUF file"
        raise FormatError(f"{path}: {what}; give the little-endian GGUF file of the model")
    version: int = cursor.number(U32, "the version")
    if version in _VERSIONS:
        return version
    if version & 0xFFFF == 0 and version:
        raise FormatError(
            f"{path}: a big-endian GGUF file; give the little-endian one, or convert it with "
            "gguf_convert_endian.py of the gguf package"
        )
    raise FormatError(
        f"{path}: version {version} of GGUF; supported: 2 and 3; "
        + ("convert the model again" if version == 1 else "upgrade Trilobit")
    )


class Cursor:
    """A position in a header, which never passes the end of the file."""

    def __init__(self, path: Path, data: mmap.mmap, size: int) -> None:
        self.path = path
        self.size = size
        self.position = 0
        self._data = data

    def number(self, form: struct.Struct, what: str) -> Any:
        """The next number; `what` names it in the message of a file that ends before."""
        self.need(form.size, what)
        value = form.unpack_from(self._data, self.position)[0]
        self.position += form.size
        return value

    def take(self, count: int) -> bytes:
        """The next bytes, which must be there."""
        taken = self._data[self.position : self.position + count]
        self.position += count
        return taken

    def need(self, count: int, what: str) -> None:
        """FormatError when fewer than `count` bytes follow."""
        if count > self.size - self.position:
            raise FormatError(
                f"{self.path}: {what} takes {count} bytes at byte {self.position}, but the file "
                f"has {self.size}; {CUT_OFF}"
            )

    def count(self, what: str, most: int, *, least_bytes: int) -> int:
        """How many `what` follow, each of at least `least_bytes`."""
        count: int = self.number(U64, f"the number of {what}")
        if count > most:
            raise FormatError(f"{self.path}: {count} {what}; at most {most} make sense; {DAMAGED}")
        self.need(count * least_bytes, f"{count} {what}")
        return count

    def name(self, what: str, longest: int) -> str:
        """A short string of printable characters."""
        length: int = self.number(U64, f"the length of {what}")
        if not 0 < length <= longest:
            raise FormatError(
                f"{self.path}: the name of {what} has {length} bytes; expected 1 to {longest}; "
                f"{DAMAGED}"
            )
        self.need(length, f"the name of {what}")
        try:
            name = self.take(length).decode("utf-8")
        except UnicodeDecodeError:
            raise FormatError(f"{self.path}: the name of {what} is not UTF-8; {DAMAGED}") from None
        if not name.isprintable():
            raise FormatError(
                f"{self.path}: the name {shown(name)} holds characters that no name has; {DAMAGED}"
            )
        return name

    def value(self, key: str) -> Value:
        """Step over a value; what it says of its own length is checked on the way."""
        what = f"the value of {shown(key)}"
        kind: int = self.number(U32, what)
        if kind == STRING:
            return self._string(what)
        if kind == ARRAY:
            return self._array(what)
        if kind not in STRUCTS:
            raise FormatError(f"{self.path}: {what} has the unknown type {kind}; {DAMAGED}")
        value = Value(kind, self.position)
        content = self.number(STRUCTS[kind], what)
        if kind == BOOL and content > 1:
            raise FormatError(f"{self.path}: {what} is {content}, not true or false; {DAMAGED}")
        return value

    def _string(self, what: str) -> Value:
        length: int = self.number(U64, what)
        self.need(length, what)
        value = Value(STRING, self.position, length)
        decode = codecs.getincrementaldecoder("utf-8")().decode
        end = self.position + length
        try:
            while self.position < end:
                decode(self.take(min(_UTF8_CHUNK, end - self.position)))
            decode(b"", final=True)
        except UnicodeDecodeError:
            raise FormatError(f"{self.path}: {what} is not UTF-8; {DAMAGED}") from None
        return value

    def _array(self, what: str) -> Value:
        kind: int = self.number(U32, what)
        if kind == ARRAY:
            raise FormatError(
                f"{self.path}: {what} is an array of arrays, which no model needs; {DAMAGED}"
            )
        if kind != STRING and kind not in STRUCTS:
            raise FormatError(f"{self.path}: {what} has items of unknown type {kind}; {DAMAGED}")
        width = 8 if kind == STRING else STRUCTS[kind].size
        count: int = self.number(U64, what)
        if count > _MOST_ITEMS:
            raise FormatError(
                f"{self.path}: {what} has {count} items; at most {_MOST_ITEMS} make sense; "
                f"{DAMAGED}"
            )
        self.need(count * width, what)
        value = Value(kind, self.position, count, is_array=True)
        if kind == STRING:
            self._skip_strings(count, what)
        else:
            self.position += count * width
        return value

    def _skip_strings(self, count: int, what: str) -> None:
        # The slowest part of opening a file: no checks but those that unpack_from makes anyway.
        position, data, length = self.position, self._data, U64.unpack_from
        try:
            for _ in range(count):
                position += 8 + length(data, position)[0]
        except (struct.error, OverflowError):
            position = self.size + 1
        if position > self.size:
            raise FormatError(f"{self.path}: {what} ends behind the file; {CUT_OFF}")
        self.position = position


def shown(name: str) -> str:
    """A name from a file as it may stand in a message: printable, short, quoted."""
    text = "".join(c if c.isprintable() else "?" for c in name[:120])
    return f"'{text}…'" if len(name) > 120 else f"'{text}'"
