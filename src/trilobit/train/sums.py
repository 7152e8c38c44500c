"""Checksums of the files in a folder that a run goes on from: a flipped byte must not go unseen."""

from __future__ import annotations

import hashlib
import json
from io import BufferedReader
from pathlib import Path
from typing import cast

from trilobit.errors import FormatError
from trilobit.formats.files import open_file, read_bytes

SUMS = "sums.json"
_MAX_BYTES = 1 << 20  # of some ten thousand files; a checkpoint has a dozen


def write_sums(folder: Path) -> dict[str, str]:
    """Write `sums.json`: SHA-256 of every file that lies in the folder, by its name."""
    sums = {path.name: sum_of(path) for path in sorted(folder.iterdir()) if path.is_file()}
    (folder / SUMS).write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")
    return sums


def read_sums(folder: Path) -> dict[str, str]:
    """What `write_sums` wrote. Raises FormatError when it is not there, or not whole."""
    path = folder / SUMS
    try:
        sums = json.loads(read_bytes(path, _MAX_BYTES))
    except (ValueError, RecursionError):
        sums = None
    if not isinstance(sums, dict) or not sums or not all(map(_is_plain, sums, sums.values())):
        raise FormatError(f"{path}: no list of checksums")
    return sums


def check_sums(folder: Path) -> None:
    """Raise FormatError when a file of the folder is not what it was when it was written."""
    for name, expected in read_sums(folder).items():
        if sum_of(folder / name) != expected:
            raise FormatError(f"{folder / name}: has another checksum than when it was written")


def sum_of(path: Path) -> str:
    """SHA-256 of a regular file. Raises FormatError for anything else."""
    file, _ = open_file(path)
    with file:
        try:
            return hashlib.file_digest(cast(BufferedReader, file), "sha256").hexdigest()
        except OSError as error:
            raise FormatError(f"{path}: cannot be read ({error.strerror})") from error


def _is_plain(name: str, value: object) -> bool:
    return isinstance(value, str) and Path(name).name == name
