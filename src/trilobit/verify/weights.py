"""Whether every tensor of a file can be read and holds what it may hold, and its checksums."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path

from trilobit.errors import FormatError
from trilobit.formats.dead_tensors import Judge, in_words, look_at
from trilobit.formats.packed.checksums import damaged_parts
from trilobit.formats.packed.source import PackedSource
from trilobit.formats.source import Source
from trilobit.progress import Steps
from trilobit.verify.check import Check

_SHA256 = re.compile(r"[0-9a-f]{64}")
_CHUNK_BYTES = 1 << 24


def check_weights(source: Source, progress: Steps | None = None) -> Iterator[Check]:
    """Read all of a model: codes, scales, norms, tables; readers refuse what cannot be."""
    judge = Judge()
    try:
        look_at(source, judge, progress)
    except FormatError as error:
        yield Check("weights", False, str(error))
        return
    shares = ", ".join(f"{share:.1%}" for share in judge.shares)
    yield Check("weights", True, f"{judge.matrices} ternary matrices (-1, 0, 1: {shares})")
    dead = judge.dead()
    yield Check("tensors", not dead, in_words(dead) if dead else "none looks dead")


def check_sums(source: Source, progress: Steps | None = None) -> Iterator[Check]:
    """The checksums in a packed file; of the Hub's cache, the SHA-256 that is a file's name."""
    path = source.path
    if isinstance(source, PackedSource):
        yield _inner_sums(source, progress)
        return
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


def _inner_sums(source: PackedSource, progress: Steps | None) -> Check:
    try:
        wrong = damaged_parts(source.file, progress)
    except FormatError as error:
        return Check("checksums", False, str(error))
    if wrong is None:
        return Check("checksums", None, "no checksums in it: an older Trilobit packed it")
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        named = ", ".join(wrong[:3])
        return Check("checksums", False, f"{named}{more}: changed since; copy or download it again")
    return Check("checksums", True, f"of {len(source.file.tensors) - 1} tensors")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
