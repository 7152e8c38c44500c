"""Safetensors files: a strict reader over an mmap, and a streaming writer.

The format (https://github.com/huggingface/safetensors): 8 bytes little-endian header length, a JSON
header of `{name: {dtype, shape, data_offsets}}`, then the data without holes. The public library
accepts duplicate keys and wants whole tensors in memory to write; both matter here, so this reads
and writes the format itself. BF16 has no numpy type: its tensors are uint16 arrays of the bits.
"""

from __future__ import annotations

import json
import math
import mmap
import os
import reprlib
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from trilobit.errors import FormatError, OutputError
from trilobit.formats import json_text
from trilobit.formats.dtypes import DTYPES, FLOATS, as_float32
from trilobit.formats.files import OpenFile, open_file, read_json
from trilobit.formats.json_text import shown
from trilobit.formats.whole_file import WholeFile, parts

if TYPE_CHECKING:
    from trilobit.formats.tables import Table

MAX_HEADER_BYTES = 100_000_000  # the limit of the public library
ALIGNMENT = 64  # of the data: a cache line, and the widest vector


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Type, shape and place (bytes from the start of the file) of a tensor."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def size_bytes(self) -> int:
        """Bytes of the tensor's data."""
        return self.end - self.begin


class SafetensorsFile:
    """An open file: `header` and `metadata` are read and checked, tensors are views of an mmap.

    Raises FormatError for anything that is not a sound safetensors file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        file, size = open_file(self.path)
        try:
            with file:
                start = file.read(8)
                self._refuse_foreign(start, size)
                length = int.from_bytes(start, "little")
                if length > MAX_HEADER_BYTES and start.isascii() and b"\0" not in start:
                    raise FormatError(
                        f"{self.path}: not a safetensors file but text; check the name"
                    )
                if length > MAX_HEADER_BYTES or length > size - 8:
                    raise FormatError(
                        f"{self.path}: not a safetensors file, or cut off: it claims a header of "
                        f"{length} bytes and has {size} bytes; download or convert it again"
                    )
                raw = file.read(length)
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                self.opened = OpenFile(self.path, file)
        except OSError as error:
            raise FormatError(f"{self.path}: cannot be read ({error.strerror})") from None
        self.size_bytes = size
        self.tensors, self.metadata = _parse(self.path, raw, 8 + length, size)

    def _refuse_foreign(self, start: bytes, size: int) -> None:
        if size == 0:
            raise FormatError(f"{self.path}: the file is empty; download or convert it again")
        if start[:4] == b"GGUF":
            raise FormatError(f"{self.path}: a GGUF file; give the Hugging Face checkpoint instead")
        if start == b"version ":
            raise FormatError(f"{self.path}: a Git LFS pointer, not the file; run `git lfs pull`")
        # A header may be 128 bytes long, so what begins like a pickle can be sound; its length then
        # is plausible.
        if start[:4] == b"PK\x03\x04" or (
            start[:1] == b"\x80" and int.from_bytes(start, "little") > MAX_HEADER_BYTES
        ):
            raise FormatError(f"{self.path}: a pickled PyTorch file; give a safetensors checkpoint")
        if size < 10:
            raise FormatError(
                f"{self.path}: {size} bytes are too few for a safetensors file; download or "
                "convert it again"
            )

    def __contains__(self, name: str) -> bool:
        return name in self.tensors

    def info(self, name: str) -> TensorInfo:
        """Type and place of a tensor; FormatError when there is none of that name."""
        if name not in self.tensors:
            raise FormatError(f"{self.path}: tensor '{name}' is missing")
        return self.tensors[name]

    def array(self, name: str) -> NDArray[Any]:
        """The tensor as a read-only view of the file; BF16 as uint16."""
        info = self.info(name)
        count = math.prod(info.shape)
        flat = np.frombuffer(self._map, DTYPES[info.dtype], count, info.begin)
        return flat.reshape(info.shape)

    def bytes(self, begin: int, end: int) -> memoryview:
        """Bytes [begin, end) of the file, as a view."""
        return np.frombuffer(self._map, np.uint8, end - begin, begin).data

    def float32(self, name: str) -> NDArray[np.float32]:
        """A float tensor as float32 (a copy, unless it is float32 already)."""
        info = self.info(name)
        if info.dtype not in FLOATS:
            raise FormatError(
                f"{self.path}: tensor '{name}' is {info.dtype}; expected {', '.join(FLOATS)}"
            )
        return as_float32(self.array(name), info.dtype)

    def forget(self, names: Iterable[str] | None = None) -> None:
        """Let the system drop the pages read so far (of these tensors, or of all).

        They count as resident otherwise.
        """
        if not hasattr(mmap, "MADV_DONTNEED"):
            return
        if names is None:
            self._map.madvise(mmap.MADV_DONTNEED)
            return
        for begin, end in _runs(self.tensors[name] for name in names):
            begin -= begin % mmap.PAGESIZE
            self._map.madvise(mmap.MADV_DONTNEED, begin, end - begin)

    def populate(self, names: Iterable[str]) -> None:
        """Map the pages of tensors at once (Linux 5.14; elsewhere one by one, which is slower)."""
        if sys.platform != "linux":
            return
        for begin, end in _runs(self.tensors[name] for name in names):
            begin -= begin % mmap.PAGESIZE
            with suppress(OSError, ValueError):
                # MADV_POPULATE_READ; the mmap module has no name for it
                self._map.madvise(22, begin, end - begin)


def _runs(tensors: Iterable[TensorInfo]) -> list[tuple[int, int]]:
    """Bytes (begin, end) of tensors, those that touch each other as one."""
    runs: list[tuple[int, int]] = []
    for info in sorted(tensors, key=lambda info: info.begin):
        if runs and runs[-1][1] == info.begin:
            runs[-1] = (runs[-1][0], info.end)
        else:
            runs.append((info.begin, info.end))
    return runs


def _parse(
    path: Path, raw: bytes, data: int, size: int
) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    try:
        header = json_text.parse(raw)
    except json_text.JSONFault as fault:
        raise FormatError(
            f"{path}: the header {fault}; not a safetensors file, or damaged"
        ) from None
    if not isinstance(header, dict):
        raise FormatError(f"{path}: the header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise FormatError(f"{path}: __metadata__ is not an object of strings")
    tensors = {name: _tensor(path, name, entry, data) for name, entry in header.items()}
    position = data
    for name, info in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if info.begin != position:
            what = "overlaps another" if info.begin < position else "leaves a hole before it"
            raise FormatError(f"{path}: tensor {shown(name)} {what}; the file is damaged")
        position = info.end
    if position != size:
        raise FormatError(
            f"{path}: the tensors end at byte {position}, but the file has {size}; it is cut off "
            "or damaged: download or convert it again"
        )
    return tensors, metadata


def _tensor(path: Path, name: str, entry: Any, data: int) -> TensorInfo:
    label = shown(name)
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise FormatError(f"{path}: tensor {label}: expected dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise FormatError(f"{path}: tensor {label}: unknown dtype {reprlib.repr(dtype)}")
    if not _naturals(shape) or len(shape) > 8:
        raise FormatError(f"{path}: tensor {label}: impossible shape {reprlib.repr(shape)}")
    if not _naturals(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise FormatError(f"{path}: tensor {label}: impossible offsets {reprlib.repr(offsets)}")
    if math.prod(shape) * DTYPES[dtype].itemsize != offsets[1] - offsets[0]:
        raise FormatError(
            f"{path}: tensor {label}: {dtype} {shape} does not fill {offsets[1] - offsets[0]} bytes"
        )
    return TensorInfo(dtype, tuple(shape), data + offsets[0], data + offsets[1])


def _naturals(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 1 << 62 for v in value)


class Checkpoint:
    """The tensors of a directory: one safetensors file, or shards with their index."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        index, single = directory / "model.safetensors.index.json", directory / "model.safetensors"
        if os.path.exists(single):  # before the index, as transformers does
            self._files = [SafetensorsFile(single)]
        elif os.path.exists(index):
            self._files = self._open_shards(index)
        else:
            pickled = any(directory.glob("*.bin")) or any(directory.glob("*.pt*"))
            remedy = (
                "it has pickled weights only, which can run code: give a safetensors checkpoint"
                if pickled
                else "give the directory of a Hugging Face checkpoint"
            )
            raise FormatError(f"{directory}: no model.safetensors here; {remedy}")
        self._where: dict[str, SafetensorsFile] = {}
        for file in self._files:
            for name in file.tensors:
                if name in self._where:
                    raise FormatError(f"{directory}: tensor {shown(name)} is in two shards")
                self._where[name] = file

    def _open_shards(self, index: Path) -> list[SafetensorsFile]:
        try:
            names = sorted(set(read_json(index)["weight_map"].values()))
        except (KeyError, TypeError, AttributeError):
            raise FormatError(f"{index}: not an index of shards; download it again") from None
        for name in names:
            if not isinstance(name, str) or Path(name).name != name:
                raise FormatError(f"{index}: shard {shown(str(name))} is not a plain file name")
        return [SafetensorsFile(self.directory / name) for name in names]

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """Every tensor of every shard; places are within the shard."""
        return {name: file.tensors[name] for name, file in self._where.items()}

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata of the first shard."""
        return self._files[0].metadata

    @property
    def size_bytes(self) -> int:
        """Bytes of all shards."""
        return sum(file.size_bytes for file in self._files)

    def __contains__(self, name: str) -> bool:
        return name in self._where

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def file(self, name: str) -> SafetensorsFile:
        """The shard that holds a tensor; FormatError when none does."""
        if name not in self._where:
            raise FormatError(f"{self.directory}: tensor '{name}' is missing")
        return self._where[name]

    def forget(self) -> None:
        """Let the system drop the pages read so far."""
        for file in self._files:
            file.forget()


Declared = tuple[str, str, tuple[int, ...]]  # name, dtype, shape


def size_of(tensor: Declared) -> int:
    """Bytes of a tensor's data."""
    _, dtype, shape = tensor
    return math.prod(shape) * DTYPES[dtype].itemsize


class SafetensorsWriter:
    """Writes declared tensors one after another; the file appears under its name only when whole.

    Use as a context manager: on any error, Ctrl-C included, the temporary file is removed.
    Raises OutputError when the disk is full or the place cannot be written.
    """

    def __init__(
        self, path: str | os.PathLike[str], tensors: Iterable[Declared], metadata: Mapping[str, str]
    ) -> None:
        self.path = Path(path)
        self._declared = list(tensors)
        self._next = 0
        header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        offset = 0
        for name, dtype, shape in self._declared:
            size = size_of((name, dtype, shape))
            header[name] = {
                "dtype": dtype,
                "shape": list(shape),
                "data_offsets": [offset, offset + size],
            }
            offset += size
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) > MAX_HEADER_BYTES - ALIGNMENT:
            raise OutputError(f"{self.path}: a header of {len(text)} bytes, more than readers take")
        text += b" " * (-(8 + len(text)) % ALIGNMENT)
        self.start = len(text).to_bytes(8, "little") + text
        self.size_bytes = len(self.start) + offset
        self._file = WholeFile(self.path, self.start, self.size_bytes)

    def __enter__(self) -> SafetensorsWriter:
        self._file.__enter__()
        return self

    def write(self, name: str, array: NDArray[Any] | Table) -> None:
        """Write the next declared tensor; it must be the one of that name, type and shape."""
        expected, dtype, shape = self._declared[self._next]
        assert name == expected, f"{name} written, {expected} declared"
        assert array.shape == shape, f"{name}: {array.shape} written, {shape} declared"
        assert array.dtype == DTYPES[dtype], f"{name}: {array.dtype} written, {dtype} declared"
        self._next += 1
        for part in parts(array):
            self._seen(part)
            self._file.write(part)

    def _seen(self, part: bytes | memoryview) -> None:
        """Look at a part of a tensor on its way into the file."""

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._file.__exit__(kind, *rest)
