"""Bars for what takes minutes: on a terminal only, so that logs and pipes stay clean."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Advance = Callable[[int], None]


def _on_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"


def _plain(text: str) -> str:
    """Without what a terminal would obey: a folder's name may hold anything."""
    return "".join(c if c.isprintable() else "?" for c in text)


def say(text: str) -> None:
    """One line for whoever watches."""
    if _on_terminal():
        print(_plain(text), file=sys.stderr)


def warn(text: str) -> None:
    """One line that a log should keep too."""
    print(_plain(text), file=sys.stderr)


@contextmanager
def transfer(what: str, size_bytes: int) -> Iterator[Advance]:
    """A function that moves a bar of bytes by so many."""
    if not _on_terminal():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task(_plain(what), total=size_bytes)
        yield lambda count: bar.advance(task, count)


@contextmanager
def steps(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """A function (done, total) that moves a bar; None without a terminal."""
    if not _on_terminal():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

    with Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task(_plain(what), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def as_tqdm(advance: Advance) -> type[Any]:
    """A class with tqdm's face, which is what huggingface_hub reports to."""

    class Forwarding:
        n = 0
        total: int | None = None

        def __init__(self, *_: object, initial: int = 0, **__: object) -> None:
            self.update(initial)

        def __enter__(self) -> Forwarding:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def update(self, count: float | None = 1) -> None:
            advance(int(count or 0))

        def update_transfer(self, count: float | None = 1) -> None:
            """Bytes on the wire: fewer than the file's when chunks are shared."""

        def close(self) -> None:
            pass

        def refresh(self, *_: object, **__: object) -> None:
            pass

        set_postfix_str = set_transfer_postfix_str = set_description_str = refresh

    return Forwarding
