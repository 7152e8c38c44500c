"""The packed files made of other people's files, one folder for each source.

    <home>/packed/<name>-<hash>/record.json                   what it was made from
    <home>/packed/<name>-<hash>/<version>/<title>.trilobit    the packed file
    <home>/locks/<name>-<hash>.lock                           one maker at a time

`version` is a hash of the source's state (a commit, or sizes and times of files) and of the packed
format's version: a file under its name is whole and belongs to that state. Readers take no lock.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from trilobit.errors import FormatError, OutputError
from trilobit.hub.home import home
from trilobit.progress import Watch, named

_LOG = logging.getLogger("trilobit")

_RECORD = "record.json"
_ELSEWHERE = "set TRILOBIT_HOME to a folder of yours"
# What a checkpoint's folder may hold that conversion reads.
_READ = (".json", ".safetensors", ".gguf", ".jinja", ".model", ".txt")
_FOLDERS = ("", "1_Pooling")


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What a packed file was made from."""

    name: str  # a repository as `str(Repo)`, or an absolute path
    title: str  # of the file
    is_repo: bool
    state: str  # the commit, or the fingerprint of a path
    source: str  # the path that was converted
    files: tuple[str, ...] = ()  # those of a download, relative to its snapshot
    snapshot: str = ""  # the folder of a download

    @property
    def has_download(self) -> bool:
        """Whether the download is still here, whole."""
        return all(os.path.exists(os.path.join(self.snapshot, name)) for name in self.files)


class Entry:
    """The folder of one source."""

    def __init__(self, name: str, title: str) -> None:
        plain = re.sub(r"[^\w.-]+", "-", title, flags=re.ASCII).strip("-.") or "model"
        self.name, self.title = name, plain[:80]
        key = f"{self.title}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:10]}"
        self.folder = home() / "packed" / key

    @classmethod
    def at(cls, folder: Path, name: str = "", title: str = "model") -> Entry:
        """The entry in a folder that is there."""
        entry = cls(name, title)
        entry.folder = folder
        return entry

    def path(self, state: str) -> Path:
        """Where the packed file of a state of the source is, or would be."""
        from trilobit.formats.packed.form import FORMAT, VERSION

        version = hashlib.sha256(f"{FORMAT} {VERSION} {state}".encode()).hexdigest()[:16]
        return self.folder / version / f"{self.title}.trilobit"

    def record(self) -> Record | None:
        """What the folder says it was made from; None when it says nothing (readable)."""
        return read_record(self.folder)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from making or removing this one."""
        from filelock import FileLock, Timeout

        path = home() / "locks" / f"{self.folder.name}.lock"
        lock = FileLock(path)
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                _LOG.info(f"waiting for another process that prepares {self.name}")
                lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def make(self, record: Record, watch: Watch | None = None) -> Path:
        """Convert `record.source` unless that is done, and let only this state of it be kept.

        The lock must be held.
        """
        from trilobit.conversion import convert
        from trilobit.formats.whole_file import remove_parts

        path, before = self.path(record.state), self.record()
        with _writing(self.folder):
            path.parent.mkdir(parents=True, exist_ok=True)
        for folder in (self.folder, path.parent):
            remove_parts(folder)
        try:
            self._write(record)  # first: what is killed from here on is known by its name
            if not path.exists():
                convert(
                    record.source,
                    path,
                    "packed",
                    layout="auto",
                    progress=named(watch, f"Packing {record.name}"),
                    told=_LOG.warning,
                )
        except BaseException:
            self._restore(before, path.parent)
            raise
        for child in self.folder.iterdir():
            if child != path.parent and child.name != _RECORD:
                _delete(child)
        return path

    def make_again(self, record: Record, watch: Watch | None = None) -> Path:
        """Convert `record.source` in the place of a file that is damaged. The lock must be held."""
        _delete(self.path(record.state))
        return self.make(record, watch)

    def remove(self) -> int:
        """Delete the folder; bytes freed. The lock must be held."""
        freed = folder_bytes(self.folder)
        # The record last, so that what is left of an interrupted removal is still listed.
        for child in sorted(self.folder.glob("*"), key=lambda child: child.name == _RECORD):
            _delete(child)
        _delete(self.folder)
        return freed

    def _write(self, record: Record) -> None:
        from trilobit.formats.whole_file import write_whole  # brings numpy

        data = json.dumps(asdict(record), indent=1).encode()
        write_whole(self.folder / _RECORD, data, _ELSEWHERE)

    def _restore(self, before: Record | None, failed: Path) -> None:
        """After a failure: as it was, or nothing."""
        with suppress(OSError):
            if before is not None and self.path(before.state).exists():
                self._write(before)
            else:
                (self.folder / _RECORD).unlink(missing_ok=True)
        for folder in (failed, self.folder):
            with suppress(OSError):  # not empty: an older state stays
                folder.rmdir()


def cached_folder(path: Path) -> Path | None:
    """The folder of the source that a packed file was made from; None if it is not of the cache."""
    folder = path.absolute().parent.parent
    return folder if folder.parent == home() / "packed" else None


def records() -> list[tuple[Path, Record | None]]:
    """Every folder of the cache with what it says of itself, by name."""
    folders = (home() / "packed").glob("*/")
    return sorted(((folder, read_record(folder)) for folder in folders), key=lambda pair: pair[0])


def read_record(folder: Path) -> Record | None:
    """The record of a folder; None when there is none or it makes no sense."""
    from trilobit.formats.files import read_json

    try:
        raw = read_json(folder / _RECORD)
        record = Record(**{**raw, "files": tuple(raw["files"])})
    except (FormatError, TypeError, KeyError):
        return None
    texts = (record.name, record.title, record.state, record.source, record.snapshot)
    return record if all(isinstance(text, str) for text in (*texts, *record.files)) else None


def fingerprint(path: Path) -> str:
    """A checkpoint's state without reading it: names, sizes and times of change of its files.

    Raises FormatError when that cannot be seen.
    """
    try:
        files = [path]
        if path.is_dir():
            inside = (f for folder in _FOLDERS for f in (path / folder).glob("*"))
            files = sorted(f for f in inside if f.suffix in _READ and f.is_file())
        facts = [(f.name, f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    except OSError as error:
        raise FormatError(f"{path}: cannot be read ({error.strerror}); check the folder") from None
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def folder_bytes(folder: Path) -> int:
    """Bytes of all files in a folder."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):  # it may go meanwhile
            total += path.stat().st_size if path.is_file() else 0
    return total


def _delete(path: Path) -> None:
    with _writing(path):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        from trilobit.formats.whole_file import write_remedy  # brings numpy

        remedy = write_remedy(error, _ELSEWHERE)
        raise OutputError(
            f"{error.filename or path}: cannot be written ({error.strerror}); {remedy}"
        ) from None
