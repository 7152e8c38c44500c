"""A file that appears under its name only when it is whole."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from trilobit.errors import OutputError
from trilobit.formats.leftovers import Hold, part_of, remove_leftovers

if TYPE_CHECKING:
    from trilobit.formats.tables import Table

# Errors of a disk, or of what a user may have of it, that is full.
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PART_ROWS = 512  # of a table in memory at once


def check_space(path: Path, size_bytes: int) -> None:
    """OutputError when a disk has no room for a file: before hours of work, not after them."""
    disk = shutil.disk_usage(path.parent)
    # /proc and its like have no size at all: opening a file there says what is wrong.
    if disk.total and size_bytes > disk.free:
        raise OutputError(
            f"{path}: needs {disk_amount(size_bytes)}, and the disk has {disk_amount(disk.free)} "
            "free; free space or choose another place"
        )


def write_remedy(error: OSError, elsewhere: str = "choose another place") -> str:
    """What to do when something cannot be written, by its cause. elsewhere: how to avoid it."""
    if error.errno in NO_ROOM:
        return f"free space, or {elsewhere}"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"allow writing there, or {elsewhere}"
    if error.errno == errno.ENOENT:
        return f"make its folder first, or {elsewhere}"
    return elsewhere


def disk_amount(size_bytes: int) -> str:
    """Bytes as disks are measured: `1.18 GB`, `0.09 MB`."""
    return f"{size_bytes / 1e9:.2f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.2f} MB"


def check_place(path: Path) -> None:
    """OutputError when no file can be written there, before what makes it has begun.

    Begins one beside it, as `WholeFile` does, and removes that.
    """
    file = WholeFile(path, b"", 0)
    file.__enter__()
    file._discard()


def write_whole(path: Path, data: bytes, elsewhere: str = "choose another place") -> None:
    """Write a small file, whole or not at all, in the place of one that is there.

    elsewhere: how to avoid the place. Raises OutputError.
    """
    with WholeFile(path, data, len(data), elsewhere):
        pass


def remove_parts(folder: Path) -> None:
    """Remove what killed processes were writing in a folder."""
    for part in list(folder.glob(".*.part")):
        with suppress(OSError):
            if part.is_dir() and not part.is_symlink():
                shutil.rmtree(part, ignore_errors=True)
            else:
                part.unlink()


def parts(
    data: bytes | memoryview | NDArray[np.generic] | Table,
) -> Iterator[bytes | memoryview]:
    """The bytes of something to be written, some rows of a table that is made as it is read."""
    if isinstance(data, (bytes, memoryview)):
        yield data
    elif isinstance(data, np.ndarray):
        yield np.ascontiguousarray(data).data if data.size else b""
    else:
        for row in range(0, len(data), _PART_ROWS):
            yield np.ascontiguousarray(data[row : row + _PART_ROWS]).data


class WholeFile:
    """Written beside its name and renamed at the end; on any error, Ctrl-C included, removed.

    start: its first bytes. size_bytes: of all that will be written, asked for before anything is.
    elsewhere: how to avoid the place, for messages.
    Raises OutputError when the disk is full or the place cannot be written.
    """

    def __init__(
        self,
        path: Path,
        start: bytes,
        size_bytes: int,
        elsewhere: str = "choose another place",
    ) -> None:
        if path == Path("-"):
            raise OutputError("-: no file can be whole on standard output; name one")
        # A rename would put the file in the place of /dev/null, or of /dev/stdout, which may be a
        # link to a file; "." and "/" have no name.
        device = path.is_symlink() and path.absolute().parts[1:2] in (("dev",), ("proc",))
        if device or (path.exists() and not path.is_file()):
            raise OutputError(f"{path}: a directory, pipe or device; choose another place")
        self.path, self.size_bytes, self._start = path, size_bytes, start
        self._place = Path(os.path.realpath(path))  # a link stays, and leads to the file
        self._temporary, self._elsewhere = part_of(self._place), elsewhere
        self._hold: Hold | None = None

    def __enter__(self) -> WholeFile:
        try:
            remove_leftovers(self._place)
            check_space(self._place, self.size_bytes)
            self._file = open(self._temporary, "wb")
            self._hold = Hold(self._temporary)
            self._file.write(self._start)
        except BaseException as error:
            self._discard()
            raise (self._failure(error) if isinstance(error, OSError) else error) from None
        return self

    def write(self, data: bytes | memoryview | NDArray[np.generic] | Table) -> None:
        """Write bytes, an array, or a table that is made as it is read."""
        for part in parts(data):
            try:
                self._file.write(part)
            except OSError as error:
                raise self._failure(error) from None

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                assert self._file.tell() == self.size_bytes, "not all declared tensors were written"
                self._file.flush()
                os.fsync(self._file.fileno())
                self._file.close()
                os.replace(self._temporary, self._place)
        except OSError as failure:
            raise self._failure(failure) from None
        finally:
            self._discard()

    def _discard(self) -> None:
        """Remove the temporary file, if it is there."""
        with suppress(OSError, AttributeError):  # Ctrl-C may come before the file has its name here
            self._file.close()
        with suppress(OSError):
            self._temporary.unlink(missing_ok=True)
        if self._hold is not None:
            self._hold.close()

    def _failure(self, error: OSError) -> OutputError:
        if isinstance(error, OutputError):
            return error
        return OutputError(
            f"{self.path}: cannot be written ({error.strerror}); "
            f"{write_remedy(error, self._elsewhere)}"
        )
