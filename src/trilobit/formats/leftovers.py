"""What a killed process has left beside its target: found by name, told from others' by a lock.

Whoever writes holds a lock on its unfinished file or directory, which the system lets go of when
the process ends, however it ends. A process number would say less: containers share folders.
"""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows, where nothing is held and nothing removed
    fcntl = None  # type: ignore[assignment]


def part_of(target: Path) -> Path:
    """Where this process writes what will be `target`."""
    return target.with_name(f".{target.name}.{os.getpid()}.part")


def remove_leftovers(target: Path) -> None:
    """Remove the parts of `target` that nobody writes any more."""
    if fcntl is None:
        return
    begin, end = f".{target.name}.", ".part"
    with suppress(OSError):
        for name in os.listdir(target.parent):
            if name.startswith(begin) and name.endswith(end):
                number = name[len(begin) : -len(end)]
                if number.isdecimal() and number.isascii():
                    _remove_unless_held(target.parent / name)


class Hold:
    """Keeps others from taking an unfinished file or directory for a leftover, until it is closed
    or this process ends.
    """

    def __init__(self, part: Path) -> None:
        self._opened: int | None = None
        if fcntl is not None:
            with suppress(OSError):  # a file system without locks: then nobody removes there either
                self._opened = os.open(part, os.O_RDONLY | os.O_CLOEXEC)
                fcntl.flock(self._opened, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def close(self) -> None:
        """Let go."""
        if self._opened is not None:
            os.close(self._opened)
            self._opened = None


def _remove_unless_held(part: Path) -> None:
    with suppress(OSError):  # held, gone, or somebody else's
        opened = os.open(part, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if part.is_dir():
                shutil.rmtree(part, ignore_errors=True)
            else:
                part.unlink()
        finally:
            os.close(opened)
