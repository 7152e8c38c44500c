"""Writing a large file: no overwriting by accident."""

from __future__ import annotations

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
