"""Keys and values on disk: what one process has computed of a text, the next one need not.

A block (`engine.blocks`) is a file, named by the model and by all tokens up to its end. Files are
written by a thread of their own, whole or not at all, and anything may have become of one before it
is read: it is copied, then checked against its sum and its name, and only then used. It is read and
not mapped, as a mapped file could change behind the check, or end the process by being cut. Several
processes may share a folder.
"""

from __future__ import annotations

import logging
import os
import queue
import re
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from weakref import finalize

from trilobit.engine.blocks import Key, keys_of
from trilobit.errors import OutputError, RequestError, TrilobitError
from trilobit.formats.leftovers import remove_leftovers
from trilobit.formats.whole_file import check_place, disk_amount, write_whole

WAITING_BYTES = 64_000_000  # of blocks that wait to be written; what comes beyond is not kept
_LOG = logging.getLogger("trilobit")
_MAGIC = b"trilokv1"
_SUM_BYTES = 32
_NAME = re.compile(r"[0-9a-f]{16}-[0-9a-f]{32}\.kv")
_PART = re.compile(r"\.([0-9a-f]{16}-[0-9a-f]{32}\.kv)\.[0-9]+\.part")
# What others have written meanwhile is seen when a process has written this part of the limit.
_UNSEEN = 16
_MICROSECOND_NS = 1000
_FOLLOWS = os.utime not in os.supports_follow_symlinks  # only where nothing else can be had
# Models of one process that write the same block would write the same unfinished file.
_WRITING = threading.Lock()


class PrefixCache:
    """Blocks of one model in a folder, for one engine.

    fingerprint: names all that decides what is in a block. block_bytes: of each. read, write: copy
    a block out of the engine's memory and into it. limit_bytes: of all files of all models; the
    longest unused are removed.

    Raises RequestError or OutputError for a folder that cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        *,
        limit_bytes: int,
        fingerprint: str,
        block_bytes: int,
        read: Callable[[int], bytes],
        write: Callable[[int, memoryview], None],
    ) -> None:
        _check_folder(folder)
        self._begin = folder / fingerprint  # of each name
        self._size_bytes = len(_MAGIC) + _SUM_BYTES + block_bytes
        if self._size_bytes > limit_bytes // 2:
            raise RequestError(
                f"prefix_cache_gb: one block has {disk_amount(block_bytes)}; give more"
            )
        self._read, self._write = read, write
        self._jobs: queue.Queue[Callable[[], None] | None] = queue.Queue(
            max(1, WAITING_BYTES // block_bytes)
        )
        self._files = _Files(folder, limit_bytes)
        thread = threading.Thread(
            target=_work, args=(self._jobs,), name="trilobit-prefix-cache", daemon=True
        )
        thread.start()
        # Also when the process ends: what waits is written.
        self._finish = finalize(self, _finish, self._jobs, thread)

    def load(self, key: Key, block: int) -> bool:
        """Put what a key names into a block of the engine's; False where it is not here."""
        path = self._path(key)
        try:
            payload = _payload(path, self._size_bytes)
        except FileNotFoundError:
            return False
        except OSError as error:
            self._files.refuse(path, error.strerror or "cannot be read")
            return False
        if payload is None:
            self._files.refuse(path, "damaged, or no file of this kind")
            return False
        self._write(block, payload)
        return True

    def keep(self, key: Key, block: int) -> None:
        """Have a block written that is known by a key."""
        files, path = self._files, self._path(key)
        if not self._jobs.full() and not os.path.lexists(path):
            payload = self._read(block)
            self._add(lambda: files.add(path, payload))

    def used(self, root: Key, token_ids: list[int]) -> None:
        """Note that a text was asked for that begins with these full blocks."""
        files, begin = self._files, self._begin  # not this, which ends when nobody has it
        self._add(lambda: files.touch(_path(begin, key) for key in keys_of(root, token_ids)))

    def close(self) -> None:
        """Write what waits, and be done."""
        self._finish()

    def _add(self, job: Callable[[], None]) -> None:
        with suppress(queue.Full):
            self._jobs.put_nowait(job)

    def _path(self, key: Key) -> Path:
        return _path(self._begin, key)


def _path(begin: Path, key: Key) -> Path:
    return begin.with_name(f"{begin.name}-{key.hex()}.kv")


class _Files:
    """The files of a folder, within a limit. Of the writing thread, but for `refuse`."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        self._folder, self._limit_bytes = folder, limit_bytes
        self._told = False
        self._size_bytes = self._unseen_bytes = limit_bytes  # nothing is known yet
        for name in os.listdir(folder):
            if part := _PART.fullmatch(name):  # of a process that was killed
                remove_leftovers(folder / part[1])

    def add(self, path: Path, payload: bytes) -> None:
        """Write a file that is not there yet."""
        if os.path.lexists(path):
            return
        data = _MAGIC + _sum(path.name, payload) + payload
        if (
            self._size_bytes + len(data) > self._limit_bytes
            or self._unseen_bytes > self._limit_bytes // _UNSEEN
        ):
            self._make_room(len(data))
        try:
            with _WRITING:
                write_whole(path, data, "give another --prefix-cache")
        except (OutputError, OSError) as error:
            self._warn(f"{error}; it is done without")
            return
        self.touch([path])  # by this clock: that of a file system may go in steps of milliseconds
        self._size_bytes += len(data)
        self._unseen_bytes += len(data)

    def touch(self, paths: Iterable[Path]) -> None:
        """Note that a text's files were used: its beginning last, as its end needs that."""
        used = time.time_ns()
        for path in paths:
            with suppress(OSError):
                os.utime(path, ns=(used, used), follow_symlinks=_FOLLOWS)
            used -= _MICROSECOND_NS

    def refuse(self, path: Path, reason: str) -> None:
        """Remove a file that is not what it should be, and say so once."""
        self._warn(f"{path}: {reason}; it is left out, and what it held computed anew")
        with suppress(OSError):
            path.unlink()

    def _make_room(self, size_bytes: int) -> None:
        found = sorted(_found(self._folder))
        self._size_bytes, self._unseen_bytes = sum(size for _, size, _ in found), 0
        if self._size_bytes + size_bytes <= self._limit_bytes:
            return
        for _, size, name in found:
            if self._size_bytes + size_bytes <= self._limit_bytes * (_UNSEEN - 1) // _UNSEEN:
                break
            with suppress(OSError):
                (self._folder / name).unlink()
            self._size_bytes -= size

    def _warn(self, text: str) -> None:
        if not self._told:
            self._told = True
            _LOG.warning("%s", text)


def _found(folder: Path) -> Iterator[tuple[int, int, str]]:
    """Time of use, bytes and name of each file that is a cache's; others are none of ours."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if _NAME.fullmatch(entry.name):
                with suppress(OSError):  # gone meanwhile
                    told = entry.stat(follow_symlinks=False)
                    yield told.st_mtime_ns, told.st_size, entry.name


def _payload(path: Path, size_bytes: int) -> memoryview | None:
    """What a file holds, if it is what its name says."""
    flags = os.O_RDONLY
    for name in ("O_NOFOLLOW", "O_NONBLOCK", "O_CLOEXEC", "O_BINARY"):
        flags |= getattr(os, name, 0)
    opened = os.open(path, flags)
    try:
        told = os.fstat(opened)
        ours = not hasattr(os, "getuid") or told.st_uid == os.getuid()
        if not stat.S_ISREG(told.st_mode) or told.st_size != size_bytes or not ours:
            return None
        with open(opened, "rb", closefd=False) as file:
            data = file.read(size_bytes)
    finally:
        os.close(opened)
    begin = len(_MAGIC) + _SUM_BYTES
    payload = memoryview(data)[begin:]
    whole = len(data) == size_bytes and data[:begin] == _MAGIC + _sum(path.name, payload)
    return payload if whole else None


def _sum(name: str, payload: bytes | memoryview) -> bytes:
    return blake2b(payload, digest_size=_SUM_BYTES, key=name.encode()[:64]).digest()


def _check_folder(folder: Path) -> None:
    """Make it, for us alone; who could write there could put words into the model's mouth."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        told = folder.stat()
    except OSError as error:
        raise RequestError(
            f"prefix cache {folder}: no folder can be there ({error.strerror}); give another"
        ) from None
    if hasattr(os, "getuid") and (told.st_uid != os.getuid() or told.st_mode & 0o022):
        raise RequestError(
            f"prefix cache {folder}: others may write there, who could change what models say; "
            "give a folder of your own, or chmod go-w"
        )
    check_place(folder / "place.kv")


def _work(jobs: queue.Queue[Callable[[], None] | None]) -> None:
    while (job := jobs.get()) is not None:
        try:
            job()
        except (OSError, TrilobitError, MemoryError):  # a cache may fail, and the next try works
            _LOG.debug("prefix cache", exc_info=True)


def _finish(jobs: queue.Queue[Callable[[], None] | None], thread: threading.Thread) -> None:
    if thread.is_alive():  # which it is not in a forked child
        jobs.put(None)
        thread.join()
