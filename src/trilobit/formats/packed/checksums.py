"""Checksums in a packed file, one for its header and one for each tensor: any flipped byte shows.

CRC-32 finds every single changed byte and every damage of up to 32 bits in a row for certain, other
accidents but for one in four billion, at more than a gigabyte a second; nobody signs anything here.
They are the last tensor, since they are known last.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from trilobit.errors import FormatError
from trilobit.formats.safetensors import Declared, SafetensorsFile, SafetensorsWriter
from trilobit.formats.tables import Table
from trilobit.model.tensor_names import CHECKSUMS

_CHUNK_BYTES = 1 << 24
HEADER = "the header"


class ChecksummedWriter(SafetensorsWriter):
    """A `SafetensorsWriter` whose file ends in the checksums of what was written."""

    def __init__(
        self, path: str | os.PathLike[str], tensors: Iterable[Declared], metadata: Mapping[str, str]
    ) -> None:
        declared = list(tensors)
        sums = (CHECKSUMS, "U8", (1 + len(declared), 4))
        super().__init__(path, [*declared, sums], metadata)
        self._sums = [zlib.crc32(self.start)]

    def write(self, name: str, array: NDArray[np.generic] | Table) -> None:
        """Write the next declared tensor; it must be the one of that name, type and shape."""
        self._sums.append(0)
        super().write(name, array)

    def _seen(self, part: bytes | memoryview) -> None:
        self._sums[-1] = zlib.crc32(part, self._sums[-1])

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if kind is None and len(self._sums) == len(self._declared):
            sums = np.array(self._sums, dtype="<u4")
            try:
                super().write(CHECKSUMS, sums.view(np.uint8).reshape(-1, 4))
            except BaseException as error:
                super().__exit__(type(error), error, error.__traceback__)
                raise
        super().__exit__(kind, *rest)


def damaged_parts(
    file: SafetensorsFile, progress: Callable[[int, int], None] | None = None
) -> list[str] | None:
    """Names of the tensors (or "the header") that are not as they were written; None: no checksums.

    FormatError where the checksums are not of as many tensors as the file has.
    """
    if CHECKSUMS not in file:
        return None
    names = sorted(file.tensors, key=lambda name: file.info(name).begin)
    if names.pop() != CHECKSUMS or file.info(CHECKSUMS).shape != (1 + len(names), 4):
        raise FormatError(f"{file.path}: '{CHECKSUMS}' is not of its tensors; convert again")
    sums = file.array(CHECKSUMS).reshape(-1).view("<u4").tolist()
    header = min(info.begin for info in file.tensors.values())
    wrong = [] if _crc(file.bytes(0, header)) == sums[0] else [HEADER]
    for done, (name, wanted) in enumerate(zip(names, sums[1:], strict=True)):
        info = file.info(name)
        if _crc(file.bytes(info.begin, info.end)) != wanted:
            wrong.append(name)
        file.forget([name])
        if progress:
            progress(done + 1, len(names))
    return wrong


def checksums_of(file: SafetensorsFile) -> bytes:
    """What stands for all that the file holds; without checksums in it, it is read to the end."""
    if CHECKSUMS in file:
        return file.array(CHECKSUMS).tobytes()
    return _crc(file.bytes(0, file.size_bytes)).to_bytes(4, "little")


def _crc(data: memoryview) -> int:
    found = 0
    for begin in range(0, len(data), _CHUNK_BYTES):
        found = zlib.crc32(data[begin : begin + _CHUNK_BYTES], found)
    return found
