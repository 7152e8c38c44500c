"""Opening what a user or a checkpoint names: regular files only, and one line when it cannot be.

A pipe would wait for ever and a device never end, so neither is opened at all.
"""

from __future__ import annotations

import os
import stat
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from trilobit.errors import FormatError
from trilobit.formats import json_text

# The largest tokenizer.json of 262144 tokens has 33 MB.
MAX_TEXT_BYTES = 100_000_000

# Linux fetches no more at once than it reads ahead, 128 KB by default.
_FETCH_BYTES = 128 << 10


def open_file(path: Path) -> tuple[BinaryIO, int]:
    """A regular file, opened for reading, and its size in bytes.

    Raises FormatError for one that is missing, forbidden, or not a regular file.
    """
    try:
        # Before opening: that alone would wait for a pipe's other end.
        if not stat.S_ISREG(os.stat(path).st_mode):
            what = "a directory" if os.path.isdir(path) else "a pipe or device"
            raise FormatError(f"{path}: {what}; give a regular file")
        file = open(path, "rb")  # noqa: SIM115, the caller closes it
        return file, os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise FormatError(f"{path}: no such file; check the name") from None
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror}); check the file") from None
    except ValueError:
        raise FormatError(f"{str(path)!r}: not a possible file name; check the name") from None


class OpenFile:
    """A file that stays open as long as somebody holds this, whatever becomes of its name."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.name = str(path)
        self._descriptor = os.dup(file.fileno())

    def fileno(self) -> int:
        """The descriptor, for reads at a place of the file."""
        return self._descriptor

    def fetch(self, begin: int, end: int) -> None:
        """Let the system read bytes [begin, end) into its file cache, while this goes on."""
        if not hasattr(os, "posix_fadvise"):  # macOS, Windows
            return

        def advise() -> None:
            with suppress(OSError):  # it was only advice
                for at in range(begin, end, _FETCH_BYTES):
                    size = min(_FETCH_BYTES, end - at)
                    os.posix_fadvise(self._descriptor, at, size, os.POSIX_FADV_WILLNEED)

        threading.Thread(target=advise, name="trilobit-fetch", daemon=True).start()

    def __del__(self) -> None:
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)


def read_bytes(path: Path, limit: int = MAX_TEXT_BYTES) -> bytes:
    """All of a small file; FormatError when it is larger than `limit` or cannot be read."""
    file, size = open_file(path)
    with file:
        if size > limit:
            raise FormatError(
                f"{path}: {size} bytes, and at most {limit} make sense; take the model's own file"
            )
        try:
            return file.read(limit)
        except OSError as error:
            raise FormatError(f"{path}: cannot be read ({error.strerror}); try again") from None


def read_text(path: Path, limit: int = MAX_TEXT_BYTES) -> str:
    """A small UTF-8 file as text; FormatError when it is not UTF-8."""
    try:
        return read_bytes(path, limit).decode("utf-8")
    except UnicodeDecodeError:
        raise FormatError(f"{path}: not UTF-8 text; download it again") from None


def read_json_value(path: Path) -> Any:
    """Whatever a JSON file holds; FormatError when it is not JSON, or more than a model's has."""
    try:
        return json_text.parse(read_bytes(path))
    except json_text.JSONFault as fault:
        raise FormatError(f"{path}: {fault}; download it again") from None


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; FormatError when it is not JSON, too much, or not an object."""
    raw = read_json_value(path)
    if not isinstance(raw, dict):
        raise FormatError(f"{path}: is not a JSON object; download it again")
    return raw
