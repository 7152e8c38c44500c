"""A damaged file in the cache of packed models is packed again from what it was made of.

The file is ours: "convert it again", which is told of a user's own, does not fit what a failing
disk or a copy that was cut off left in our cache.
"""

from __future__ import annotations

import logging
import os
import shlex
from pathlib import Path

from trilobit.errors import FormatError, OutputError
from trilobit.hub.cache import Entry, Record, cached_folder, fingerprint
from trilobit.hub.names import repo_of
from trilobit.progress import Watch

_LOG = logging.getLogger("trilobit")


class Seen:
    """A packed file as it was before it was opened, so that its replacement can be told from it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folder = cached_folder(path)
        self._identity = _identity(path)

    @property
    def is_cached(self) -> bool:
        """Whether it is one of the cache."""
        return self.folder is not None

    @property
    def is_replaced(self) -> bool:
        """Whether another file has come in its place."""
        now = _identity(self.path)
        return now is not None and now != self._identity


def pack_again(seen: Seen, fault: FormatError, watch: Watch | None = None) -> None:
    """Have a sound file in the place of one of the cache that proved damaged.

    Raises FormatError with the remedy when its source is not here any more or nothing can be
    written.
    """
    path, folder = seen.path, seen.folder
    assert folder is not None
    entry = Entry.at(folder)
    try:
        with entry.locked():
            record = entry.record()
            if seen.is_replaced:  # by another process, which met the same
                return
            if record is None or not _has_source(record):
                raise FormatError(f"{path}: {_damaged(path, fault)}{_remedy(folder, record)}")
            entry = Entry.at(folder, record.name, record.title)
            if entry.path(record.state) != path:  # a newer state has come
                return
            _LOG.warning(f"{_name(folder, record)}: {_damaged(path, fault)}; packing it again")
            entry.make_again(record, watch)
    except OutputError as error:
        raise FormatError(
            f"{path}: {_damaged(path, fault)}, and cannot be packed again: {error}"
        ) from None


def damaged_again(path: Path, fault: FormatError) -> FormatError:
    """What to tell of a file that was packed anew and is no better."""
    return _with_remedy(path, fault, ", though it was packed just now; look after the disk")


def damaged(path: Path, fault: FormatError) -> FormatError:
    """What to tell of a file that was to be looked at only."""
    return _with_remedy(path, fault, "; running the model packs it again")


def _with_remedy(path: Path, fault: FormatError, remedy: str) -> FormatError:
    folder = cached_folder(path)
    if folder is None or not path.exists():
        return fault
    name = shlex.quote(_name(folder, Entry.at(folder).record()))
    return FormatError(f"{path}: {_damaged(path, fault)}{remedy}, or delete it: trilobit rm {name}")


def _identity(path: Path) -> tuple[int, ...] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _has_source(record: Record) -> bool:
    """Whether what a file was made of is here, and as it was."""
    if record.is_repo:
        return record.has_download
    try:
        return os.path.exists(record.source) and fingerprint(Path(record.source)) == record.state
    except FormatError:
        return False


def _damaged(path: Path, fault: FormatError) -> str:
    """The fault without the remedy that it has for a user's own file."""
    text = str(fault).removeprefix(f"{path}: ")
    return f"its packed file is damaged ({text.rpartition('; ')[0] or text})"


def _remedy(folder: Path, record: Record | None) -> str:
    name = shlex.quote(_name(folder, record))
    if record is None:
        return f", and what it was made of is not known; delete it: trilobit rm {name}"
    if record.is_repo:
        gone = "its download is not here any more"
        return f", and {gone}; delete it, then pull again: trilobit rm {name}"
    return f", and {record.source} is gone or has changed; delete it: trilobit rm {name}"


def _name(folder: Path, record: Record | None) -> str:
    """What `trilobit rm` knows it by."""
    if record is None:
        return folder.name
    repo = repo_of(record.name) if record.is_repo else None
    return repo.alias if repo else record.name
