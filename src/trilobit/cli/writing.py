"""Writing a large file: no overwriting by accident, and a bar that shows how far it is."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from trilobit.errors import OutputError


def check_free(path: Path, *, replace: bool, remedy: str) -> None:
    """Raise OutputError when the path is taken; replace: a plain file may be."""
    if not path.exists() or path.is_dir():  # whoever writes says more about directories
        return
    if not path.is_file():
        raise OutputError(f"{path}: is no plain file; choose another name")
    if not replace:
        raise OutputError(f"{path}: exists; {remedy}")


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """A function (done, total) that moves a bar on the terminal; None without a terminal."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
