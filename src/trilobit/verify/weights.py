"""Whether every tensor of a file can be read and holds what it may hold, and its checksums."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from ..errors import FormatError
from ..formats import names
from ..formats.source import Source
from .check import Check

Progress = Callable[[int, int], None]

_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHUNK_BYTES = 1 << 24


def check_weights(source: Source, progress: Progress | None = None) -> Iterator[Check]:
    """Read all of a model: codes, scales, norms, tables; readers refuse what cannot be."""
    projections = [name for name, _ in names.all_projections(source.config)]
    counts = np.zeros(3, dtype=np.int64)  # -1, 0, 1
    try:
        for done, name in enumerate(projections):
            codes, scales = source.projection(name)
            counts += np.bincount((codes.reshape(-1) + np.int8(1)).view(np.uint8), minlength=3)
            if not (np.isfinite(scales).all() and (scales >= 0).all()):
                raise FormatError(f"{source.path}: '{name}' has a scale that is no size")
            source.forget()
            if progress:
                progress(done + 1, len(projections))
        for name, _ in names.all_norms(source.config):
            source.gain(name)
        for name in names.float_tables(source.config):
            source.table(name)
            source.forget()
    except FormatError as error:
        yield Check("weights", False, str(error))
        return
    shares = ", ".join(f"{count / counts.sum():.1%}" for count in counts)
    yield Check("weights", True, f"{len(projections)} ternary matrices (-1, 0, 1: {shares})")


def check_sums(path: Path) -> Iterator[Check]:
    """Files of the Hub's cache carry their SHA-256 as a name: compare it with what is in them."""
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    named = [file for file in files if _SHA256.fullmatch(file.resolve().name)]
    if not named:
        yield Check("checksums", None, "no checksum comes with it")
        return
    wrong = [file.name for file in named if _sha256(file) != file.resolve().name]
    if wrong:
        yield Check("checksums", False, f"{', '.join(wrong)}: not what was published; pull again")
    else:
        yield Check("checksums", True, f"{len(named)} file{'s' * (len(named) != 1)} as published")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
